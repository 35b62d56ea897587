"""From pairs of runs, one of the reference and one right before or after it, to a speed-up that is to be believed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

LEAST, _WIDE = 5, 0.1
"""Pairs that an interval takes; how far a speed-up may be off, relative to itself."""
_DISTURBED = 1.25
"""Times by which a run has fewer processors than others of its kind where something else is at work."""


@dataclass(frozen=True)
class Spent:
    """What one run took."""

    pipeline: float  # ms
    denoiser: float  # ms
    processor: float  # ms of processors, of all threads of the process

    @property
    def busy(self) -> float:
        """Processors at a time."""
        return self.processor / self.pipeline


Pair: TypeAlias = tuple[Spent, Spent]
"""A run of the reference, and one of a runner right before or after it."""


@dataclass(frozen=True)
class SpeedupOf:
    """What pairs of runs say of one: the median of their ratios, with its interval, of those that count."""

    runs: Sequence[Pair]

    @cached_property
    def clean(self) -> list[Pair]:
        return _undisturbed(self.runs)

    @property
    def enough(self) -> bool:
        return len(self.clean) >= LEAST

    @property
    def pairs(self) -> Sequence[Pair]:
        """Those that count."""
        return self.clean if self.enough else self.runs

    @cached_property
    def ratios(self) -> list[float]:
        return sorted(dense.pipeline / own.pipeline for dense, own in self.pairs)

    @property
    def middle(self) -> float:
        return statistics.median(self.ratios)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        return interval(self.ratios)

    @property
    def wide(self) -> bool:
        return self.interval is not None and self.interval[1] - self.interval[0] > _WIDE * self.middle

    @property
    def narrow(self) -> bool:
        """Whether more runs are not needed."""
        return self.enough and not self.wide

    def doubts(self, macs: float | None) -> Iterator[str]:
        """Why it is not to be believed."""
        if not self.enough and len(self.runs) >= LEAST:
            disturbed = f"{len(self.runs) - len(self.clean)} of {len(self.runs)}"
            yield f"in {disturbed} pairs of runs something else used the processors"
        if self.interval is None:
            yield f"{len(self.pairs)} pairs of runs are too few"
        elif self.wide:
            yield "it lies anywhere from {:.2f} to {:.2f}".format(*self.interval)
        if macs and self.middle > (1 + _WIDE) / macs:
            yield f"{self.middle:.2f} is more than its MACs can give, {1 / macs:.2f}"


def _undisturbed(pairs: Sequence[Pair]) -> list[Pair]:
    """Those of which neither run had fewer processors than others of its kind."""
    most = [max(one.busy for one in kind) for kind in zip(*pairs, strict=True)]
    return [pair for pair in pairs if all(one.busy * _DISTURBED >= best for one, best in zip(pair, most, strict=True))]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """What holds the median of what values are drawn from, in nine of ten cases: from one of them, sorted, to another,
    by the binomial distribution of how many lie below it. Of fewer than five there is none."""
    count, outside, missed = len(values), -1, 0.0
    while (missed := missed + 2 * math.comb(count, outside + 1) / 2**count) <= 0.1:
        outside += 1
    return None if outside < 0 else (values[outside], values[-1 - outside])
