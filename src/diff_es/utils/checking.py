"""The boundary to what others wrote or say: as it is declared, or refused in the words of all our errors."""

from __future__ import annotations

import re
from enum import Enum
from numbers import Real
from pathlib import PurePath
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import DiffESError

T = TypeVar("T")


def validated(
    adapter: TypeAdapter[T],
    value: object,
    where: str,
    remedy: str,
    kind: type[DiffESError] = DiffESError,
) -> T:
    """A value that fits a schema.

    Args:
        where: what was looked at; the way from there to what is wrong is added.
        remedy: what the user can do.

    Raises:
        DiffESError: of this ``kind``; it does not fit, and the message names the first entry that is wrong.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise refusal(error, where, remedy, kind) from error


def refusal(error: ValidationError, where: str, remedy: str, kind: type[DiffESError]) -> DiffESError:
    """What pydantic found wrong first, as an error of ours."""
    details = error.errors(include_url=False)
    first = details[0]
    same = [other for other in details if other["input"] is first["input"]]  # what a union would have taken
    steps = [parts[0] for parts in zip(*(other["loc"] for other in same), strict=False) if len(set(parts)) == 1]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    place = f"{where}{path}" if path.startswith("[") else ": ".join(filter(None, [where, path.lstrip(".")]))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, DiffESError):
        return kind(f"{place}, {cause.where}", expected=cause.expected, found=cause.found, remedy=remedy)
    found = "none" if first["type"] == "missing" else shown(first["input"])
    return kind(place, expected=" or ".join(dict.fromkeys(map(_expected, same))), found=found, remedy=remedy)


def _expected(details: ErrorDetails) -> str:
    """What a message of pydantic asks for, in few words."""
    if details["type"] == "missing":
        return "an entry"
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return "no entry of this name"
    text = details["msg"].removeprefix("Value error, ")
    if kind := re.fullmatch(r"Input should be (?:a dictionary or )?an instance of ([\w.]+)", text):
        return _one(kind[1])
    text = re.sub(r"^\w+ should (be|have) ", "", text).replace("a valid ", "a ").partition(" after validation")[0]
    return text[:1].lower() + text[1:]


def shown(value: object) -> str:
    """A value in an error: itself where it is short and plain, else its kind."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, str | bytes | Real | PurePath | Enum):
        text = str(value) if isinstance(value, Real) else repr(value)
        return text if len(text) <= 82 else f"{text[:80]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kinds: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object"}
    return kinds.get(type(value), _one(type(value).__name__))


def _one(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
