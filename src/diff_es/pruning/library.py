"""(stage, level) to pruning plans: the order in which each stage gives up its groups, and the compensated weights."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ..layers import DENSE, Anatomy, Block, Bypass, Cut, Layer, Plan
from ..pipelines.families import Denoiser
from ..routing.bypass import shortcut_of
from ..utils.malloc import give_back
from ..utils.progress import Reporter
from .compensation import Ridge, regress
from .cut_store import CutStore
from .granularity import Thin, Unit, Width, counts_by_layer, units_of, usual_granularity
from .method import Method, title_of
from .moments import Moments
from .solving import Solve, Solver, Thinning, by_itself
from .statistics import Some, Statistics


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
        solve: who ranks and solves; they may come to their ends in any order.
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
        solve: Solve = by_itself,
    ) -> None:
        self.method, self.anatomy, self.denoiser = method, anatomy, denoiser
        granularity = method.granularity or usual_granularity(method.ladder)
        self.units = units_of(anatomy, method.ladder, granularity) if units is None else units
        self._statistics = statistics.stages if method.stagewise else (statistics.shared(),)
        self.shared = statistics.shared() if method.shared_order else None
        self._solver, self._orders = Solver(denoiser, anatomy, method), dict[tuple[int, str], Tensor]()
        self._cuts, self.memory = CutStore(memory), memory
        self._left = dict[tuple[int, str, int], float]()  # of each cut
        self._plans, self._kept = _Held(), _Held()  # by levels, and by groups that stay
        self._fits = dict[tuple[int, str], tuple[Bypass | None, float]]()
        if isinstance(method.ladder, Width) and any(len(unit.options) > 1 for unit in self.units):
            self._thin(reporter, solve)

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

    def for_scoring(self, workers: int) -> Library:
        """The same for one of so many workers, with its part of the memory; without statistics, where no level of its
        units needs them any more: those that thin are solved when a library is made, those that skip blocks when they
        are asked for."""
        twin = copy(self)
        twin.memory = None if self.memory is None else self.memory // workers
        if self.method.depth is None:
            twin._statistics, twin.shared = ({},) * len(self._statistics), None
        return twin

    def moments(self, stage: int, layer: str) -> Moments:
        """What a stage's plans are made from."""
        return self._statistics[self.source(stage)][layer]

    def _cut(self, source: int, layers: Sequence[Layer], kept: Sequence[int]) -> dict[str, Cut]:
        cuts = dict[str, Cut]()
        for layer, count in zip(layers, kept, strict=True):
            if count < layer.groups:
                key = (source, layer.name, count)
                if key not in self._cuts:
                    order, moments = self._orders[source, layer.name], self._statistics[source][layer.name]
                    (self._cuts[key], self._left[key]), *_ = self._solver.cuts(layer, moments, order, (count,))
                cuts[layer.name] = self._cuts[key]
        return cuts

    def _thin(self, reporter: Reporter, solve: Solve) -> None:
        pieces = self._pieces()
        with reporter.task(title_of(self.method), len(pieces)) as task:
            for found in solve(self._solver, pieces):
                self._orders |= found.orders
                for key, left in found.cuts.items():
                    self._cuts[key], self._left[key] = left
                task.advance()
                give_back()

    def _pieces(self) -> list[Thinning]:
        """What there is to rank and solve: of each stage, or of all where they share an order, layer by layer; those
        that keep the same groups together."""
        counts, whole = counts_by_layer(self.units), range(len(self._statistics))
        left = {layer.name: sorted(counts[layer.name] - {layer.groups}) for layer in self.anatomy.layers}
        same = (tuple(one.name for one in self.anatomy.family(layer)) for layer in self.anatomy.layers)
        families = list(dict.fromkeys(same))
        pieces = list[Thinning]()
        for sources in [whole] if self.shared is not None else [range(source, source + 1) for source in whole]:
            for names in families:
                own = {source: Some(self._statistics[source], names) for source in sources}
                ranked = own[sources[0]] if self.shared is None else Some(self.shared, names)
                pieces.append(Thinning(ranked, own, {name: left[name] for name in names}))
        return pieces

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


def _output_power(moments: Moments, inputs: int, carried: nn.Conv2d | None) -> float:
    """E|B h + c + r|^2 of a block's input h and residual r; (B, c) is what carries h past the block: often (I, 0)."""
    second, mean = moments.hessian(centred=False), moments.mean()
    outputs = len(mean) - inputs
    here = torch.eye(outputs, dtype=mean.dtype, device=mean.device)
    base = here if carried is None else carried.weight.detach()[:, :, 0, 0].to(mean)
    offset = torch.zeros_like(here[0]) if carried is None or carried.bias is None else carried.bias.detach().to(mean)
    whole = torch.cat([base, here], 1)
    return float((whole @ second * whole).sum() + 2 * offset @ (whole @ mean) + offset.square().sum())
