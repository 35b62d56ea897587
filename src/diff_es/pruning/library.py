"""(stage, level) to pruning plans: the order in which each stage gives up its groups, and the compensated weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Annotated
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ..layers import DENSE, Anatomy, Block, Bypass, Cut, Layer, Plan, Projection, as_matrix, from_matrix
from ..pipelines.families import Denoiser
from ..routing.bypass import shortcut_of
from ..routing.realise import output_of, weight_of
from ..utils.arguments import checked, named
from ..utils.malloc import give_back
from ..utils.progress import Reporter
from .compensation import Ridge, Solved, regress
from .cut_store import CutStore
from .granularity import (
    Depth,
    Granularity,
    Ladder,
    Thin,
    Unit,
    Width,
    counts_by_layer,
    units_of,
    usual_granularity,
)
from .importance import Obs, Ranking, column_powers, grouped
from .moments import Moments
from .statistics import Statistics


@checked()
@dataclass(frozen=True)
class Method:
    """How levels are made from statistics."""

    ladder: Ladder = field(default_factory=Width)
    ranking: Ranking = field(default_factory=Obs)
    compensation: Ridge | None = field(default_factory=Ridge)  # None slices the dense weights
    stagewise: bool = True  # False shares one set of statistics between all stages
    shared_order: bool = False  # True lets all stages give up their groups in one order, and only the weights differ
    granularity: Annotated[Granularity, named(Granularity)] | None = (
        None  # what carries its own level; None: units.usual_granularity
    )

    @property
    def depth(self) -> Depth | None:
        """How blocks are skipped, if they are."""
        return self.ladder if isinstance(self.ladder, Depth) else self.ladder.depth

    @property
    def squares(self) -> bool:
        """Whether of the inputs of layers only the power of each matters: nothing is inverted or solved."""
        return self.compensation is None and not isinstance(self.ranking, Obs)


def title_of(method: Method) -> str:
    """What making its levels is called."""
    return "rank and compensate" if method.compensation else "rank"


class _Held(WeakValueDictionary[tuple[int, tuple[int, ...]], Plan]):
    """Plans, as long as somebody holds them; a copy in another process has none."""

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()


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
        units: what carries levels; None: what the method says. Where none of them has a level but 0, nothing is ranked.
        memory: bytes of re-solved weights to keep in memory; the others wait on disk. None: all of them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        anatomy: Anatomy,
        statistics: Statistics,
        method: Method,
        reporter: Reporter,
        units: tuple[Unit, ...] | None = None,
        memory: int | None = None,
    ) -> None:
        self.method, self.anatomy, self.denoiser = method, anatomy, denoiser
        granularity = method.granularity or usual_granularity(method.ladder)
        self.units = units_of(anatomy, method.ladder, granularity) if units is None else units
        self._statistics = statistics.stages if method.stagewise else (statistics.shared(),)
        self.shared = statistics.shared() if method.shared_order else None
        self._orders = dict[tuple[int, str], Tensor]()
        self._cuts, self.memory = CutStore(memory), memory
        self._left = dict[tuple[int, str, int], float]()  # of each cut
        self._plans, self._kept = _Held(), _Held()  # by levels, and by groups that stay
        self._fits = dict[tuple[int, str], tuple[Bypass | None, float]]()
        if isinstance(method.ladder, Width) and any(len(unit.options) > 1 for unit in self.units):
            self._thin(reporter)

    def plan(self, stage: int, levels: Sequence[int]) -> Plan:
        """The pruning of a stage, for one level of each unit; where all are 0 it is dense: nothing at all."""
        if not any(levels):
            return DENSE
        key = (self.source(stage), tuple(levels))
        plan = self._plans.get(key)
        if plan is None:
            parts = [self.part(stage, unit, level) for unit, level in enumerate(levels)]
            cuts, bypasses = dict[str, Cut](), dict[str, Bypass | None]()
            for part in parts:
                cuts |= part.cuts
                bypasses |= part.bypasses
            self._plans[key] = plan = Plan(cuts, bypasses)
        return plan

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
        plan = self._kept.get(key)
        if plan is None:
            self._kept[key] = plan = Plan(self._cut(key[0], self.anatomy.layers, kept))
        return plan

    def left(self, stage: int, unit: int, level: int) -> float:
        """What a level that thins leaves wrong of what its layers give, relative to that, summed over the layers: known
        without a run of the model, where weights are not solved anew as if inputs were independent of each other."""
        carrier = self.units[unit]
        option = carrier.options[level]
        assert isinstance(option, Thin)
        pairs, source = zip(carrier.layers, option.kept, strict=True), self.source(stage)
        return sum(self._left[source, layer.name, kept] for layer, kept in pairs if kept < layer.groups)

    def source(self, stage: int) -> int:
        """Whose statistics a stage uses: its own, or the one set that all share."""
        return stage if self.method.stagewise else 0

    def without_statistics(self) -> Library:
        """The same without statistics, where none of its units' levels needs them any more: those that thin are solved
        when a library is made, those that skip blocks when they are asked for."""
        if self.method.depth is not None:
            return self
        twin = copy(self)
        twin._statistics, twin.shared = ({},) * len(self._statistics), None
        return twin

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
        counts = counts_by_layer(self.units)
        with reporter.task(title_of(self.method), len(self._statistics) * len(self.anatomy.layers)) as task:
            for source, moments in enumerate(self._statistics):
                for layer in self.anatomy.layers:
                    self._orders[source, layer.name] = self._order(source, layer, moments)
                    self._solve(source, layer, sorted(counts[layer.name] - {layer.groups}))
                    task.advance()
                give_back()

    def _order(self, source: int, layer: Layer, moments: Mapping[str, Moments]) -> Tensor:
        """The groups of a layer, first to go first; layers that keep the same ones are ranked together."""
        if self.shared is not None:
            if source > 0:
                return self._orders[0, layer.name]
            moments = self.shared
        family = self.anatomy.family(layer)
        known = next(
            (self._orders[source, other.name] for other in family if (source, other.name) in self._orders), None
        )
        if known is not None:
            return known
        weights = [as_matrix(weight_of(output_of(self.denoiser, one), one)) for one in family]
        return fused(
            [
                self.method.ranking.order(weight, moments[one.name], one.width)
                for weight, one in zip(weights, family, strict=True)
            ]
        )

    def _solve(self, source: int, layer: Layer, counts: Sequence[int]) -> None:
        """Fill in the cuts of a layer for several numbers of groups that stay."""
        order, output = self._orders[source, layer.name], output_of(self.denoiser, layer)
        ridge, kept = self.method.compensation, [order[len(order) - count :].sort().values.cpu() for count in counts]
        moments = self._statistics[source][layer.name]
        if ridge is None:
            powers = grouped(column_powers(as_matrix(weight_of(output, layer)), moments), layer.width)
            shares = powers / powers.sum().clamp_min(torch.finfo(powers.dtype).tiny)
            for groups in kept:
                key = (source, layer.name, len(groups))
                self._cuts[key], self._left[key] = Cut(groups), float(1 - shares[groups.to(shares.device)].sum())
            return
        found = solved(ridge, output, layer, moments, layer.columns(order), counts)
        for groups, one in zip(kept, found, strict=True):
            key = (source, layer.name, len(groups))
            self._cuts[key] = Cut(groups, one.weight.to(output.weight), one.bias.to(output.weight))
            self._left[key] = one.left

    def _dispensable(self, stage: int) -> list[str]:
        """The blocks of the denoiser, the one that the stage misses least first."""
        return sorted((block.name for block in self.anatomy.blocks), key=lambda name: self._fit(stage, name)[1])

    def _fit(self, stage: int, name: str) -> tuple[Bypass | None, float]:
        """What stands in for a skipped block, and the error it leaves relative to the block's output."""
        key = (self.source(stage), name)
        if key not in self._fits:
            block = next(block for block in self.anatomy.blocks if block.name == name)
            self._fits[key] = self._bypass(block, [self.moments(stage, stream) for stream in block.streams])
        return self._fits[key]

    def _bypass(self, block: Block, streams: Sequence[Moments]) -> tuple[Bypass | None, float]:
        depth, like = self.method.depth, next(self.denoiser.parameters())
        damping = self.method.compensation.damping if self.method.compensation else Ridge().damping
        parts, error, power = list[Tensor](), 0.0, 0.0
        for moments, width in zip(streams, (block.width, block.context or 0), strict=False):
            weight, bias, left = regress(moments, width, damping)
            parts += [weight.to(like), bias.to(like)]
            plain = depth is not None and not depth.bypass
            error += moments.count * (float(moments.power()[width:].sum()) if plain else left)
            power += moments.count * _output_power(moments, width, shortcut_of(self.denoiser, block))
        if depth is not None and not depth.bypass:
            return None, error / power
        return Bypass(**dict(zip(block.shapes(), parts, strict=True))), error / power


def fused(orders: Sequence[Tensor]) -> Tensor:
    """One order of several over the same groups: by the mean of a group's ranks, ties by its index."""
    if len(orders) == 1:
        return orders[0]
    ranks = torch.stack([order.argsort().cpu() for order in orders])
    return ranks.sum(0).argsort(stable=True)


def solved(
    ridge: Ridge,
    output: Projection,
    layer: Layer,
    moments: Moments,
    order: Tensor,
    counts: Sequence[int],
) -> list[Solved]:
    """The compensated weight (O, K * width, ...) and bias (O,) of a layer, for each of several numbers of groups.

    Args:
        order: int64 (size,), the layer's columns, the one that goes first first.
    """
    part = weight_of(output, layer)
    taps = part[0, 0].numel()
    bias = None if output.bias is None else output.bias.detach().repeat_interleave(taps) / taps
    columns = [count * layer.width for count in counts]
    found = ridge.solve(as_matrix(part), bias, moments, order, columns)
    return [
        one._replace(weight=from_matrix(one.weight, part), bias=one.bias.view(len(part), -1).sum(1)) for one in found
    ]


def _output_power(moments: Moments, inputs: int, carried: nn.Conv2d | None) -> float:
    """E|B h + c + r|^2 of a block's input h and residual r; (B, c) is what carries h past the block: often (I, 0)."""
    second, mean = moments.hessian(centred=False), moments.mean()
    outputs = len(mean) - inputs
    here = torch.eye(outputs, dtype=mean.dtype, device=mean.device)
    base = here if carried is None else carried.weight.detach()[:, :, 0, 0].to(mean)
    offset = torch.zeros_like(here[0]) if carried is None or carried.bias is None else carried.bias.detach().to(mean)
    whole = torch.cat([base, here], 1)
    return float((whole @ second * whole).sum() + 2 * offset @ (whole @ mean) + offset.square().sum())
