"""Weights of published names and shapes, drawn by a seed, for the networks that measures look with."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Convolutions that keep the variance of what a rectifier lets through, norms around one, little else."""
    generator = torch.Generator().manual_seed(seed)
    found = dict[str, Tensor]()
    for name, shape in sorted(shapes.items()):
        values = torch.rand(shape, generator=generator)
        if len(shape) > 1:
            found[name] = (values - 0.5) * (24 / prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            found[name] = values + 0.5
        else:
            found[name] = (values - 0.5) / 5
    return found


def shapes_of(tensors: Mapping[str, Tensor], without: str = "num_batches_tracked") -> dict[str, tuple[int, ...]]:
    """Those that files have; counters of batches were not published."""
    return {name: tuple(one.shape) for name, one in tensors.items() if not name.endswith(without)}


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth images (N, 3, H, W) in [0, 1]."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth: Tensor = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth
