"""The boundary to what others wrote, files above all: by schema, or refused in the words of all our errors."""

from __future__ import annotations

import re
from numbers import Real
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import DiffESError

T = TypeVar("T")


def validated(
    adapter: TypeAdapter[T], value: object, where: str, remedy: str, kind: type[DiffESError], *, strict: bool = False
) -> T:
    """A value that fits a schema.

    Args:
        where: what was looked at; the way from there to what is wrong is added.
        remedy: what the user can do.
        strict: whether nothing is converted, a list to a tuple neither.

    Raises:
        DiffESError: of this ``kind``; it does not fit, and the message names the first entry that is wrong.
    """
    try:
        return adapter.validate_python(value, strict=strict or None)
    except ValidationError as error:
        raise refusal(error, where, remedy, kind) from error


def refusal(error: ValidationError, where: str, remedy: str, kind: type[DiffESError]) -> DiffESError:
    """What pydantic found wrong first, as an error of ours."""
    details = error.errors(include_url=False)
    first = details[0]
    same = [other for other in details if other["input"] is first["input"]]  # the choices of a union
    steps = [one for one, *others in zip(*(other["loc"] for other in same), strict=False) if {one} == {one, *others}]
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    place = ": ".join(filter(None, [where, place]))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, DiffESError):
        return kind(f"{place}, {cause.where}", expected=cause.expected, found=cause.found, remedy=remedy)
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    found = "none" if first["type"] == "missing" else shown(first["input"])
    return kind(place, expected=expected, found=found, remedy=remedy)


def _expected(details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return "an entry"
    text = re.sub(" or instance of .*", "", details["msg"]).removeprefix("Input should ").removeprefix("Value error, ")
    return text.removeprefix("be ").replace("a valid dictionary", "an object")


def shown(value: object) -> str:
    """A value in an error: itself where it is short and plain, else its kind."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, str | Real):
        text = repr(value[:80] if isinstance(value, str) else value)
        return text if len(text) <= 82 else f"{text[:80]}..."
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__
