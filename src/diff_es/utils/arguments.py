"""What users give to a function or an object: taken as what it means, or refused by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from functools import cached_property, wraps
from numbers import Real
from pathlib import PurePath
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    InstanceOf,
    PlainValidator,
    TypeAdapter,
)
from pydantic_core import PydanticCustomError

from .checking import validated
from .errors import DiffESError

Checked = TypeVar("Checked", bound=Callable[..., Any])
_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)


def whole(least: int, most: int) -> PlainValidator:
    """For ``Annotated[int, whole(1, 100)]``: a whole number within these bounds, of Python or numpy; no bool."""

    def check(value: Any) -> int:
        if not _real(value) or not least <= value <= most or value % 1:
            raise _unlike(f"a whole number from {least} to {most}", value, most)
        return int(value)

    return PlainValidator(check)


def number(least: float, most: float, *, above: bool = False) -> PlainValidator:
    """For ``Annotated[float, number(0, 1)]``: the same of any number; ``above`` leaves ``least`` itself out."""

    def check(value: Any) -> float:
        if not _real(value) or not least <= value <= most or (above and value == least):
            bounds = f"above {least:g}, at most {most:g}" if above else f"from {least:g} to {most:g}"
            raise _unlike(f"a number {bounds}", value, most)
        return value if type(value) is int else float(value)  # what is written as JSON stays as it was

    return PlainValidator(check)


def named(kind: type[Enum]) -> PlainValidator:
    """For ``Annotated[Levers, named(Levers)]``: a member of the enum, or its value."""

    def check(value: Any) -> Enum:
        for member in kind:
            if value is member or (type(value) is str and value == member.value):
                return member
        expected = " or ".join(repr(member.value) for member in kind)
        raise PydanticCustomError("name", "Input should be {expected}", {"expected": expected})

    return PlainValidator(check)


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _unlike(expected: str, value: Any, most: float) -> PydanticCustomError:
    more = " (more cannot be meant)" if _real(value) and value > most > 1 else ""
    return PydanticCustomError("number", "Input should be {expected}", {"expected": f"{expected}{more}"})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "Input should be text that UTF-8 can hold") from None
    return value


def _place(value: Any) -> Any:
    try:
        os.lstat(value)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return value
    except (OSError, ValueError) as error:
        raise PydanticCustomError("place", "Input should be a name that a file can have") from error
    return value


LISTED = BeforeValidator(_tuple)
"""For ``Annotated[tuple[X, ...], LISTED]``: a list will do."""
Text = Annotated[str, AfterValidator(_text)]
Place = Annotated[str | PurePath, AfterValidator(_place)]


class _Signature:
    """What a function, or a dataclass when it is made, takes; the types are looked up when it is first called."""

    def __init__(self, called: Callable[..., Any], where: str, title: str, kind: type[DiffESError]) -> None:
        self._called, self._where, self._title, self._kind = called, where, title, kind
        self._signature = inspect.signature(called)

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        hints, named = get_type_hints(self._called, include_extras=True), self._signature.parameters.values()
        single = [one.name for one in named if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        return {name: _adapter(hints[name]) for name in single if name in hints}

    def converted(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        parameters = self._signature.parameters
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            known = ", ".join(name for name in parameters if name != "self")
            expected = f"arguments that it has: {known}" if known else "no arguments"
            raise DiffESError(self._title, expected=expected, found=str(error), remedy="Mind the spelling.") from None
        for name, adapter in self._adapters.items():
            if name in bound.arguments:
                needed = parameters[name].default is inspect.Parameter.empty
                remedy = "Give one of that kind." if needed else "Leave it out to take the default."
                where = f"{self._where}{name}"
                bound.arguments[name] = validated(adapter, bound.arguments[name], where, remedy, self._kind)
        return bound


def _adapter(hint: Any) -> TypeAdapter[Any]:
    if is_dataclass(hint):  # whose fields were looked at when it was made
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=_CONFIG)


def checked(where: str | None = None, kind: type[DiffESError] = DiffESError) -> Callable[[Checked], Checked]:
    """A function, or a dataclass, whose arguments are converted to the types that they are declared with, or refused.

    Numbers of numpy become Python's, lists the tuples that :data:`LISTED` marks, and values of an enum that is
    :func:`named` its members. Nothing else is taken for what it is not: no bool or string for a number, no string for a
    list, no class for an object of it.

    Args:
        where: put before the name of an argument in an error; by default nothing, for a dataclass such as ``"Width."``.
        kind: of error.

    Raises:
        DiffESError: where the function is called or the object made; it names the argument.
    """

    def wrap(called: Checked) -> Checked:
        if isinstance(called, type):
            made: Any = called
            before = f"{called.__name__}." if where is None else where
            made.__init__ = _wrapped(made.__init__, before, called.__name__, kind)
            return called
        wrapped: Checked = _wrapped(called, where or "", called.__name__, kind)
        return wrapped

    return wrap


def _wrapped(called: Any, where: str, title: str, kind: type[DiffESError]) -> Any:
    signature = _Signature(called, where, title, kind)

    @wraps(called)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.converted(*args, **kwargs)
        return called(*bound.args, **bound.kwargs)

    return call
