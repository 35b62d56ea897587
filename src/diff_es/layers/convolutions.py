"""Output projections of every kind: what their weights and inputs have where, and what a convolution's taps see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..utils.calls import Args, Kwargs

Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed
Projection: TypeAlias = nn.Linear | Convolution
"""What an output projection may be."""


def outputs_first(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight of an output projection as (O, D), or (O, D, taps...) of a convolution, for how the module has it, and
    the other way round: a transposed convolution has (D, O, taps...)."""
    return weight.transpose(0, 1) if isinstance(module, Transposed) else weight


def row_dimension(module: nn.Module, leaf: str) -> int:
    """The dimension of a parameter that has its module's output rows: the first, but of a transposed convolution's
    weight (D, O, taps...); where that is depthwise, (O, 1, taps...), the first again."""
    return int(isinstance(module, Transposed) and leaf == "weight" and module.groups == 1)


def channel_dimension(module: nn.Module, inputs: Tensor) -> int:
    """The dimension of a projection's inputs that its columns belong to."""
    return inputs.dim() - 1 - (len(module.kernel_size) if isinstance(module, Convolution) else 0)


def given_to(args: Args, kwargs: Kwargs) -> Tensor:
    """What a call hands to a projection."""
    inputs: Tensor = args[0] if args else kwargs["input"]
    return inputs


def often_seen(module: Convolution, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[Tensor, int]:
    """How often the taps of a convolution see each pixel of its input, float32 in the sizes of ``inputs``, and how
    often they look at anything, be it zeros: once for each tap of each output pixel.

    A transposed convolution is a plain one over pixels with zeros between and around them; any other mode of padding
    than zeros shows pixels once more.

    Args:
        inputs, outputs: sizes of what it receives and of what it gives, without batch and channels.
    """
    often, looks = torch.ones(()), 1
    for dimension, (size, out) in enumerate(zip(inputs, outputs, strict=True)):
        reached = _reached(module, dimension, size, out)
        often = often[..., None] * torch.bincount(reached[reached >= 0], minlength=size)[:size].float()
        looks *= out * module.kernel_size[dimension]
    return often, looks


def _reached(module: Convolution, dimension: int, size: int, out: int) -> Tensor:
    """int64: the input position of each pair of a tap and a pixel along one dimension; -1: a zero, or none."""
    taps = torch.arange(module.kernel_size[dimension]) * module.dilation[dimension]
    stride, (before, after) = module.stride[dimension], _padding(module, dimension)
    if isinstance(module, Transposed):
        places = torch.arange(size)[:, None].expand(-1, len(taps))
        target = places * stride + taps - before
        return torch.where((target >= 0) & (target < out), places, -1).flatten()
    positions = torch.arange(size, dtype=torch.float64)[None, None]
    if module.padding_mode == "zeros":
        padded = pad(positions, (before, after), value=-1.0)
    else:
        padded = pad(positions, (before, after), mode=module.padding_mode)
    return padded[0, 0].long()[torch.arange(out)[:, None] * stride + taps].flatten()


def _padding(module: Convolution, dimension: int) -> tuple[int, int]:
    """Before and after."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[dimension] * (module.kernel_size[dimension] - 1)
        return total // 2, total - total // 2
    each = int(module.padding[dimension])
    return each, each
