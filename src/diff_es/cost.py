"""What a level costs: multiply-accumulates of a denoiser call, counted on a weightless twin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch.utils.flop_counter import FlopCounterMode

from .errors import BudgetOutOfReach
from .layers import DENSE, Anatomy, Bypass, Cut, Plan, Switch, Weights, realise
from .library import Depth, Ladder, kept_groups
from .pipeline import Denoiser, Trace, meta_twin
from .progress import Reporter
from .search import Space


class MacCounter:
    """Counts the MACs of one denoiser call, for any widths, without the model's weights or arithmetic.

    Args:
        denoiser: the architecture is taken from its configuration.
        anatomy: what discovery found in it.
        trace: the shapes of the call.
    """

    def __init__(self, denoiser: Denoiser, anatomy: Anatomy, trace: Trace) -> None:
        self._twin, self._anatomy, self._trace = meta_twin(denoiser), anatomy, trace

    def dense(self) -> int:
        return self._count(DENSE)

    def thinned(self, kept: tuple[int, ...]) -> int:
        """With so many groups left in each of ``anatomy.layers``."""
        pairs = zip(self._anatomy.layers, kept, strict=True)
        cuts = {layer.name: Cut(torch.arange(count)) for layer, count in pairs if count < layer.groups}
        return self._count(Plan(cuts))

    def skipping(self, blocks: int, *, bypass: bool) -> int:
        """With so many blocks left out; all blocks of a denoiser cost the same, so it does not matter which."""
        stand_ins = dict[str, Bypass | None]()
        for block in self._anatomy.blocks[:blocks]:
            like = {"device": "meta", "dtype": self._twin.dtype}
            tensors = Bypass(torch.empty(block.width, block.width, **like), torch.empty(block.width, **like))
            stand_ins[block.name] = tensors if bypass else None
        return self._count(Plan(bypasses=stand_ins))

    def level(self, ladder: Ladder, level: int) -> int:
        """At a level of a ladder."""
        if isinstance(ladder, Depth):
            return self.skipping(level, bypass=ladder.bypass)
        return self.thinned(kept_groups(self._anatomy, ladder, level))

    def table(self, ladder: Ladder, reporter: Reporter) -> tuple[int, ...]:
        """MACs by level, from 0 to the deepest."""
        macs, levels = list[int](), range(ladder.deepest(self._anatomy) + 1)
        with reporter.task("count MACs", len(levels)) as task:
            for level in levels:
                macs.append(self.level(ladder, level))
                task.advance()
        return tuple(macs)

    def _count(self, plan: Plan) -> int:
        switch = Switch(self._twin)
        switch.to(realise(self._twin, self._anatomy, plan))
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self._twin(*self._trace.args, **self._trace.kwargs)
        finally:
            switch.to(Weights())
        return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Costs:
    """The exact cost of schedules: a stage costs its sampler steps times the MACs of its level."""

    macs: tuple[int, ...]  # of one denoiser call, by level; level 0 first
    steps: tuple[int, ...]  # sampler steps of each stage

    @property
    def dense(self) -> int:
        return self.macs[0] * sum(self.steps)

    def ratio(self, levels: tuple[tuple[int, ...], ...]) -> float:
        """MACs of a one-unit schedule over the dense trajectory's."""
        return sum(n * self.macs[row[0]] for n, row in zip(self.steps, levels, strict=True)) / self.dense

    def space(self, fraction: float) -> Space:
        """All schedules of at most this fraction of the dense trajectory's MACs.

        Raises:
            BudgetOutOfReach: the fraction is none, or below the cheapest schedule's.
        """
        if not 0 < fraction <= 1:
            remedy = "Give the share of the dense compute that may be spent, such as 0.7."
            raise BudgetOutOfReach("macs", expected="a fraction above 0, at most 1", found=str(fraction), remedy=remedy)
        # exact: 0.29 of 100 is 29; and the ratio of a schedule, a rounded float, is a budget that the schedule keeps
        budget = math.floor(Fraction(str(fraction)) * self.dense * (1 + Fraction(1, 10**12)))
        if budget < min(self.macs) * sum(self.steps):
            shown = math.ceil(Fraction(min(self.macs), self.macs[0]) * 10_000) / 10_000
            remedy = f"Ask for {shown} or more, or take fewer sampler steps."
            expected = f"at least {shown}, which the deepest level costs in every stage"
            raise BudgetOutOfReach("macs", expected=expected, found=str(fraction), remedy=remedy)
        rows = tuple((tuple(n * macs for macs in self.macs),) for n in self.steps)
        return Space(rows, budget)
