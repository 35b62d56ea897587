"""What a layer kind tells the rest of the library: which tensors its groups own, and nothing about diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor


class Kind(StrEnum):
    """The kinds of structure that can be pruned."""

    ATTENTION = "attention"
    FEEDFORWARD = "feedforward"
    BLOCK = "block"


@dataclass(frozen=True)
class Rows:
    """A linear layer whose output rows belong to the groups of a :class:`Layer`.

    ``module`` is its name below the denoiser. Its rows are ``chunks`` equal parts (2 under GEGLU: value and gate), and
    in each part group g owns the rows g * width to (g + 1) * width - 1.
    """

    module: str
    chunks: int = 1


@dataclass(frozen=True)
class Layer:
    """A prunable layer: ``groups`` groups, each of ``width`` input columns of the linear layer ``output``.

    ``counts`` are the integer attributes that a forward reads, as (module name, attribute, value per group).
    """

    name: str
    kind: Kind
    groups: int
    width: int
    rows: tuple[Rows, ...]
    output: str
    counts: tuple[tuple[str, str, int], ...] = ()

    def kept(self, removed: int, levels: int) -> int:
        """Groups that stay at level ``removed`` of ``levels``: level l removes floor(l n / L) of n groups."""
        return self.groups - removed * self.groups // levels

    def sizes(self, kept: int) -> dict[str, int]:
        """The integers of ``counts`` where so many groups stay, by "module.attribute"."""
        return {f"{module}.{attribute}": each * kept for module, attribute, each in self.counts}

    def columns(self, groups: Tensor) -> Tensor:
        """int64 (len(groups) * width,): the input columns of ``output`` that belong to these groups."""
        return (groups[:, None] * self.width + torch.arange(self.width, device=groups.device)).flatten()


@dataclass(frozen=True)
class Block:
    """A whole residual block of hidden size ``width``: hidden states in, new hidden states out."""

    name: str
    width: int


@dataclass(frozen=True)
class Refusal:
    """A layer of a known kind that cannot be pruned correctly, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Anatomy:
    """What discovery found in a denoiser."""

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Factor:
    """A product of two thin matrices in eight bits: (left * left_scale) @ (right * right_scale[:, None])."""

    left: Tensor  # (O, r) int8
    left_scale: Tensor  # (r,) float32
    right: Tensor  # (r, C) int8
    right_scale: Tensor  # (r,) float32

    def product(self) -> Tensor:
        """(O, C) float32."""
        return (self.left.float() * (self.left_scale * self.right_scale)) @ self.right.float()

    def tensors(self) -> tuple[Tensor, ...]:
        return self.left, self.left_scale, self.right, self.right_scale


@dataclass(frozen=True)
class Cut:
    """What is left of a layer: the groups that stay, and the output projection re-solved for them.

    The re-solved weight is given whole, or as ``factors`` whose sum is its difference to the dense slice; stages may
    share a factor. With neither, the dense weight is sliced and the dense bias stays.
    """

    kept: Tensor  # (K,) int64, ascending
    weight: Tensor | None = None  # (O, K * width)
    bias: Tensor | None = None  # (O,)
    factors: tuple[Factor, ...] = ()

    def merged(self, dense: Tensor, columns: Tensor) -> Tensor:
        """(O, K * width): the output projection for the dense weight (O, G * width) and the columns that stay."""
        if self.weight is not None:
            return self.weight.to(dense).contiguous()
        kept = dense.detach()[:, columns.to(dense.device)]
        if not self.factors:
            return kept.contiguous()
        total = kept.float()
        for factor in self.factors:
            total += factor.product()
        return total.to(dense.dtype)


@dataclass(frozen=True)
class Bypass:
    """What a skipped block leaves behind: hidden + hidden @ weight.T + bias, fitted per stage."""

    weight: Tensor  # (width, width)
    bias: Tensor  # (width,)


@dataclass(frozen=True)
class Plan:
    """One stage's pruning, without any of the base model's own weights; whatever is not named stays dense.

    ``bypasses`` maps the names of skipped blocks to what stands in for them (None: the block is plainly left out).
    """

    cuts: Mapping[str, Cut] = field(default_factory=dict)
    bypasses: Mapping[str, Bypass | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """A plan made ready for one denoiser: what is put in place during a stage."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # by parameter name
    counts: Mapping[str, int] = field(default_factory=dict)  # by "module.attribute"
    bypasses: Mapping[str, Bypass | None] = field(default_factory=dict)  # by block name

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        extra = [t for b in self.bypasses.values() if b is not None for t in (b.weight, b.bias)]
        return sum(t.nbytes for t in [*self.tensors.values(), *extra])


DENSE = Plan()
