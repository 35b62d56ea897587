"""Denoisers whose layers no finder knows: what can be pruned in them, declared in a few lines and tried out at once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import DiffESError
from .compiled import plain_name, submodule
from .contract import Anatomy, Block, Kind, Layer, Rows
from .multihead import REASON
from .trial import repeated, try_blocks, try_layers

STREAMS = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True)
class Heads:
    """The heads of an attention: equal parts of the rows of its projections, and of the columns of its output.

    Args:
        module: name of the attention below the denoiser; a ``*`` stands for any one part of a name.
        heads: how many there are.
        rows: names below ``module`` of the linear layers (or convolutions, or norms) whose output rows are the heads',
            in turn: queries, keys and values. :class:`Rows` says more, such as ``Rows("qkv", chunks=3)``.
        output: name below ``module`` of the linear layer whose input columns are the heads'.
        counts: integer attributes of ``module`` that its forward reads, with their value per head, such as
            ``(("heads", 1),)``.
        arguments: arguments of its forward that come at the width of all heads, such as a rotary embedding; what
            belongs to the heads that stay is gathered from their last dimension.
    """

    module: str
    heads: int
    rows: tuple[str | Rows, ...]
    output: str
    counts: tuple[tuple[str, int], ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Channels:
    """The hidden channels of a feed-forward: rows of its first linear layers, columns of its last.

    Args:
        module: name of a module that holds both, below the denoiser; a ``*`` stands for any one part of a name.
        rows: as in :class:`Heads`; a gate is ``Rows("up", chunks=2)`` where it is half of one layer.
        output: name below ``module`` of the linear layer (or convolution) whose input columns are the channels.
        counts: integer attributes of modules below ``module`` that a forward reads, with their value per channel, such
            as ``(("depthwise.groups", 1),)``.
    """

    module: str
    rows: tuple[str | Rows, ...]
    output: str
    counts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Residual:
    """Whole residual blocks: the hidden states are the forward's first argument, and come back in the same shape.

    Args:
        module: name of the block below the denoiser; a ``*`` stands for any one part of a name.
        returns: where the forward returns a tuple, the names of what is in it, of "hidden_states" and
            "encoder_hidden_states", a second stream that the forward takes by that name, in second place.
        pixels: whether the hidden states are (N, channels, H, W) rather than (..., channels).
    """

    module: str
    returns: tuple[str, ...] = ()
    pixels: bool = False


Declaration: TypeAlias = Sequence[Heads | Channels | Residual]


def declare(denoiser: nn.Module, declaration: Declaration, call: Callable[[], object]) -> Anatomy:
    """The anatomy that a declaration gives a denoiser, after trying it out on one call.

    Every layer is run without its first group, and must hand its output projection what the dense one does in the
    groups that stay; every block is left out. That takes four calls, one more for each block, and two for each layer
    only where one does not run at all.

    Args:
        call: runs the denoiser once on any input, such as ``lambda: denoiser(noise, timestep=t)``.

    Raises:
        DiffESError: the declaration does not describe this denoiser; the message names the module and what to say.
    """
    layers, blocks = list[Layer](), list[Residual]()
    for part in declaration:
        for name in _matching(denoiser, part.module):
            if isinstance(part, Residual):
                blocks.append(replace(part, module=name))
            else:
                layers.append(_layer(denoiser, name, part))
    widths = _widths(denoiser, blocks, call)
    found = tuple(_block(block, *widths[block.module]) for block in blocks)
    anatomy = Anatomy(tuple(layers), found, ())
    try_layers(denoiser, anatomy, call)
    try_blocks(denoiser, anatomy, call)
    return anatomy


def _matching(denoiser: nn.Module, pattern: str) -> list[str]:
    expression = r"[^.]+".join(re.escape(part) for part in pattern.split("*"))
    names = [plain_name(name) for name, _ in denoiser.named_modules()]
    found = [name for name in names if re.fullmatch(expression, name)]
    if not found:
        known = ", ".join(name for name in names if name.count(".") == pattern.count("."))[:200]
        raise _wrong(pattern, "the name of a module", "none of that name", f"Name one of those it has: {known}.")
    return found


def _layer(denoiser: nn.Module, name: str, part: Heads | Channels) -> Layer:
    if isinstance(submodule(denoiser, name), nn.MultiheadAttention):
        raise _wrong(name, "an attention that can run with fewer heads", "one that cannot", f"{REASON}.")
    output = _module(denoiser, name, part.output)
    if not isinstance(output, nn.Linear | nn.Conv2d):
        found = f"a {type(output).__name__}"
        raise _wrong(f"{name}.{part.output}", "nn.Linear or nn.Conv2d", found, "Declare the last projection as output.")
    columns = output.weight.shape[1]
    groups = part.heads if isinstance(part, Heads) else columns
    if groups < 2 or columns % groups:
        where, found = f"{name}.{part.output}", f"{columns} columns for {groups} heads"
        raise _wrong(where, "equal parts of the input columns", found, "Declare the number of heads it has.")
    rows = tuple(_rows(denoiser, name, row, groups, columns // groups) for row in part.rows)
    counts = tuple(_count(denoiser, name, path, each, groups) for path, each in part.counts)
    kind = Kind.ATTENTION if isinstance(part, Heads) else Kind.FEEDFORWARD
    path = f"{name}.{part.output}"
    arguments = tuple((name, argument) for argument in part.arguments) if isinstance(part, Heads) else ()
    return Layer(path, kind, groups, columns // groups, rows, path, counts, arguments)


def _rows(denoiser: nn.Module, name: str, row: str | Rows, groups: int, width: int) -> Rows:
    said = row if isinstance(row, Rows) else Rows(row)
    path = f"{name}.{said.module}".rstrip(".")
    rows, expected = Rows(path, said.chunks, said.width), said.chunks * groups * (said.width or width)
    for leaf, parameter in _module(denoiser, name, said.module).named_parameters(recurse=False):
        if len(parameter) != expected:
            what = f"{expected} rows: {said.chunks} x {groups} groups of {said.width or width}"
            remedy = "Say Rows(name, chunks=..., width=...) as its parameters are laid out."
            raise _wrong(f"{path}.{leaf}", what, f"{len(parameter)}", remedy)
    return rows


def _count(denoiser: nn.Module, name: str, path: str, each: int, groups: int) -> tuple[str, str, int]:
    below, _, attribute = path.rpartition(".")
    value = vars(_module(denoiser, name, below)).get(attribute)
    if value != each * groups:
        remedy = "Declare in counts the integers that the forward reads, with their value per group."
        raise _wrong(f"{name}.{path}", f"{each * groups}, {each} for each group", str(value), remedy)
    return f"{name}.{below}".rstrip("."), attribute, each


def _module(denoiser: nn.Module, name: str, below: str) -> nn.Module:
    path = f"{name}.{below}".rstrip(".")
    if path not in {plain_name(found) for found, _ in denoiser.named_modules()}:
        children = ", ".join(found for found, _ in submodule(denoiser, name).named_modules() if found)[:200]
        raise _wrong(path, "the name of a module", "none of that name", f"Below {name} there are: {children}.")
    return submodule(denoiser, path)


def _widths(
    denoiser: nn.Module, blocks: Sequence[Residual], call: Callable[[], object]
) -> dict[str, tuple[int, int | None]]:
    """Channels of the hidden states, and of the second stream, of every block in a call."""
    widths = dict[str, tuple[int, int | None]]()

    def watch(block: Residual) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            given = dict(zip(names, args, strict=False)) | kwargs
            given |= {STREAMS[0]: given.get(names[0])}
            returned = dict(zip(block.returns, output, strict=False)) if block.returns else {STREAMS[0]: output}
            if isinstance(output, tuple) != bool(block.returns) or (
                block.returns and len(output) != len(block.returns)
            ):
                found = f"a tuple of {len(output)}" if isinstance(output, tuple) else f"a {type(output).__name__}"
                expected = f"to return {block.returns or 'a tensor'}"
                raise _wrong(block.module, expected, found, "Declare what it returns: Residual(..., returns=(...)).")
            for stream in {STREAMS[0], *block.returns}:
                if not _alike(given.get(stream), returned.get(stream)):
                    expected = f"{stream} in and out in the same shape"
                    remedy = "A residual block takes its hidden states first, and changes them by what it adds."
                    raise _wrong(block.module, expected, _shapes(given.get(stream), returned.get(stream)), remedy)
            second = given[STREAMS[1]].shape[-1] if STREAMS[1] in block.returns else None
            widths[block.module] = given[STREAMS[0]].shape[1 if block.pixels else -1], second

        return hook

    handles = [
        submodule(denoiser, block.module).register_forward_hook(watch(block), with_kwargs=True) for block in blocks
    ]
    try:
        with torch.no_grad():
            repeated(denoiser, call)
    finally:
        for handle in handles:
            handle.remove()
    for block in blocks:
        if block.module not in widths:
            raise _wrong(block.module, "to run in a call of the denoiser", "that it does not", "Leave it out.")
    return widths


def _alike(given: object, returned: object) -> bool:
    return isinstance(given, Tensor) and isinstance(returned, Tensor) and given.shape == returned.shape


def _shapes(*values: object) -> str:
    return " and ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)


def _block(block: Residual, width: int, context: int | None) -> Block:
    return Block(block.module, width, context, block.returns, block.pixels)


def _wrong(where: str, expected: str, found: str, remedy: str) -> DiffESError:
    return DiffESError(f"declaration, {where}", expected=expected, found=found, remedy=remedy)
