"""Layers as a declaration describes them: its names looked up in a denoiser, and its numbers held against the weights.

A norm across channels in groups, and one that keeps statistics of them, are known by their kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from .compiled import plain_name, submodule
from .contract import Kind, Layer, Rows
from .convolutions import Convolution, Projection, Transposed, outputs_first, row_dimension
from .declaration import Channels, Heads, wrong
from .multihead import REASON

FOLDED = (
    "Fold it into the layer before it: torch.nn.utils.fusion.fuse_conv_bn_eval(convolution, norm), or "
    "fuse_linear_bn_eval, with nn.Identity() in the norm's place; where none is before it, put its scale and shift "
    "into a convolution of kernel size 1 with a group for each channel, and declare that among the rows"
)


def matching(denoiser: nn.Module, pattern: str) -> list[str]:
    """The names of the modules that a pattern means.

    Raises:
        DiffESError: there is none.
    """
    expression = r"[^.]+".join(re.escape(part) for part in pattern.split("*"))
    names = [plain_name(name) for name, _ in denoiser.named_modules()]
    found = [name for name in names if re.fullmatch(expression, name)]
    if not found:
        known = ", ".join(name for name in names if name.count(".") == pattern.count("."))[:200]
        raise wrong(pattern, "the name of a module", "none of that name", f"Name one of those it has: {known}.")
    return found


def described(denoiser: nn.Module, name: str, part: Heads | Channels) -> Layer:
    """The layer that a part of a declaration makes of the module of this name.

    Raises:
        DiffESError: the weights have other shapes than it says, or are of a kind that cannot be cut.
    """
    if isinstance(submodule(denoiser, name), nn.MultiheadAttention):
        raise wrong(name, "an attention that can run with fewer heads", "one that cannot", f"{REASON}.")
    path, own = _below(name, part.output), tuple(_said(row) for row in part.rows)
    size = _columns(path, _output(denoiser, name, part.output), part)
    groups = part.heads if isinstance(part, Heads) else _grouped(denoiser, name, own) or size
    if groups < 2 or size % groups:
        remedy = "Declare the number of heads it has; of one head, or of one group of a norm, none can go."
        raise wrong(path, "equal parts of the input columns", f"{size} columns for {groups} heads or groups", remedy)
    rows = tuple(_rows(denoiser, name, row, groups, size // groups) for row in own)
    counts = {count[:2]: count for row in rows for count in _norm_counts(denoiser, row, groups)}
    counts |= {count[:2]: count for count in (_count(denoiser, name, *each, groups) for each in part.counts)}
    arguments = tuple((name, argument) for argument in part.arguments) if isinstance(part, Heads) else ()
    if arguments and not name:
        remedy = "Put the attention into a module of its own, which receives them."
        raise wrong(part.output, "arguments of a module below the denoiser", "the denoiser's own", remedy)
    shared = part.start > 0 or part.size is not None
    return Layer(
        name=(rows[0].module if rows else path) if shared else path,
        kind=_kind(denoiser, part, own, path, name),
        groups=groups,
        width=size // groups,
        rows=rows,
        output=path,
        counts=tuple(counts.values()),
        arguments=arguments,
        start=part.start,
    )


def check_apart(layers: Sequence[Layer]) -> None:
    """Whether no two layers own the same columns or rows, and no weight is cut both ways.

    Raises:
        DiffESError: two do, or one is.
    """
    for i, layer in enumerate(layers):
        for other in layers[:i]:
            apart = layer.start >= other.start + other.size or other.start >= layer.start + layer.size
            if layer.output == other.output and not apart:
                remedy = "Declare every column once, and of columns that several layers share `start` and `size`."
                raise wrong(layer.output, "columns of one layer each", "some that are declared twice", remedy)
    outputs, fed = {layer.output for layer in layers}, [rows.module for layer in layers for rows in layer.rows]
    for path in fed:
        if fed.count(path) > 1:
            remedy = "Name each module once among all rows: what feeds two outputs stays whole."
            raise wrong(path, "rows of one layer each", "some that are declared twice", remedy)
        if path in outputs:
            expected, found = "rows or columns of a weight to be cut", "both: it is an output, and feeds another"
            raise wrong(path, expected, found, "Of layers that follow one another, declare every other one.")


def keeps_statistics(module: nn.Module) -> bool:
    """Whether it is a norm by means and variances that it has kept from training, of each channel."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None


def _kind(denoiser: nn.Module, part: Heads | Channels, rows: Sequence[Rows], path: str, name: str) -> Kind:
    if isinstance(part, Heads):
        return Kind.ATTENTION
    convolved = isinstance(submodule(denoiser, path), Convolution) and _grouped(denoiser, name, rows)
    return Kind.RESNET if convolved else Kind.FEEDFORWARD


def _output(denoiser: nn.Module, name: str, below: str) -> Projection:
    path, module = _below(name, below), _module(denoiser, name, below)
    if not isinstance(module, Projection):
        found = f"a {type(module).__name__}"
        raise wrong(path, "nn.Linear or a convolution", found, "Declare the last projection as output.")
    if "weight" not in dict(module.named_parameters(recurse=False)):
        remedy = "Remove what makes it: torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm."
        raise wrong(path, "a weight that is a parameter", "one that is made from others", remedy)
    if isinstance(module, Convolution) and module.groups != 1:
        found, remedy = f"{module.groups} groups", "Declare the layer behind it as output, and this one among the rows."
        raise wrong(path, "a convolution that mixes its channels", found, remedy)
    return module


def _columns(path: str, output: Projection, part: Heads | Channels) -> int:
    """How many of the output's columns are the part's."""
    columns = outputs_first(output, output.weight).shape[1]
    size = columns - part.start if part.size is None else part.size
    if part.start < 0 or size < 1 or part.start + size > columns:
        found = f"{size} from {part.start} on"
        raise wrong(path, f"a range of its {columns} input columns", found, "Declare `start` and `size` within them.")
    return size


def _said(row: str | Rows) -> Rows:
    return row if isinstance(row, Rows) else Rows(row)


def _grouped(denoiser: nn.Module, name: str, rows: Sequence[Rows]) -> int:
    """How many groups the norms among the rows leave channels in; 0: none makes groups of them."""
    modules = [(row, _module(denoiser, name, row.module)) for row in rows]
    return math.gcd(*(part.num_groups // row.chunks for row, part in modules if isinstance(part, nn.GroupNorm)))


def _rows(denoiser: nn.Module, name: str, said: Rows, groups: int, width: int) -> Rows:
    module, path = _module(denoiser, name, said.module), _below(name, said.module)
    if not path:
        raise wrong(name, "rows of modules below the denoiser", "the denoiser's own", "Put them into a module.")
    if keeps_statistics(module):
        what = "rows that are all of a layer's own"
        raise wrong(path, what, f"a {type(module).__name__}, which keeps statistics of its channels", f"{FOLDED}.")
    if isinstance(module, Transposed) and module.groups != 1 and module.weight.shape[1] != 1:
        found, remedy = f"{module.groups} groups", "Leave the layer out of the declaration."
        raise wrong(path, "a transposed convolution of one group, or depthwise", found, remedy)
    rows, expected = Rows(path, said.chunks, said.width), said.chunks * groups * (said.width or width)
    for leaf, parameter in module.named_parameters(recurse=False):
        found_rows = parameter.shape[row_dimension(module, leaf)] if parameter.dim() else 1
        if found_rows != expected:
            what = f"{expected} rows: {said.chunks} x {groups} groups of {said.width or width}"
            remedy = "Say Rows(name, chunks=..., width=...) as its parameters are laid out."
            raise wrong(f"{path}.{leaf}", what, f"{found_rows}", remedy)
    return rows


def _norm_counts(denoiser: nn.Module, rows: Rows, groups: int) -> tuple[tuple[str, str, int], ...]:
    """What a norm in groups says of its channels, for each group of the layer."""
    module = submodule(denoiser, rows.module)
    if not isinstance(module, nn.GroupNorm):
        return ()
    if module.num_groups % (groups * rows.chunks):
        expected, found = f"a whole number of norm groups for each of {groups} groups", f"{module.num_groups} of them"
        raise wrong(rows.module, expected, found, "Leave this layer out: its norm mixes what would be cut apart.")
    numbers = (("num_groups", module.num_groups), ("num_channels", module.num_channels))
    return tuple((rows.module, attribute, number // groups) for attribute, number in numbers)


def _count(denoiser: nn.Module, name: str, path: str, each: int, groups: int) -> tuple[str, str, int]:
    below, _, attribute = path.rpartition(".")
    value = vars(_module(denoiser, name, below)).get(attribute)
    if value != each * groups:
        remedy = "Declare in counts the integers that the forward reads, with their value per group."
        raise wrong(_below(name, path), f"{each * groups}, {each} for each group", str(value), remedy)
    return _below(name, below), attribute, each


def _module(denoiser: nn.Module, name: str, below: str) -> nn.Module:
    path = _below(name, below)
    if path not in {plain_name(found) for found, _ in denoiser.named_modules()}:
        children = ", ".join(found for found, _ in submodule(denoiser, name).named_modules() if found)[:200]
        where = name or "the denoiser"
        raise wrong(path, "the name of a module", "none of that name", f"Below {where} there are: {children}.")
    return submodule(denoiser, path)


def _below(name: str, path: str) -> str:
    return f"{name}.{path}".strip(".")
