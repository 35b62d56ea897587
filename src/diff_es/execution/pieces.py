"""Which piece is whose turn: those that wait, those whose worker died, and those that take so long that two do them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from statistics import median

TRIES = 3
"""How often a piece may fail."""
_LONG, _LEAST = 3.0, 5.0
"""A piece is done a second time when it has taken so many times as long as most, and at least so many seconds."""


class Pieces:
    """The pieces of one call, by their numbers.

    Args:
        count: how many there are.
        clock: seconds.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._waiting, self._done, self._took = deque(range(count)), set[int](), list[float]()
        self._begun, self._copies, self._failures = dict[int, float](), Counter[int](), Counter[int]()

    @property
    def all_done(self) -> bool:
        return len(self._done) == self._count

    def next(self) -> int | None:
        """The piece for a worker that has none: one that waits, else one that takes too long, else None."""
        if self._waiting:
            index = self._waiting.popleft()
            self._begun[index] = self._clock()
        else:
            late = [one for one, copies in self._copies.items() if copies == 1 and self._is_late(one)]
            if not late:
                return None
            index = min(late, key=lambda one: self._begun[one])
        self._copies[index] += 1
        return index

    def done(self, index: int) -> bool:
        """A worker has answered; whether it is the first to."""
        first = index not in self._done
        if first:
            self._done.add(index)
            self._took.append(self._clock() - self._begun[index])
        self._gone(index)
        return first

    def failed(self, index: int, for_good: bool = False) -> bool:
        """A worker did not do it; whether nobody else is to: it was tried often enough, or trying again mends nothing.
        Else somebody does it, and before others. Who fails at what another has done, does no harm."""
        self._gone(index)
        if index in self._done:
            return False
        self._failures[index] += 1
        if not self._copies[index]:
            self._waiting.appendleft(index)
        return for_good or self._failures[index] >= TRIES

    def _gone(self, index: int) -> None:
        self._copies[index] -= 1
        if not self._copies[index]:
            del self._copies[index]

    def _is_late(self, index: int) -> bool:
        return (
            index not in self._done
            and bool(self._took)
            and self._clock() - self._begun[index] > max(_LEAST, _LONG * median(self._took))
        )
