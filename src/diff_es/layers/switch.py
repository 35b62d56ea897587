"""Slim layers by data: smaller tensors and a few integers put in place of the dense ones, and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtefactError
from .compiled import submodule
from .contract import Anatomy, Bypass, Cut, Layer, Plan, Rows, Weights


def realise(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> Weights:
    """The tensors and integers that put a plan in place; the rows of dense weights are copied once, here.

    Raises:
        ArtefactError: the plan does not fit this denoiser; the message names the layer.
    """
    check_plan(denoiser, anatomy, plan)
    layers, tensors, counts = {layer.name: layer for layer in anatomy.layers}, dict[str, Tensor](), dict[str, int]()
    for name, cut in plan.cuts.items():
        layer = layers[name]
        for rows, leaf, parameter in fed_by(denoiser, layer):
            picks = row_picks(layer, rows, cut.kept).to(parameter.device)
            tensors[f"{rows.module}.{leaf}"] = parameter.detach()[picks].contiguous()
        tensors |= merge(denoiser, layer, cut)
        counts |= layer.sizes(len(cut.kept))
    return Weights(tensors, counts, placed_bypasses(denoiser, plan))


def fed_by(denoiser: nn.Module, layer: Layer) -> Iterator[tuple[Rows, str, nn.Parameter]]:
    """The parameters whose rows belong to a layer's groups: (rows, name below their module, parameter)."""
    for rows in layer.rows:
        for leaf, parameter in submodule(denoiser, rows.module).named_parameters(recurse=False):
            yield rows, leaf, parameter


def owned_by(denoiser: nn.Module, layer: Layer) -> tuple[str, ...]:
    """Names of all parameters that pruning a layer replaces."""
    rows = [f"{rows.module}.{leaf}" for rows, leaf, _ in fed_by(denoiser, layer)]
    own = [f"{layer.output}.{leaf}" for leaf, _ in output_of(denoiser, layer).named_parameters(recurse=False)]
    return (*rows, *own)


def row_picks(layer: Layer, rows: Rows, groups: Tensor) -> Tensor:
    """int64: the rows of ``rows`` that belong to these groups, chunk by chunk."""
    columns, size = layer.columns(groups), layer.groups * layer.width
    return torch.cat([columns + chunk * size for chunk in range(rows.chunks)])


def merge(denoiser: nn.Module, layer: Layer, cut: Cut) -> dict[str, Tensor]:
    """What a cut puts in place of the output projection, by parameter name."""
    dense = output_of(denoiser, layer).weight
    tensors = {f"{layer.output}.weight": cut.merged(dense, layer.columns(cut.kept))}
    if cut.bias is not None:
        tensors[f"{layer.output}.bias"] = cut.bias.to(dense)
    return tensors


def placed_bypasses(denoiser: nn.Module, plan: Plan) -> dict[str, Bypass | None]:
    """What stands in for the skipped blocks, on the denoiser's device."""
    like = next(denoiser.parameters())
    return {
        name: None if bypass is None else Bypass(bypass.weight.to(like), bypass.bias.to(like))
        for name, bypass in plan.bypasses.items()
    }


def check_plan(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> None:
    """Whether a plan fits a denoiser.

    Raises:
        ArtefactError: it does not; the message names the layer.
    """
    layers = {layer.name: layer for layer in anatomy.layers}
    for name, cut in plan.cuts.items():
        _check(name, cut, layers.get(name), denoiser)
    for name, bypass in plan.bypasses.items():
        if name not in {block.name for block in anatomy.blocks}:
            raise _misfit(name, "a block of that name", "none")
        if bypass is not None:
            _check_bypass(name, bypass, anatomy)


def output_of(denoiser: nn.Module, layer: Layer) -> nn.Linear:
    """The output projection of a layer."""
    module = submodule(denoiser, layer.output)
    assert isinstance(module, nn.Linear)
    return module


def _check(name: str, cut: Cut, layer: Layer | None, denoiser: nn.Module) -> None:
    if layer is None:
        raise _misfit(name, "a prunable layer of that name", "none")
    kept = cut.kept.tolist()
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= layer.groups:
        raise _misfit(name, f"ascending groups from 0 to {layer.groups - 1}", f"{kept[:4]} to {kept[-1:]}")
    outputs = output_of(denoiser, layer).out_features
    _check_shape(name, "an output projection", cut.weight, (outputs, len(kept) * layer.width))
    _check_shape(name, "a bias", cut.bias, (outputs,))
    for factor in cut.factors:
        rank = len(factor.left_scale)
        shapes = ((outputs, rank), (rank,), (rank, len(kept) * layer.width), (rank,))
        for part, shape in zip(factor.tensors(), shapes, strict=True):
            _check_shape(name, "a factor of its correction", part, shape)


def _check_bypass(name: str, bypass: Bypass, anatomy: Anatomy) -> None:
    width = {block.name: block.width for block in anatomy.blocks}[name]
    _check_shape(name, "a linear map", bypass.weight, (width, width))
    _check_shape(name, "a bias", bypass.bias, (width,))


def _check_shape(name: str, what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise _misfit(name, f"{what} of shape {shape}", f"shape {tuple(tensor.shape)}")


def _misfit(name: str, expected: str, found: str) -> ArtefactError:
    remedy = "Load the pipeline that was compressed, or compress this one."
    return ArtefactError(f"base model, {name}", expected=expected, found=found, remedy=remedy)


class _StandIn(nn.Module):
    """Its forward stands in for that of a skipped block. A module, because torch.compile tells objects apart by their
    identity but the parameters of modules by their shapes: all stages share one compilation."""

    def __init__(self, bypass: Bypass) -> None:
        super().__init__()
        self.weight = nn.Parameter(bypass.weight, requires_grad=False)
        self.bias = nn.Parameter(bypass.bias, requires_grad=False)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states + nn.functional.linear(hidden_states, self.weight, self.bias)


def _left_out(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for the forward of a block that leaves nothing behind."""
    return hidden_states


class _Slot:
    """One place that a stage may change, its dense content, and how to put something there."""

    def __init__(self, put: Callable[[Any], None], dense: Any) -> None:
        self.put, self.dense = put, dense


class Switch:
    """Puts a denoiser's weights for one stage in place, and the dense ones back.

    Nothing is copied or gathered: a switch exchanges references. ``put({})`` and ``to(Weights())`` restore the dense
    state to the bit. The module keeps no trace of it afterwards.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._slots = dict[str, _Slot]()
        self._active: Mapping[str, Any] = {}

    def to(self, weights: Weights) -> None:
        """Run with these weights from now on."""
        self.put(self.prepare(weights))

    def put(self, content: Mapping[str, Any]) -> None:
        """Run with what :meth:`prepare` made from now on; every other place is dense."""
        if content is self._active:
            return
        before, self._active = self._active, {**self._active, **content}  # what an interruption has to undo
        for key in before.keys() - content.keys():
            slot = self._slots[key]
            slot.put(slot.dense)
        for key, value in content.items():
            self._slots[key].put(value)
        self._active = content

    def prepare(self, weights: Weights) -> Mapping[str, Any]:
        """The content of every slot that the weights name, ready for :meth:`put`, any number of times."""
        content = dict[str, Any]()
        for name, tensor in weights.tensors.items():
            slot = self._parameter_slot(name)
            # as the dense one says, because compiled code asks: a copy of a dense weight then runs the dense code
            dense = self._slots[slot].dense  # None: a bias that the dense layer does not have
            trained = dense is not None and dense.requires_grad and not tensor.is_inference()
            content[slot] = nn.Parameter(tensor, requires_grad=trained)
            content |= self._linear_sizes(name, tensor)
        for name, value in weights.counts.items():
            content[self._attribute_slot(name)] = value
        for name, bypass in weights.bypasses.items():
            content[self._forward_slot(name)] = _left_out if bypass is None else _StandIn(bypass).forward
        return content

    def _parameter_slot(self, name: str) -> str:
        if name not in self._slots:
            path, _, leaf = name.rpartition(".")
            owner = submodule(self._denoiser, path)._parameters
            self._slots[name] = _Slot(partial(owner.__setitem__, leaf), owner[leaf])
        return name

    def _attribute_slot(self, name: str) -> str:
        if name not in self._slots:
            path, _, leaf = name.rpartition(".")
            own = vars(submodule(self._denoiser, path))  # an integer: nn.Module's own setattr would only be slower
            self._slots[name] = _Slot(partial(own.__setitem__, leaf), own[leaf])
        return name

    def _linear_sizes(self, name: str, tensor: Tensor) -> dict[str, int]:
        path, _, leaf = name.rpartition(".")
        if leaf != "weight":
            return {}
        sizes = {f"{path}.out_features": tensor.shape[0], f"{path}.in_features": tensor.shape[1]}
        return {self._attribute_slot(key): value for key, value in sizes.items()}

    def _forward_slot(self, name: str) -> str:
        key = f"{name}.forward"
        if key not in self._slots:
            module = submodule(self._denoiser, name)
            before = vars(module).get("forward")  # an earlier wrapper of the user's, if any

            def put(forward: Any) -> None:
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward

            self._slots[key] = _Slot(put, before)
        return key
