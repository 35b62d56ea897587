"""Plans whose corrections are low-rank factors, made from a library's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import Cut, Factor, Layer, Plan, as_matrix
from ..routing.realise import output_of, weight_of
from .library import Library
from .lowrank import factorise
from .moments import Moments, damped
from .solving import solved


class Compaction:
    """A library's plans with factored corrections (docs/method.md, "Placements").

    What is left out of a correction adds at most ``tolerance`` times the squared error that pruning leaves in the
    layer's output on the calibration inputs. Where all stages share one order, they share the factors of what they
    have in common too.
    """

    def __init__(self, library: Library, tolerance: float) -> None:
        self._library, self._tolerance = library, tolerance
        self._bases = dict[tuple[str, int], tuple[Factor, ...]]()
        self._plans = dict[tuple[int, tuple[int, ...]], Plan]()

    def plan(self, stage: int, levels: Sequence[int]) -> Plan:
        """As ``Library.plan``."""
        key = (self._library.source(stage), tuple(levels))
        if key not in self._plans:
            whole, cuts = self._library.plan(stage, levels), dict[str, Cut]()
            for layer in self._library.anatomy.layers:
                cut = whole.cuts.get(layer.name)
                if cut is not None:
                    factors = () if self._library.shared is None else self._base(layer, cut.kept)
                    moments = self._library.moments(stage, layer.name)
                    cuts[layer.name] = self._factored(layer, cut, moments, factors, self._tolerance)
            self._plans[key] = Plan(cuts, whole.bypasses) if any(levels) else whole
        return self._plans[key]

    def _base(self, layer: Layer, kept: Tensor) -> tuple[Factor, ...]:
        """The factors that all stages of one order share, from the statistics of all of them."""
        key, ridge, shared = (layer.name, len(kept)), self._library.method.compensation, self._library.shared
        if key not in self._bases and ridge is not None and shared is not None:
            moments, columns = shared[layer.name], layer.columns(kept)
            order = torch.cat([_others(columns, layer.size), columns])
            (found,) = solved(ridge, output_of(self._library.denoiser, layer), layer, moments, order, [len(kept)])
            self._bases[key] = self._factored(layer, Cut(kept, found.weight), moments, (), self._tolerance / 2).factors
        return self._bases.get(key, ())

    def _factored(self, layer: Layer, cut: Cut, moments: Moments, shared: tuple[Factor, ...], tolerance: float) -> Cut:
        """A cut with its correction as factors, of which some are given already."""
        ridge, output = self._library.method.compensation, output_of(self._library.denoiser, layer)
        if cut.weight is None or ridge is None:
            return cut
        hessian = moments.hessian(centred=ridge.intercept)
        columns, part = layer.columns(cut.kept).to(hessian.device), weight_of(output, layer).to(hessian)
        dense, whole = as_matrix(part), as_matrix(cut.weight.to(hessian))
        lost = dense.clone()
        lost[:, columns] -= whole
        floor = 1e-6 * float((dense @ hessian * dense).sum())  # below it, the arithmetic of the model itself errs
        allowed = max(tolerance * float((lost @ hessian * lost).sum()), floor, 1e-30)
        delta, inner = whole - dense[:, columns], damped(hessian[columns][:, columns], 1e-4, moments.rounding())
        for factor in shared:
            delta = delta - factor.product().to(delta)
        factors = (*shared, *factorise(delta, inner, allowed))
        bias = cut.bias
        if bias is not None and ridge.intercept:  # the mean of what the factors leave out goes into the bias too
            merged = as_matrix(Cut(cut.kept, None, None, factors).merged(part, columns))
            missed = (whole - merged) @ moments.mean()[columns]
            bias = bias + missed.view(len(bias), -1).sum(1).to(bias)
        return Cut(cut.kept, None, bias, factors)


def _others(columns: Tensor, count: int) -> Tensor:
    """The indices below ``count`` that are not in ``columns``, ascending."""
    mask = torch.ones(count, dtype=torch.bool, device=columns.device)
    mask[columns] = False
    return mask.nonzero().flatten()
