"""Plans made ready for one denoiser: which of its rows and columns stay, and whether a plan fits at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..layers.compiled import submodule
from ..layers.contract import Anatomy, Block, Bypass, Layer, Rows, as_matrix, expanded
from ..layers.convolutions import Projection, outputs_first, row_dimension
from ..layers.offload import device_of, valued
from ..layers.plan import Cut, Plan, Weights
from ..utils.errors import ArtefactError, DiffESError


def realise(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> Weights:
    """The tensors and integers that put a plan in place; the rows of dense weights are copied once, here.

    Raises:
        ArtefactError: the plan does not fit this denoiser; the message names the layer.
    """
    check_plan(denoiser, anatomy, plan)
    tensors, counts, picks = dict[str, Tensor](), dict[str, int](), dict[str, Tensor]()
    for layers in anatomy.sharing():
        for layer in layers:
            cut = plan.cuts.get(layer.name)
            if cut is not None:
                for rows, leaf, parameter in fed_by(denoiser, layer):
                    kept = row_picks(layer, rows, cut.kept).to(parameter.device)
                    rows_first = row_dimension(submodule(denoiser, rows.module), leaf)
                    slim = parameter.detach().movedim(rows_first, 0)[kept].movedim(0, rows_first)
                    tensors[f"{rows.module}.{leaf}"] = slim.contiguous()
                counts |= layer.sizes(len(cut.kept))
                picks |= placed_picks(denoiser, layer, cut)
        tensors |= merge(denoiser, layers, plan)
    blocks = {block.name: block for block in anatomy.blocks}
    return Weights(tensors, counts, placed_bypasses(denoiser, plan), blocks, picks)


def fed_by(denoiser: nn.Module, layer: Layer) -> Iterator[tuple[Rows, str, nn.Parameter]]:
    """The parameters whose rows belong to a layer's groups: (rows, name below their module, parameter)."""
    for rows in layer.rows:
        module = submodule(denoiser, rows.module)
        for leaf, _ in module.named_parameters(recurse=False):
            yield rows, leaf, valued(module, leaf)


def owned_by(denoiser: nn.Module, layer: Layer) -> dict[str, int]:
    """All parameters that pruning a layer replaces: their bytes by name."""
    own = {f"{rows.module}.{leaf}": parameter.nbytes for rows, leaf, parameter in fed_by(denoiser, layer)}
    for leaf, parameter in output_of(denoiser, layer).named_parameters(recurse=False):
        own[f"{layer.output}.{leaf}"] = parameter.nbytes
    return own


def owned_bytes(denoiser: nn.Module, layers: Sequence[Layer]) -> int:
    """Of all parameters that pruning these layers replaces; layers may share an output."""
    owned = dict[str, int]()
    for layer in layers:
        owned |= owned_by(denoiser, layer)
    return sum(owned.values())


def row_picks(layer: Layer, rows: Rows, groups: Tensor) -> Tensor:
    """int64: the rows of ``rows`` that belong to these groups, chunk by chunk."""
    width = rows.width or layer.width
    return torch.cat([expanded(groups, width) + chunk * layer.groups * width for chunk in range(rows.chunks)])


def merge(denoiser: nn.Module, layers: Sequence[Layer], plan: Plan) -> dict[str, Tensor]:
    """What a plan puts in place of the output projection that these layers share, by parameter name; nothing where it
    cuts none of them. The others' columns, and those that belong to no layer, stay dense."""
    cuts = [(layer, plan.cuts[layer.name]) for layer in layers if layer.name in plan.cuts]
    if not cuts:
        return {}
    output, end, parts = output_of(denoiser, layers[0]), 0, list[Tensor]()
    dense = outputs_first(output, valued(output, "weight").detach())
    for layer, cut in cuts:
        parts += [
            dense[:, end : layer.start],
            cut.merged(layer.part(dense), layer.columns(cut.kept)),
        ]
        end = layer.start + layer.size
    parts = [part for part in (*parts, dense[:, end:]) if part.shape[1]]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    tensors = {f"{layers[0].output}.weight": outputs_first(output, whole).contiguous()}
    biases = [cut.bias.to(dense) for _, cut in cuts if cut.bias is not None]
    if biases:
        first, *others = biases
        for bias in others:  # each is the dense one with a change of its own
            first = first + (bias if output.bias is None else bias - valued(output, "bias").detach())
        tensors[f"{layers[0].output}.bias"] = first
    return tensors


def placed_picks(denoiser: nn.Module, layer: Layer, cut: Cut) -> dict[str, Tensor]:
    """What is gathered of arguments, on the denoiser's device."""
    device = device_of(output_of(denoiser, layer), "weight")
    return {name: picks.to(device) for name, picks in layer.picks(cut.kept).items()}


def placed_bypasses(denoiser: nn.Module, plan: Plan) -> dict[str, Bypass | None]:
    """What stands in for the skipped blocks, on the device and in the precision of their own projections; some models
    keep norms and tables in float32."""
    placed = dict[str, Bypass | None]()
    for name, bypass in plan.bypasses.items():
        placed[name] = None if bypass is None else bypass.map(partial(_placed, submodule(denoiser, name)))
    return placed


def _placed(block: nn.Module, tensor: Tensor) -> Tensor:
    part = next((part for part in block.modules() if isinstance(part, Projection)), None)
    return tensor if part is None else tensor.to(device_of(part, "weight"), part.weight.dtype)


def check_plan(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> None:
    """Whether a plan fits a denoiser.

    Raises:
        ArtefactError: it does not; the message names the layer.
    """
    layers, blocks = {layer.name: layer for layer in anatomy.layers}, {block.name: block for block in anatomy.blocks}
    for name, cut in plan.cuts.items():
        _check(name, cut, layers.get(name), denoiser)
    for layer in anatomy.layers:
        if layer.follows is not None:
            _check_follower(layer, plan)
    for name, bypass in plan.bypasses.items():
        _check_bypass(name, bypass, blocks.get(name))


def output_of(denoiser: nn.Module, layer: Layer) -> Projection:
    """The output projection of a layer.

    Raises:
        DiffESError: it is another module by now, such as an adapter around it.
    """
    module = submodule(denoiser, layer.output)
    if not isinstance(module, Projection):
        expected, remedy = "a linear layer or a convolution", "Undo what changed it: unload adapters, or fuse them."
        raise DiffESError(layer.output, expected=expected, found=f"a {type(module).__name__}", remedy=remedy)
    return module


def weight_of(output: Projection, layer: Layer) -> Tensor:
    """The dense columns of a layer, (O, size) or (O, size, taps...)."""
    return layer.part(outputs_first(output, output.weight.detach()))


def _check(name: str, cut: Cut, layer: Layer | None, denoiser: nn.Module) -> None:
    if layer is None:
        raise _misfit(name, "a prunable layer of that name", "none", _DECLARE)
    kept = cut.kept.tolist()
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= layer.groups:
        raise _misfit(name, f"ascending groups from 0 to {layer.groups - 1}", f"{kept[:4]} to {kept[-1:]}")
    output = output_of(denoiser, layer)
    dense = outputs_first(output, output.weight)
    outputs, columns = len(dense), len(kept) * layer.width
    _check_shape(name, "an output projection", cut.weight, (outputs, columns, *dense.shape[2:]))
    _check_shape(name, "a bias", cut.bias, (outputs,))
    for factor in cut.factors:
        rank = len(factor.left_scale)
        shapes = ((len(as_matrix(dense)), rank), (rank,), (rank, columns), (rank,))
        for part, shape in zip(factor.tensors(), shapes, strict=True):
            _check_shape(name, "a factor of its correction", part, shape)


def _check_follower(layer: Layer, plan: Plan) -> None:
    own, leader = plan.cuts.get(layer.name), plan.cuts.get(layer.follows or "")
    if (own is None) != (leader is None) or (own and leader and not own.kept.equal(leader.kept)):
        found = "others" if own is not None and leader is not None else "one of them is dense"
        raise _misfit(layer.name, f"the groups of {layer.follows}, which it follows", found)


def _check_bypass(name: str, bypass: Bypass | None, block: Block | None) -> None:
    if block is None:
        raise _misfit(name, "a block of that name", "none", _DECLARE)
    if bypass is not None:
        found, shapes = bypass.tensors(), block.shapes()
        if found.keys() != shapes.keys():
            raise _misfit(name, f"a linear map of {', '.join(shapes)}", ", ".join(found))
        for part, shape in shapes.items():
            _check_shape(name, "a bias" if part.endswith("bias") else "a linear map", found[part], shape)


def _check_shape(name: str, what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise _misfit(name, f"{what} of shape {shape}", f"shape {tuple(tensor.shape)}")


_DECLARE = " A denoiser of your own is declared first, as it was then: diff_es.declare."


def _misfit(name: str, expected: str, found: str, further: str = "") -> ArtefactError:
    remedy = f"Load the pipeline that was compressed, or compress this one.{further}"
    return ArtefactError(f"base model, {name}", expected=expected, found=found, remedy=remedy)
