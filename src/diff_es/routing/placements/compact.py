"""Low-rank corrections of the dense weights: every stage from one network, with little beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layers import Anatomy, Bypass, Cut, Factor, Layer, Plan, Weights, row_dimension, sequentially, submodule
from ...utils.arguments import checked
from ...utils.errors import ArtefactError
from ...utils.limits import Tolerance
from ..realise import check_plan, fed_by, merge, placed_picks, row_picks
from ..switch import Content, Switch
from .contract import Store, distinct, parameter_bytes
from .resident import Resident


@checked()
@dataclass(frozen=True)
class Compact:
    """The rows that feed a layer are the dense ones, put in the order of the stage, so that those which stay are a
    prefix; the output projection is the dense slice plus its low-rank correction, merged at the switch.

    Needs plans whose corrections are factored (``compress(..., placement=Compact(...))``), or that have none.

    Args:
        tolerance: what leaving out the rest of a correction may add to the squared error that pruning leaves in a
            layer's output on the calibration inputs, relative to it. Used when the plans are made.
    """

    tolerance: Tolerance = 0.1

    def open(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> Store:
        for plan in distinct(plans):
            check_plan(denoiser, anatomy, plan)
            for name, cut in plan.cuts.items():
                if cut.weight is not None:
                    remedy = "Compress again with --placement compact, or run it resident or streamed."
                    expected = "a factored correction"
                    raise ArtefactError(f"plan, {name}", expected=expected, found="a whole weight", remedy=remedy)
        if sequentially(denoiser):  # its dense rows are nowhere to be put in order
            return Resident().open(denoiser, anatomy, plans)
        return CompactStore(denoiser, anatomy, plans)


class CompactStore:
    """Reorders the dense rows and merges corrections at every switch; one tensor at a time, so that little is held
    twice, and any moment can be undone."""

    def __init__(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> None:
        self._denoiser, self._switch = denoiser, Switch(denoiser)
        cut = {name for plan in plans for name in plan.cuts}
        self._outputs = [layers for layers in anatomy.sharing() if any(layer.name in cut for layer in layers)]
        self._blocks = {block.name: block for block in anatomy.blocks}
        self._plans = _moved(plans, next(denoiser.parameters()))
        held = {id(t): t for plan in self._plans for t in _tensors(plan)}
        self._base = parameter_bytes(denoiser) + sum(tensor.nbytes for tensor in held.values())
        self._active = 0  # bytes of the merged projections
        self._current: Plan | None = None  # whose order the rows are in
        self._content: Content = {}  # what it puts in place
        self._orders = dict[str, tuple[Tensor, Tensor]]()  # parameter: (its values reordered, the order of its rows)
        self._spare = dict[torch.Size, Tensor]()  # memory that reordering may write to; nobody else uses it
        self._peak = self._base

    @property
    def weight_bytes(self) -> int:
        return self._base + self._active + sum(spare.nbytes for spare in self._spare.values())

    @property
    def peak_bytes(self) -> int:
        return self._peak

    def to(self, stage: int) -> None:
        plan, tensors, counts, picks = self._plans[stage], dict[str, Tensor](), dict[str, int](), dict[str, Tensor]()
        if plan is self._current:
            self._switch.put(self._content)
            return
        self._let_go()
        for layers in self._outputs:
            for layer in layers:
                cut = plan.cuts.get(layer.name)
                kept = torch.arange(layer.groups) if cut is None else cut.kept
                self._reorder(layer, kept)
                for rows, leaf, parameter in fed_by(self._denoiser, layer):
                    # of a layer that stays whole too: a backward pass finds what its stage ran with, or that it is gone
                    name, count = f"{rows.module}.{leaf}", rows.chunks * len(kept) * (rows.width or layer.width)
                    rows_first = row_dimension(submodule(self._denoiser, rows.module), leaf)
                    tensors[name] = self._values(name, parameter).narrow(rows_first, 0, count)
                if cut is not None:
                    counts |= layer.sizes(len(kept))
                    picks |= placed_picks(self._denoiser, layer, cut)
            merged = merge(self._denoiser, layers, plan)
            self._active += sum(tensor.nbytes for tensor in merged.values())
            tensors |= merged
        self._content = self._switch.prepare(Weights(tensors, counts, plan.bypasses, self._blocks, picks))
        self._switch.put(self._content)
        self._current = plan
        self._peak = max(self._peak, self.weight_bytes)

    def rest(self) -> None:
        self._switch.put({})

    def settle(self) -> None:
        self._let_go()
        for layers in self._outputs:
            for layer in layers:
                self._reorder(layer, torch.arange(layer.groups))
        self._orders.clear()

    def close(self) -> None:
        self.settle()
        self._spare.clear()

    def _let_go(self) -> None:
        """Of the merged projections of the stage before."""
        self._switch.put({})
        self._current, self._content, self._active = None, {}, 0

    def _values(self, name: str, parameter: nn.Parameter) -> Tensor:
        """A parameter's values as they are ordered now: the tensor that is written to, as autograd counts it."""
        return self._orders[name][0] if name in self._orders else parameter.data

    def _reorder(self, layer: Layer, kept: Tensor) -> None:
        """Put the rows of the groups that stay first, each part of the others in its own order behind them."""
        gone = torch.ones(layer.groups, dtype=torch.bool)
        gone[kept] = False
        for rows, leaf, parameter in fed_by(self._denoiser, layer):
            name = f"{rows.module}.{leaf}"
            order = torch.cat([row_picks(layer, rows, kept), row_picks(layer, rows, gone.nonzero().flatten())])
            values, now = self._orders.get(name, (parameter.data, torch.arange(len(order))))
            if not torch.equal(order, now):
                # both are exchanged in one assignment: an interruption finds values and order that belong together
                index, spare = now.argsort()[order].to(values.device), self._spare.pop(values.shape, None)
                moved = torch.empty_like(values) if spare is None else spare
                rows_first = row_dimension(submodule(self._denoiser, rows.module), leaf)
                own = name in self._orders  # memory of this store's; what others have seen may be theirs by now
                self._orders[name] = (torch.index_select(values, rows_first, index, out=moved), order)
                parameter.data = moved
                if own:
                    self._spare[values.shape] = values
            parameter.data = self._values(name, parameter)


def _moved(plans: Sequence[Plan], like: Tensor) -> tuple[Plan, ...]:
    """The same plans with their tensors, but for the indices, on a device; factors that were shared still are."""
    moved = dict[int, Factor]()

    def move(factor: Factor) -> Factor:
        if id(factor) not in moved:
            moved[id(factor)] = Factor(*(part.to(like.device) for part in factor.tensors()))
        return moved[id(factor)]

    def move_cut(cut: Cut) -> Cut:
        bias = None if cut.bias is None else cut.bias.to(like)
        return Cut(cut.kept, None, bias, tuple(move(factor) for factor in cut.factors))

    def move_bypass(bypass: Bypass | None) -> Bypass | None:
        return None if bypass is None else bypass.map(lambda tensor: tensor.to(like))

    made = {
        id(plan): Plan(
            {name: move_cut(cut) for name, cut in plan.cuts.items()},
            {name: move_bypass(bypass) for name, bypass in plan.bypasses.items()},
        )
        for plan in distinct(plans)
    }
    return tuple(made[id(plan)] for plan in plans)


def _tensors(plan: Plan) -> Iterator[Tensor]:
    """What a plan keeps on the device."""
    for cut in plan.cuts.values():
        if cut.bias is not None:
            yield cut.bias
        for factor in cut.factors:
            yield from factor.tensors()
    for bypass in plan.bypasses.values():
        if bypass is not None:
            yield from bypass.tensors().values()
