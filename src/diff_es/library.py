"""(stage, level) to pruning plans: the order in which each stage gives up its groups, and the compensated weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .calibrate import Statistics
from .errors import DiffESError
from .layers import DENSE, Anatomy, Bypass, Cut, Factor, Layer, Plan, output_of
from .lowrank import factorise
from .obs import Moments, Obs, Ranking, Ridge, damped, regress
from .pipeline import Denoiser
from .progress import Reporter


@dataclass(frozen=True)
class Width:
    """Levels 0 to ``levels`` - 1: level l removes floor(l n / levels) of the n heads or channels of every layer.

    Level ``levels`` itself would leave nothing of a layer and is not offered.

    Args:
        levels: L.
        multiple: numbers of channels that stay are rounded up to a multiple of it, or of the largest half, quarter, ...
            of it that a level's n / L channels hold; None takes what the device and the precision like.
        dense: (layer, level) pairs that are left dense because they would run slower; None measures them.
    """

    levels: int = 8
    multiple: int | None = None
    dense: tuple[tuple[str, int], ...] | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("levels", self.levels, 2), ("multiple", self.multiple, 1)):
            if value is not None and value < least:
                expected, remedy = f"{least} or more", "Leave it out to take the default."
                raise DiffESError(f"Width.{name}", expected=expected, found=str(value), remedy=remedy)

    def deepest(self, anatomy: Anatomy) -> int:
        return self.levels - 1

    def kept(self, layer: Layer, level: int) -> int:
        """How many groups of a layer stay at a level."""
        exact, step = layer.kept(level, self.levels), self.multiple or 1
        if (layer.name, level) in (self.dense or ()):
            return layer.groups
        while step > 1 and step * self.levels > layer.groups:
            step //= 2
        return min(layer.groups, -(-exact // step) * step) if layer.width == 1 else exact


@dataclass(frozen=True)
class Depth:
    """Level l leaves out the l least important blocks, each replaced by a fitted linear map; one block always stays."""

    bypass: bool = True  # False leaves nothing in a block's place

    def deepest(self, anatomy: Anatomy) -> int:
        return len(anatomy.blocks) - 1


Ladder = Width | Depth


@dataclass(frozen=True)
class Method:
    """How levels are made from statistics."""

    ladder: Ladder = field(default_factory=Width)
    ranking: Ranking = field(default_factory=Obs)
    compensation: Ridge | None = field(default_factory=Ridge)  # None slices the dense weights
    stagewise: bool = True  # False shares one set of statistics between all stages
    shared_order: bool = False  # True lets all stages give up their groups in one order, and only the weights differ


class Library:
    """The plans of every (stage, level).

    Thinning is ranked and solved for all levels at once when the library is made; other numbers of groups, and skipped
    blocks, when first asked for.

    Args:
        denoiser: the dense module; never changed.
        anatomy: what discovery found in it.
        statistics: what calibration gathered.
        method: ranking, compensation and the ladder of levels.
        reporter: shows the progress of ranking.
    """

    def __init__(
        self, denoiser: Denoiser, anatomy: Anatomy, statistics: Statistics, method: Method, reporter: Reporter
    ) -> None:
        self.method, self.anatomy = method, anatomy
        self._denoiser, self._statistics = denoiser, statistics.stages
        self._orders = dict[tuple[int, str], Tensor]()
        self._cuts = dict[tuple[int, str, int], Cut]()
        self._plans = dict[tuple[int, tuple[int, ...]], Plan]()
        self._fits = dict[int, dict[str, tuple[Bypass | None, float]]]()
        self._bases = dict[tuple[str, int], tuple[Factor, ...]]()
        if not method.stagewise:
            self._statistics = (statistics.shared(),)
        self._shared = statistics.shared() if method.shared_order else None
        if isinstance(method.ladder, Width):
            self._thin(method.ladder, reporter)

    @property
    def deepest(self) -> int:
        """The largest level on offer."""
        return self.method.ladder.deepest(self.anatomy)

    def plan(self, stage: int, level: int) -> Plan:
        """The pruning of a stage at a level; level 0 is dense: nothing at all."""
        if level == 0:
            return DENSE
        if isinstance(self.method.ladder, Depth):
            return self._skipping(self._source(stage), level)
        return self.thinned(stage, kept_groups(self.anatomy, self.method.ladder, level))

    def thinned(self, stage: int, kept: tuple[int, ...]) -> Plan:
        """The plan of a stage with so many groups left in each layer, in the order of ``anatomy.layers``."""
        source = self._source(stage)
        if (source, kept) not in self._plans:
            cuts = dict[str, Cut]()
            for layer, count in zip(self.anatomy.layers, kept, strict=True):
                if count < layer.groups:
                    if (source, layer.name, count) not in self._cuts:
                        self._solve(source, layer, (count,))
                    cuts[layer.name] = self._cuts[source, layer.name, count]
            self._plans[source, kept] = Plan(cuts)
        return self._plans[source, kept]

    def _source(self, stage: int) -> int:
        """Whose statistics a stage uses: its own, or the one set that all share."""
        return stage if self.method.stagewise else 0

    def _thin(self, ladder: Width, reporter: Reporter) -> None:
        title = "rank and compensate" if self.method.compensation else "rank"
        with reporter.task(title, len(self._statistics) * len(self.anatomy.layers)) as task:
            for source, moments in enumerate(self._statistics):
                for layer in self.anatomy.layers:
                    self._orders[source, layer.name] = self._order(source, layer, moments[layer.name])
                    counts = {ladder.kept(layer, level) for level in range(1, ladder.levels)}
                    self._solve(source, layer, sorted(counts - {layer.groups}))
                    task.advance()

    def _order(self, source: int, layer: Layer, moments: Moments) -> Tensor:
        """The groups of a layer, first to go first."""
        if self._shared is not None:
            if source > 0:
                return self._orders[0, layer.name]
            moments = self._shared[layer.name]
        return self.method.ranking.order(output_of(self._denoiser, layer).weight.detach(), moments, layer.width)

    def _solve(self, source: int, layer: Layer, counts: Sequence[int]) -> None:
        """Fill in the cuts of a layer for several numbers of groups that stay."""
        order, linear, ridge = (
            self._orders[source, layer.name],
            output_of(self._denoiser, layer),
            self.method.compensation,
        )
        kept = [order[len(order) - count :].sort().values.cpu() for count in counts]
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

    def compacted(self, stage: int, level: int, tolerance: float) -> Plan:
        """The same plan with its corrections as low-rank factors (lowrank.py).

        What is left out of a correction adds at most ``tolerance`` times the squared error that pruning leaves in the
        layer's output on the calibration inputs. Where all stages share one order, they share the factors of what
        they have in common too.
        """
        plan, source, cuts = self.plan(stage, level), self._source(stage), dict[str, Cut]()
        for layer in self.anatomy.layers:
            cut = plan.cuts.get(layer.name)
            if cut is not None:
                factors = () if self._shared is None else self._base(layer, cut.kept, tolerance)
                cuts[layer.name] = self._factored(layer, cut, self._statistics[source][layer.name], factors, tolerance)
        return Plan(cuts, plan.bypasses)

    def _base(self, layer: Layer, kept: Tensor, tolerance: float) -> tuple[Factor, ...]:
        """The factors that all stages of one order share, from the statistics of all of them."""
        assert self._shared is not None
        key = (layer.name, len(kept))
        if key not in self._bases and self.method.compensation is not None:
            linear, moments = output_of(self._denoiser, layer), self._shared[layer.name]
            bias, columns = None if linear.bias is None else linear.bias.detach(), layer.columns(kept)
            order = torch.cat([_others(columns, linear.in_features), columns])
            ((_, weight, _),) = self.method.compensation.solve(
                linear.weight.detach(), bias, moments, order, [len(columns)]
            )
            self._bases[key] = self._factored(layer, Cut(kept, weight), moments, (), tolerance / 2).factors
        return self._bases.get(key, ())

    def _factored(self, layer: Layer, cut: Cut, moments: Moments, shared: tuple[Factor, ...], tolerance: float) -> Cut:
        """A cut with its correction as factors, of which some are given already."""
        ridge, linear = self.method.compensation, output_of(self._denoiser, layer)
        if cut.weight is None or ridge is None:
            return cut
        columns, dense = layer.columns(cut.kept), linear.weight.detach().double()
        hessian = moments.hessian(centred=ridge.intercept)
        whole, dense = cut.weight.double().to(hessian.device), dense.to(hessian.device)
        lost = dense.clone()
        lost[:, columns] -= whole
        floor = 1e-6 * float((dense @ hessian * dense).sum())  # below it, the arithmetic of the model itself errs
        allowed = max(tolerance * float((lost @ hessian * lost).sum()), floor, 1e-30)
        delta, inner = whole - dense[:, columns], damped(hessian[columns][:, columns], 1e-4, moments.rounding())
        for factor in shared:
            delta = delta - factor.product().double()
        factors = (*shared, *factorise(delta, inner, allowed))
        bias = cut.bias
        if bias is not None and ridge.intercept:  # the mean of what the factors leave out goes into the bias too
            merged = Cut(cut.kept, None, None, factors).merged(dense, columns)
            bias = bias + ((whole - merged) @ moments.mean()[columns]).to(bias)
        return Cut(cut.kept, None, bias, factors)

    def _skipping(self, source: int, level: int) -> Plan:
        if source not in self._fits:
            self._fits[source] = {block.name: self._bypass(source, block.name) for block in self.anatomy.blocks}
        fits = self._fits[source]
        ranked = sorted(fits, key=lambda name: fits[name][1])
        key = (source, (level,))
        if key not in self._plans:
            self._plans[key] = Plan(bypasses={name: fits[name][0] for name in ranked[:level]})
        return self._plans[key]

    def _bypass(self, source: int, name: str) -> tuple[Bypass | None, float]:
        """What stands in for a skipped block, and the error it leaves relative to the block's output."""
        moments, parameter = self._statistics[source][name], next(self._denoiser.parameters())
        inputs = len(moments.first) // 2
        if isinstance(self.method.ladder, Depth) and not self.method.ladder.bypass:
            return None, float(moments.power()[inputs:].sum() / _output_power(moments, inputs))
        damping = self.method.compensation.damping if self.method.compensation else Ridge().damping
        weight, bias, error = regress(moments, inputs, damping)
        return Bypass(weight.to(parameter), bias.to(parameter)), error / _output_power(moments, inputs)


def _others(columns: Tensor, count: int) -> Tensor:
    """The indices below ``count`` that are not in ``columns``, ascending."""
    mask = torch.ones(count, dtype=torch.bool)
    mask[columns] = False
    return mask.nonzero().flatten()


def _output_power(moments: Moments, inputs: int) -> float:
    """E|h + r|^2 of a block's input h and residual r."""
    second = moments.hessian(centred=False)
    total = second.diagonal().sum() + 2 * second[:inputs, inputs:].diagonal().sum()
    return float(total)


def kept_groups(anatomy: Anatomy, ladder: Width, level: int) -> tuple[int, ...]:
    """How many groups of each layer stay at a level of the width ladder."""
    return tuple(ladder.kept(layer, level) for layer in anatomy.layers)
