"""What the index of a model's folder says: its pipeline's class and parts, before anything of it is loaded."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError

from ..utils.errors import FOREIGN, DiffESError, UnsupportedModel, said

INDEX = "model_index.json"
AGAIN = "Download or save the model again."
_JSON_BYTES = 1 << 27
_Made = TypeVar("_Made")
_CLASS_NAMES: TypeAdapter[dict[str, str] | None] = TypeAdapter(
    dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], str] | None
)
_PART = TypeAdapter(tuple[str, str] | tuple[None, None])


def attempted(where: str, expected: str, remedy: str, read: Callable[[], _Made]) -> _Made:
    """What other libraries make of a user's files.

    Raises:
        UnsupportedModel: they raised whatever it may be; the message says it.
    """
    try:
        return read()
    except (DiffESError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of no common kind: tokenizers raises just this
        raise UnsupportedModel(where, expected=expected, found=said(error), remedy=remedy) from error


def read_json(file: Path, where: str, expected: str) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises:
        UnsupportedModel: no regular file, a very large one, or no JSON object in it.
    """
    try:
        facts = file.stat()
        regular, size = stat.S_ISREG(facts.st_mode), facts.st_size
        value = json.loads(file.read_text(encoding="utf-8")) if regular and size <= _JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(where, expected=expected, found=f"{file.name}: {said(error)}", remedy=AGAIN) from error
    if not isinstance(value, dict):
        kind = "another kind of JSON" if size <= _JSON_BYTES else f"{size} bytes"
        found = f"{file.name}, {kind if regular else 'no regular file'}"
        raise UnsupportedModel(where, expected=expected, found=found, remedy=AGAIN)
    return value


def parts_of(kind: type, index: Mapping[str, Any], where: str) -> dict[str, tuple[str, str]]:
    """The parts that an index names for a pipeline class: (library, class) by name.

    Raises:
        UnsupportedModel: one that the class needs is missing or null, or an entry is none.
    """
    found = dict[str, tuple[str, str]]()
    for name, argument in list(signature(kind.__init__).parameters.items())[1:]:  # type: ignore[misc]
        needed = argument.default is Parameter.empty and name not in kind._optional_components  # type: ignore[attr-defined]
        entry = index.get(name)
        if isinstance(entry, list) or needed:
            try:
                library, part = _PART.validate_python(entry)
            except ValidationError as error:
                expected, shown = f"{name}, as [library, class]", repr(entry)[:80]
                raise UnsupportedModel(f"{where}, {INDEX}", expected=expected, found=shown, remedy=AGAIN) from error
            if library is not None and part is not None:
                found[name] = (library, part)
            elif needed:
                raise UnsupportedModel(f"{where}, {INDEX}", expected=f"a {name}", found="null", remedy=AGAIN)
    return found


def check_class_names(index: Mapping[str, Any], where: str) -> None:
    """Whether the names of classes, where an index has them, are texts by number.

    Raises:
        UnsupportedModel: they are not, or a number has two.
    """
    names, expected = index.get("id2label"), "id2label, names of classes by number"
    try:
        numbers = [int(number) for number in _CLASS_NAMES.validate_python(names) or ()]
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{first['input']!r} at {'.'.join(map(str, first['loc'])) or 'its top'}"[:120]
        raise UnsupportedModel(f"{where}, {INDEX}", expected=expected, found=found, remedy=_RENAME) from error
    if len(set(numbers)) < len(numbers):
        raise UnsupportedModel(f"{where}, {INDEX}", expected=expected, found="a number twice", remedy=_RENAME)


_RENAME = 'Write them as {"0": "name", ...}, or leave id2label out.'


def class_of(library: str, name: str, where: str) -> type | None:
    """A class by what an index calls it; libraries are those that pipelines of diffusers take their parts from. None:
    transformers has it no more, and diffusers may know what came after it.

    Raises:
        UnsupportedModel: there is none of this name.
    """
    expected, remedy = "a class of diffusers or transformers", f"Correct {INDEX}, or take a model of known parts."
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    try:
        kind = getattr(import_module(module), name) if library.isidentifier() else None
    except FOREIGN as error:
        if library == "transformers" and isinstance(error, AttributeError):
            return None
        raise UnsupportedModel(where, expected=expected, found=said(error), remedy=remedy) from error
    if not isinstance(kind, type):
        raise UnsupportedModel(where, expected=expected, found=f"{library}.{name}", remedy=remedy)
    return kind
