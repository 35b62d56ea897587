"""Ranking the groups of layers, and solving anew the weights of those that stay: of one layer at a time, anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..execution import Crew, Work
from ..execution.shipping import shipped
from ..layers import Anatomy, Cut, Layer, Projection, as_matrix, from_matrix
from ..pipelines.families import Denoiser, Pipeline
from ..routing.realise import output_of, weight_of
from ..utils.malloc import give_back
from .compensation import Ridge, Solved
from .importance import column_powers, grouped
from .method import Method
from .moments import Moments


@dataclass(frozen=True)
class Thinning:
    """Layers that keep the same groups, and what they are ranked and solved from.

    Args:
        ranked: the moments that order their groups.
        sources: those that weights are solved from, by the stage that they are of.
        counts: of each layer, by its name, the numbers of groups that levels leave.
    """

    ranked: Mapping[str, Moments]
    sources: Mapping[int, Mapping[str, Moments]]
    counts: Mapping[str, Sequence[int]]


class Left(NamedTuple):
    """A layer with fewer groups, and what it leaves wrong of what the layer gives, relative to that."""

    cut: Cut
    error: float


@dataclass(frozen=True)
class Thinned:
    """By stage and layer the order in which groups go, and by the number that stays as well what is left."""

    orders: Mapping[tuple[int, str], Tensor]
    cuts: Mapping[tuple[int, str, int], Left]


@dataclass(frozen=True)
class Solver:
    """What ranks and solves the layers of a dense denoiser."""

    denoiser: Denoiser
    anatomy: Anatomy
    method: Method

    def thinned(self, piece: Thinning) -> Thinned:
        """All orders and cuts of a piece."""
        layers = [layer for layer in self.anatomy.layers if layer.name in piece.counts]
        order = self._order(layers, piece.ranked)
        give_back()  # or what solves takes new memory beside what has ranked
        orders = {(source, layer.name): order for source in piece.sources for layer in layers}
        cuts = dict[tuple[int, str, int], Left]()
        for source, moments in piece.sources.items():
            for layer in layers:
                for left in self.cuts(layer, moments[layer.name], order, piece.counts[layer.name]):
                    cuts[source, layer.name, len(left.cut.kept)] = left
        return Thinned(orders, cuts)

    def _order(self, layers: Sequence[Layer], moments: Mapping[str, Moments]) -> Tensor:
        """The groups of layers that keep the same ones, first to go first."""
        weights = [as_matrix(weight_of(output_of(self.denoiser, one), one)) for one in layers]
        ranking = self.method.ranking
        pairs = zip(weights, layers, strict=True)
        return fused([ranking.order(weight, moments[one.name], one.width) for weight, one in pairs])

    def cuts(self, layer: Layer, moments: Moments, order: Tensor, counts: Sequence[int]) -> Iterator[Left]:
        """A layer with each of several numbers of groups that stay."""
        ridge, output = self.method.compensation, output_of(self.denoiser, layer)
        kept = [order[len(order) - count :].sort().values.cpu() for count in counts]
        if ridge is None:
            powers = grouped(column_powers(as_matrix(weight_of(output, layer)), moments), layer.width)
            shares = powers / powers.sum().clamp_min(torch.finfo(powers.dtype).tiny)
            for groups in kept:
                yield Left(Cut(groups), float(1 - shares[groups.to(shares.device)].sum()))
            return
        found = solved(ridge, output, layer, moments, layer.columns(order), counts)
        for groups, one in zip(kept, found, strict=True):
            yield Left(Cut(groups, one.weight.to(output.weight), one.bias.to(output.weight)), one.left)


Solve: TypeAlias = Callable[[Solver, Sequence[Thinning]], Iterable[Thinned]]
"""Who ranks and solves."""


def by_itself(solver: Solver, pieces: Sequence[Thinning]) -> Iterable[Thinned]:
    """This process, one piece after the other."""
    return map(solver.thinned, pieces)


def by_workers(pipe: Pipeline, crew: Crew, solver: Solver, pieces: Sequence[Thinning]) -> Iterable[Thinned]:
    """What a solver makes of pieces, in any order: each travels with its moments to one worker, and its cuts back."""
    remedy = "Take fewer workers on a machine."
    work = Work(solver.thinned, lambda: shipped(solver, pipe), _thinning, remedy)
    return (found for _, found in crew.answers(work, pieces))


def _thinning(solver: Solver) -> Callable[[Thinning], Thinned]:
    """What a worker answers with."""
    return solver.thinned


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
