"""The errors that bad input raises: each says where, what was expected, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial


class DiffESError(ValueError):
    """Bad input. The message always has the same four parts.

    Args:
        where: the argument, file or layer that is wrong.
        expected: what would have been right.
        found: what is there instead.
        remedy: what the user can do.
    """

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}. {remedy}")
        self.where, self.expected, self.found, self.remedy = where, expected, found, remedy

    def __reduce__(self) -> tuple[Callable[[], DiffESError], tuple[()]]:
        """Exceptions are copied and pickled by their positional arguments, which do not make one of these."""
        made = partial(type(self), self.where, expected=self.expected, found=self.found, remedy=self.remedy)
        return made, ()


class UnsupportedModel(DiffESError):
    """A model or pipeline that Diff-ES cannot prune."""


class BudgetOutOfReach(DiffESError):
    """A budget below the cheapest schedule, or not a fraction at all."""


class ArtefactError(DiffESError):
    """A saved result that is damaged, foreign, or made for another base model."""


class StorageError(DiffESError):
    """The disk refused: full, read-only, or a folder that is not ours to replace."""


class Extra(StrEnum):
    """What is not installed with Diff-ES unless it is asked for."""

    CACHES = "caches"
    PLAY = "play"
    RAY = "ray"
    TEXT = "text"

    @property
    def remedy(self) -> str:
        """Where it is missing; in quotes, since a shell may take brackets for a pattern."""
        return f"Install it: pip install 'diff-es[{self}]'."


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; for that of the CPU, and that of libraries on a GPU, PyTorch has no type of error."""
    told = isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError)


def several(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What other libraries raise, by no rule, where a file or a setting is none that they can take."""


def said(error: BaseException) -> str:
    """The first line of what an error of another library says, with its type where that is not plain."""
    line = next(iter(str(error).strip().splitlines()), "")
    return line if isinstance(error, OSError | ValueError) and line else f"{type(error).__name__}: {line}".rstrip(": ")
