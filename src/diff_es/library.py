"""(stage, level) to pruning plans: the order in which each stage gives up its groups, and the compensated weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .calibrate import Statistics
from .layers import DENSE, Anatomy, Bypass, Cut, Layer, Plan, output_of
from .obs import Moments, Obs, Ranking, Ridge, regress
from .pipeline import Denoiser
from .progress import Reporter
from .units import Depth, Grain, Ladder, Thin, Width, units_of


@dataclass(frozen=True)
class Method:
    """How levels are made from statistics."""

    ladder: Ladder = field(default_factory=Width)
    ranking: Ranking = field(default_factory=Obs)
    compensation: Ridge | None = field(default_factory=Ridge)  # None slices the dense weights
    stagewise: bool = True  # False shares one set of statistics between all stages
    shared_order: bool = False  # True lets all stages give up their groups in one order, and only the weights differ
    grain: Grain = Grain.WHOLE  # what carries its own level

    @property
    def depth(self) -> Depth | None:
        """How blocks are skipped, if they are."""
        return self.ladder if isinstance(self.ladder, Depth) else self.ladder.depth


class Library:
    """The plans of every (stage, level of each unit).

    Thinning is ranked and solved for all levels at once when the library is made; other numbers of groups, and skipped
    blocks, when first asked for.

    Args:
        denoiser: the dense module; never changed.
        anatomy: what discovery found in it.
        statistics: what calibration gathered.
        method: ranking, compensation, the ladder of levels and their units.
        reporter: shows the progress of ranking.
    """

    def __init__(
        self, denoiser: Denoiser, anatomy: Anatomy, statistics: Statistics, method: Method, reporter: Reporter
    ) -> None:
        self.method, self.anatomy, self.denoiser = method, anatomy, denoiser
        self.units = units_of(anatomy, method.ladder, method.grain)
        self._statistics = statistics.stages if method.stagewise else (statistics.shared(),)
        self.shared = statistics.shared() if method.shared_order else None
        self._orders = dict[tuple[int, str], Tensor]()
        self._cuts = dict[tuple[int, str, int], Cut]()
        self._plans = dict[tuple[int, tuple[int, ...]], Plan]()
        self._kept = dict[tuple[int, tuple[int, ...]], Plan]()
        self._fits = dict[tuple[int, str], tuple[Bypass | None, float]]()
        if isinstance(method.ladder, Width):
            self._thin(reporter)

    def plan(self, stage: int, levels: Sequence[int]) -> Plan:
        """The pruning of a stage, for one level of each unit; where all are 0 it is dense: nothing at all."""
        if not any(levels):
            return DENSE
        key = (self.source(stage), tuple(levels))
        if key not in self._plans:
            parts = [self.part(stage, unit, level) for unit, level in enumerate(levels)]
            cuts, bypasses = dict[str, Cut](), dict[str, Bypass | None]()
            for part in parts:
                cuts |= part.cuts
                bypasses |= part.bypasses
            self._plans[key] = Plan(cuts, bypasses)
        return self._plans[key]

    def part(self, stage: int, unit: int, level: int) -> Plan:
        """The same of one unit, the others dense."""
        option = self.units[unit].options[level]
        if level == 0:
            return DENSE
        if isinstance(option, Thin):
            return Plan(self._cut(self.source(stage), self.units[unit].layers, option.kept))
        names = option.blocks if not isinstance(option.blocks, int) else self._dispensable(stage)[: option.blocks]
        return Plan(bypasses={name: self._fit(stage, name)[0] for name in names})

    def thinned(self, stage: int, kept: tuple[int, ...]) -> Plan:
        """The plan of a stage with so many groups left in each layer, in the order of ``anatomy.layers``."""
        key = (self.source(stage), kept)
        if key not in self._kept:
            self._kept[key] = Plan(self._cut(key[0], self.anatomy.layers, kept))
        return self._kept[key]

    def source(self, stage: int) -> int:
        """Whose statistics a stage uses: its own, or the one set that all share."""
        return stage if self.method.stagewise else 0

    def moments(self, stage: int, layer: str) -> Moments:
        """What a stage's plans are made from."""
        return self._statistics[self.source(stage)][layer]

    def _cut(self, source: int, layers: Sequence[Layer], kept: Sequence[int]) -> dict[str, Cut]:
        cuts = dict[str, Cut]()
        for layer, count in zip(layers, kept, strict=True):
            if count < layer.groups:
                if (source, layer.name, count) not in self._cuts:
                    self._solve(source, layer, (count,))
                cuts[layer.name] = self._cuts[source, layer.name, count]
        return cuts

    def _thin(self, reporter: Reporter) -> None:
        title = "rank and compensate" if self.method.compensation else "rank"
        counts = dict[str, set[int]]()
        for unit in self.units:
            for option in unit.options:
                if isinstance(option, Thin):
                    for layer, count in zip(unit.layers, option.kept, strict=True):
                        counts.setdefault(layer.name, set()).add(count)
        with reporter.task(title, len(self._statistics) * len(self.anatomy.layers)) as task:
            for source, moments in enumerate(self._statistics):
                for layer in self.anatomy.layers:
                    self._orders[source, layer.name] = self._order(source, layer, moments[layer.name])
                    self._solve(source, layer, sorted(counts[layer.name] - {layer.groups}))
                    task.advance()

    def _order(self, source: int, layer: Layer, moments: Moments) -> Tensor:
        """The groups of a layer, first to go first."""
        if self.shared is not None:
            if source > 0:
                return self._orders[0, layer.name]
            moments = self.shared[layer.name]
        return self.method.ranking.order(output_of(self.denoiser, layer).weight.detach(), moments, layer.width)

    def _solve(self, source: int, layer: Layer, counts: Sequence[int]) -> None:
        """Fill in the cuts of a layer for several numbers of groups that stay."""
        order, linear = self._orders[source, layer.name], output_of(self.denoiser, layer)
        ridge, kept = self.method.compensation, [order[len(order) - count :].sort().values.cpu() for count in counts]
        if ridge is None:
            for groups in kept:
                self._cuts[source, layer.name, len(groups)] = Cut(groups)
            return
        bias = None if linear.bias is None else linear.bias.detach()
        moments, columns = self._statistics[source][layer.name], [count * layer.width for count in counts]
        solved = ridge.solve(linear.weight.detach(), bias, moments, layer.columns(order), columns)
        for groups, (_, weight, offset) in zip(kept, solved, strict=True):
            cut = Cut(groups, weight.to(linear.weight), offset.to(linear.weight))
            self._cuts[source, layer.name, len(groups)] = cut

    def _dispensable(self, stage: int) -> list[str]:
        """The blocks of the denoiser, the one that the stage misses least first."""
        return sorted((block.name for block in self.anatomy.blocks), key=lambda name: self._fit(stage, name)[1])

    def _fit(self, stage: int, name: str) -> tuple[Bypass | None, float]:
        """What stands in for a skipped block, and the error it leaves relative to the block's output."""
        key = (self.source(stage), name)
        if key not in self._fits:
            self._fits[key] = self._bypass(self.moments(stage, name))
        return self._fits[key]

    def _bypass(self, moments: Moments) -> tuple[Bypass | None, float]:
        depth, parameter, inputs = self.method.depth, next(self.denoiser.parameters()), len(moments.first) // 2
        if depth is not None and not depth.bypass:
            return None, float(moments.power()[inputs:].sum() / _output_power(moments, inputs))
        damping = self.method.compensation.damping if self.method.compensation else Ridge().damping
        weight, bias, error = regress(moments, inputs, damping)
        return Bypass(weight.to(parameter), bias.to(parameter)), error / _output_power(moments, inputs)


def _output_power(moments: Moments, inputs: int) -> float:
    """E|h + r|^2 of a block's input h and residual r."""
    second = moments.hessian(centred=False)
    total = second.diagonal().sum() + 2 * second[:inputs, inputs:].diagonal().sum()
    return float(total)
