"""The contract of executors: pieces go to a crew, and are answered in any order; who asks brings them into a fixed one.

An answer has to depend on its piece alone. Then it makes no difference who gives it, when, or how often: any number of
workers finds the same, and a piece whose worker died is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from ..utils.progress import Reporter

J = TypeVar("J")  # a piece
A = TypeVar("A")  # and its answer


class Shared(Protocol):
    """What workers open their work from."""

    @property
    def accelerated(self) -> bool:
        """Whether it is for a GPU."""

    def opened(self, device: str) -> Any:
        """What is made of it on a device."""


@dataclass(frozen=True, eq=False)
class Work(Generic[J, A]):
    """What answers pieces of one kind.

    Args:
        here: answers in this process.
        shared: gives what workers open it from, which reaches each machine once; asked for when there is a first piece.
        there: makes of that what answers in a worker; a function that has a name in a module.
        remedy: what the user can do where a worker has too little memory.
    """

    here: Callable[[J], A]
    shared: Callable[[], Shared]
    there: Callable[[Any], Callable[[J], A]]
    remedy: str = "Take fewer workers on a machine, or a smaller batch."


class Crew(Protocol):
    """Who works, from the start of a run to its end."""

    @property
    def size(self) -> int:
        """Pieces that are done at a time."""

    def answers(self, work: Work[J, A], pieces: Sequence[J]) -> Iterator[tuple[J, A]]:
        """Each piece and its answer, in the order in which they come."""


@runtime_checkable
class Executor(Protocol):
    """A choice of who works; settings, which nothing that is found depends on."""

    def crew(self, reporter: Reporter) -> AbstractContextManager[Crew]:
        """Who works, for a ``with`` block; its end, however it comes, leaves nobody working."""


class Alone:
    """This process."""

    size = 1

    def answers(self, work: Work[J, A], pieces: Sequence[J]) -> Iterator[tuple[J, A]]:
        """As :class:`Crew` says."""
        return ((piece, work.here(piece)) for piece in pieces)


@dataclass(frozen=True)
class InProcess:
    """This process, one piece after the other."""

    @contextmanager
    def crew(self, reporter: Reporter) -> Iterator[Crew]:
        """As :class:`Executor` says."""
        yield Alone()
