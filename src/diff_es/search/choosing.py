"""The choice among finalists: on more and more noises, the same for all, until one of them is clearly the best.

Few noises flatter whoever happens to suit them, so the best of several is chosen by paired differences: what two
finalists differ by on the same noise varies far less than either score.

Sources: racing by paired comparisons (Maron and Moore, NIPS 1993; Birattari et al., GECCO 2002); successive halving
(`racing`).
"""

from collections.abc import Callable, Hashable, Sequence
from math import ceil, inf, isfinite, sqrt
from statistics import fmean, stdev
from typing import Generic, NamedTuple, TypeVar

CLEARLY = 3.0
"""How many standard errors of the mean difference a finalist is behind the best when it is clearly worse."""
FEWEST = 4
"""Noises below which nothing is clear."""
CLOSE = 4
"""Finalists that go on together as long as none of them is clearly worse; of more, the better half does."""

Entrant = TypeVar("Entrant", bound=Hashable)


class Standing(NamedTuple, Generic[Entrant]):
    candidate: Entrant
    scores: tuple[float, ...]  # one for each noise that it ran on, the first ones of all

    @property
    def mean(self) -> float:
        return fmean(self.scores)


def choose(
    finalists: Sequence[Entrant], judge: Callable[[Sequence[Entrant], int], Sequence[Sequence[float]]], parts: int
) -> tuple[Standing[Entrant], ...]:
    """The finalists, the winner first; those that dropped out last come next.

    All of them run on the first part of the noises. Then those that are clearly worse than the best drop out, from the
    worst on, and of many the worse half; the others run on the next part, until one is left or no part is. So whoever
    dropped out was, on the noises that it ran on, not above any that went on, and none is above the winner on the
    noises that both ran on. Equals go by their order.

    Args:
        finalists: distinct.
        judge: (finalists, part) -> of each, its score on each noise of the part, the same noises for all; higher is
            better.
        parts: the most parts of noises.

    Examples:
        >>> quality = {"a": 1.0, "b": 1.1, "c": 0.0}
        >>> def judge(names, part):
        ...     return [[quality[name] + 0.2 * ((noise + part) % 3) for noise in range(4)] for name in names]
        >>> [(one.candidate, len(one.scores)) for one in choose("abc", judge, 3)]
        [('b', 4), ('a', 4), ('c', 4)]
    """
    seen, order = {one: list[float]() for one in finalists}, {one: i for i, one in enumerate(finalists)}
    left, out = list(finalists), list[Entrant]()
    for part in range(parts):
        for one, scores in zip(left, judge(left, part), strict=True):
            seen[one] += scores
        left.sort(key=lambda one: (-fmean(seen[one]), order[one]))
        last = max((i for i, one in enumerate(left) if not apart(seen[left[0]], seen[one])), default=0)
        most = min(last + 1, max(CLOSE, ceil(len(left) / 2)))
        left, out = left[:most], left[most:] + out
        if len(left) == 1:
            break
    return tuple(Standing(one, tuple(seen[one])) for one in left + out)


def apart(best: Sequence[float], other: Sequence[float]) -> bool:
    """Whether more noises would not make the one with these scores the best: it is clearly worse, or the same."""
    if fmean(other) == -inf:
        return True
    differences = [a - b for a, b in zip(best, other, strict=True)]
    if not any(differences):
        return True
    return len(differences) >= FEWEST and fmean(differences) > CLEARLY * error_of(differences)


def error_of(values: Sequence[float]) -> float:
    """The standard error of a mean; infinite where there is one value, or one that is not finite."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 and all(map(isfinite, values)) else inf
