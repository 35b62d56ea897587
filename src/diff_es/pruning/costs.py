"""What schedules cost, from the cost of a denoiser call at each level of each unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..search import Candidate, Space, Steps
from ..utils.errors import BudgetOutOfReach


@dataclass(frozen=True)
class Costs:
    """The exact cost of schedules: a stage costs its denoiser calls times what a call costs at its levels.

    Costs are whole MACs, or whole nanoseconds where a budget of time is kept.
    """

    fixed: int  # of a call, what belongs to no unit
    options: tuple[tuple[int, ...], ...]  # of a call, by ``[unit][level]``; level 0 first
    steps: tuple[int, ...]  # denoiser calls of each stage in the user's own setting
    choices: tuple[tuple[int, ...], ...] | None = None  # how many each stage may take; None: its own
    barred: frozenset[int] = frozenset()  # levels of the one unit that must not be taken

    @classmethod
    def tabled(
        cls, table: Sequence[Sequence[int]], steps: Sequence[int], choices: tuple[tuple[int, ...], ...] | None = None
    ) -> Costs:
        """From the cost of a call by ``[unit][level]``, with all else dense."""
        dense = max(row[0] for row in table)
        if len(table) == 1:
            return cls(0, (tuple(table[0]),), tuple(steps), choices)
        least = [min(row) for row in table]
        fixed = max(1, dense - sum(row[0] - low for row, low in zip(table, least, strict=True)))  # times are noisy
        owned = tuple(tuple(cost - low for cost in row) for row, low in zip(table, least, strict=True))
        return cls(fixed, owned, tuple(steps), choices)

    @property
    def dense(self) -> int:
        """What the user's own setting costs."""
        return sum(self.steps) * (self.fixed + sum(row[0] for row in self.options))

    @property
    def cheapest(self) -> int:
        """What the cheapest schedule costs."""
        least = self.fixed + sum(
            min(c for level, c in enumerate(row) if level not in self.barred) for row in self.options
        )
        return least * (sum(self.steps) if self.choices is None else sum(counts[0] for counts in self.choices))

    def attainable(self, fraction: float) -> bool:
        """Whether any schedule costs so little."""
        return self.cheapest <= fraction * self.dense

    def call(self, levels: Sequence[int]) -> int:
        """One denoiser call, for one level of each unit."""
        return self.fixed + sum(row[level] for row, level in zip(self.options, levels, strict=True))

    def of(self, candidate: Candidate) -> int:
        """A whole schedule."""
        steps = self.steps if self.choices is None else candidate.steps
        return sum(n * self.call(levels) for n, levels in zip(steps, candidate.levels, strict=True))

    def ratio(self, candidate: Candidate) -> float:
        """The cost of a schedule over that of the user's own setting."""
        return self.of(candidate) / self.dense

    def space(self, fraction: float) -> Space:
        """All schedules of at most this fraction of the dense trajectory's cost.

        Raises:
            BudgetOutOfReach: the fraction is none, or below the cheapest schedule's.
        """
        if not 0 < fraction <= 1:
            remedy = "Give the share of the dense compute that may be spent, such as 0.7."
            raise BudgetOutOfReach("macs", expected="a fraction above 0, at most 1", found=str(fraction), remedy=remedy)
        # exact: 0.29 of 100 is 29; and the ratio of a schedule, a rounded float, is a budget that the schedule keeps
        budget = math.floor(Fraction(str(fraction)) * self.dense * (1 + Fraction(1, 10**12)))
        if budget < self.cheapest:
            shown = math.ceil(Fraction(self.cheapest, self.dense) * 10_000) / 10_000
            remedy = f"Ask for {shown} or more, or take fewer sampler steps."
            expected = f"at least {shown}, which the deepest level costs in every stage"
            if self.choices is not None:
                remedy = f"Ask for {shown} or more."
                expected = f"at least {shown}, which the fewest steps cost at the deepest level"
            raise BudgetOutOfReach("macs", expected=expected, found=str(fraction), remedy=remedy)
        # a level that must not be taken is one that no budget pays for
        offered = tuple(
            tuple(budget + 1 if level in self.barred else cost for level, cost in enumerate(row))
            for row in self.options
        )
        if self.choices is None:
            rows = tuple(tuple(tuple(n * cost for cost in row) for row in offered) for n in self.steps)
            return Space(rows, budget, fixed=tuple(n * self.fixed for n in self.steps))
        stages = len(self.steps)
        return Space((offered,) * stages, budget, Steps(self.choices, self.steps), (self.fixed,) * stages)
