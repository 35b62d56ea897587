"""What a layer kind tells the rest of the library: which tensors its groups own, and nothing about diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Kind(StrEnum):
    """The kinds of structure that can be pruned."""

    ATTENTION = "attention"
    FEEDFORWARD = "feedforward"
    RESNET = "resnet"
    BLOCK = "block"


@dataclass(frozen=True)
class Rows:
    """A module whose output rows belong to the groups of a :class:`Layer`: all its parameters have them first.

    A linear layer, a convolution (also a depthwise one; of a transposed one they are second in the weight), or a norm,
    whose scale and shift are rows. ``module`` is its name below the denoiser. Its rows are ``chunks`` equal parts (2
    under GEGLU: value and gate), and in each part group g owns the rows g * width to (g + 1) * width - 1; ``width``
    None is the layer's own.
    """

    module: str
    chunks: int = 1
    width: int | None = None


@dataclass(frozen=True)
class Layer:
    """A prunable layer: ``groups`` groups, each of ``width`` input columns of the linear layer or convolution
    ``output``.

    Args:
        name: unique; of a module at or below the block that holds the layer, but not of that block.
        rows: what feeds those columns.
        counts: the integer attributes that a forward reads, as (module name, attribute, value per group).
        arguments: what a forward is given at the width of all groups, as (module name, argument): a tensor or a tuple
            of them, whose last dimension has the layer's columns, such as a rotary embedding of all heads; None passes.
            Those of the groups that stay are gathered from it in every forward.
        start: the first column of ``output`` that is this layer's; layers that share an output own ranges of columns.
        follows: the name of the layer whose groups this one keeps, whatever its own statistics say. Its moments and its
            compensated weights are its own.
    """

    name: str
    kind: Kind
    groups: int
    width: int
    rows: tuple[Rows, ...]
    output: str
    counts: tuple[tuple[str, str, int], ...] = ()
    arguments: tuple[tuple[str, str], ...] = ()
    start: int = 0
    follows: str | None = None

    @property
    def size(self) -> int:
        """Input columns of ``output`` that are this layer's."""
        return self.groups * self.width

    @property
    def home(self) -> str:
        """The name of the smallest module that holds the layer's output and all rows that feed it."""
        owners = [name.rpartition(".")[0] for name in (self.output, *(rows.module for rows in self.rows))]
        return common(owners)

    def kept(self, removed: int, levels: int) -> int:
        """Groups that stay at level ``removed`` of ``levels``: level l removes floor(l n / L) of n groups."""
        return self.groups - removed * self.groups // levels

    def sizes(self, kept: int) -> dict[str, int]:
        """The integers of ``counts`` where so many groups stay, by "module.attribute"."""
        return {f"{module}.{attribute}": each * kept for module, attribute, each in self.counts}

    def picks(self, groups: Tensor) -> dict[str, Tensor]:
        """What is gathered of ``arguments`` where these groups stay, by "module.argument"."""
        return {f"{module}.{argument}": self.columns(groups) for module, argument in self.arguments}

    def columns(self, groups: Tensor) -> Tensor:
        """int64 (len(groups) * width,): the columns that belong to these groups, counted from ``start``."""
        return expanded(groups, self.width)

    def part(self, weight: Tensor) -> Tensor:
        """The columns of the output's dense weight that are this layer's: (O, size), or (O, size, taps...)."""
        return weight[:, self.start : self.start + self.size]


def expanded(groups: Tensor, width: int) -> Tensor:
    """int64 (len(groups) * width,): the members of these groups, where group g has g * width to (g + 1) * width - 1."""
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()


def common(names: Sequence[str]) -> str:
    """The name of the smallest module that holds all of these, or is the only one of them; of none, the root."""
    paths = [name.split(".") for name in names if name]
    shared = paths[0] if paths and len(paths) == len(names) else []
    while any(path[: len(shared)] != shared for path in paths):
        shared = shared[:-1]
    return ".".join(shared)


def as_matrix(weight: Tensor) -> Tensor:
    """The weight of an output with one row for each output and tap: (O, D) as it is, (O, D, taps...) as
    (O * taps, D)."""
    return weight if weight.dim() == 2 else weight.movedim(1, -1).flatten(0, -2)


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The reverse of :func:`as_matrix`, with the outputs and taps of ``like``."""
    return matrix if like.dim() == 2 else matrix.view(len(like), *like.shape[2:], -1).movedim(-1, 1).contiguous()


@dataclass(frozen=True)
class Bypass:
    """What a skipped block leaves behind, fitted per stage: what it adds to its hidden states h is h @ weight.T + bias,
    and likewise for the second stream of a block that has two."""

    weight: Tensor  # (outputs, width)
    bias: Tensor  # (outputs,)
    context_weight: Tensor | None = None  # (context, context)
    context_bias: Tensor | None = None  # (context,)

    def tensors(self) -> dict[str, Tensor]:
        """What there is of it, by name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Bypass:
        """The same with every tensor changed."""
        return Bypass(**{name: change(tensor) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class Block:
    """A whole residual block: hidden states in, new hidden states out.

    Args:
        width: channels of the hidden states that it receives, the forward's first argument.
        context: channels of a second stream that it renews too, the forward's argument ``encoder_hidden_states``, in
            second place; None: there is none.
        returns: the streams in the order in which a tuple holds them, such as ("encoder_hidden_states",
            "hidden_states"); (): the hidden states alone. One that is named here although ``context`` is None passes
            unchanged where the block is skipped.
        pixels: whether the hidden states are (N, channels, H, W), or of one or three dimensions in place of two;
            otherwise they are (..., channels).
        shortcut: the 1x1 convolution that carries the hidden states past the block; it stays where the block is
            skipped.
        outputs: channels that the block returns, where another number than ``width``.
    """

    name: str
    width: int
    context: int | None = None
    returns: tuple[str, ...] = ()
    pixels: bool = False
    shortcut: str | None = None
    outputs: int | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of what is gathered of the block's inputs and residuals: one for each stream that it renews."""
        return (self.name,) if self.context is None else (self.name, f"{self.name}|context")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what a :class:`Bypass` of it holds."""
        outputs = self.outputs or self.width
        shapes: dict[str, tuple[int, ...]] = {"weight": (outputs, self.width), "bias": (outputs,)}
        if self.context is not None:
            shapes |= {"context_weight": (self.context, self.context), "context_bias": (self.context,)}
        return shapes

    def blank(self, **like: Any) -> Bypass:
        """A bypass that adds nothing, on the device and of the type that ``like`` names."""
        return Bypass(**{name: torch.zeros(shape, **like) for name, shape in self.shapes().items()})


@dataclass(frozen=True)
class Refusal:
    """A layer of a known kind that cannot be pruned correctly, and why."""

    name: str
    reason: str


Found = Layer | Block | Refusal
"""What a layer kind finds in a module."""


@dataclass(frozen=True)
class Anatomy:
    """What discovery found in a denoiser, or what was declared of it."""

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    refusals: tuple[Refusal, ...]

    def family(self, layer: Layer) -> tuple[Layer, ...]:
        """The layers that keep the same groups as this one, itself included, in their order."""
        leader = layer.follows or layer.name
        return tuple(other for other in self.layers if leader in (other.name, other.follows))

    def sharing(self) -> tuple[tuple[Layer, ...], ...]:
        """The layers by output, those that share one in the order of its columns."""
        outputs = dict[str, list[Layer]]()
        for layer in self.layers:
            outputs.setdefault(layer.output, []).append(layer)
        return tuple(tuple(sorted(layers, key=lambda layer: layer.start)) for layers in outputs.values())

    @property
    def uniform(self) -> bool:
        """Whether the blocks are alike, and stand in one list, so that skipping any of them saves the same."""
        kinds = {
            (
                block.name.rpartition(".")[0],
                replace(block, name="", shortcut=None if block.shortcut is None else ""),
                tuple((x.kind, x.groups, x.width) for x in self.layers if x.name.startswith(f"{block.name}.")),
            )
            for block in self.blocks
        }
        return len(kinds) <= 1
