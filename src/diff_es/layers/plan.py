"""What is left of a denoiser's layers and blocks in a stage, and the weights that go in their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .contract import Block, Bypass, from_matrix


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
    weight: Tensor | None = None  # (O, K * width), of a convolution (O, K * width, taps...), also of a transposed one
    bias: Tensor | None = None  # (O,)
    factors: tuple[Factor, ...] = ()  # of a convolution: of its matrix (O * taps, K * width)

    def merged(self, dense: Tensor, columns: Tensor) -> Tensor:
        """(O, K * width, ...): the output projection, for the layer's part of the dense weight and the columns of it
        that stay."""
        if self.weight is not None:
            return self.weight.to(dense).contiguous()
        kept = dense.detach()[:, columns.to(dense.device)]
        if not self.factors:
            return kept.contiguous()
        total = kept.float()
        for factor in self.factors:
            total += from_matrix(factor.product().to(total.device), dense)
        return total.to(dense.dtype)


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
    blocks: Mapping[str, Block] = field(default_factory=dict)  # those that bypasses names
    picks: Mapping[str, Tensor] = field(default_factory=dict)  # int64, by "module.argument"

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        extra = [t for b in self.bypasses.values() if b is not None for t in b.tensors().values()]
        return sum(t.nbytes for t in [*self.tensors.values(), *extra])


DENSE = Plan()
