"""Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924, version 0.1 of its weights).

The libraries that have it, lpips and torchmetrics, take their trunks from torchvision. Here the heads are torchmetrics'
own copy, a few kilobytes, and the trunks are the convolutions of AlexNet and VGG-16 as torchvision published them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from .paired import check_pairs
from .weights import Published


class Trunk(StrEnum):
    """The network whose features are compared; the value is what torchmetrics calls its heads."""

    ALEX = "alex"
    VGG = "vgg"


def _alex() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def _vgg() -> nn.Sequential:
    layers, before = list[nn.Module](), 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(repeats):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class _Layout:
    published: Published
    make: Callable[[], nn.Sequential]  # its ``features``, up to the last that is looked at
    taps: tuple[int, ...]  # after which of its modules that is
    least: int  # pixels, for the last of them to have one


_TORCH = "https://download.pytorch.org/models/"
_LAYOUTS = {
    Trunk.ALEX: _Layout(
        Published("alexnet-owt-7be5be79.pth", f"{_TORCH}alexnet-owt-7be5be79.pth"), _alex, (1, 4, 7, 9, 11), 31
    ),
    Trunk.VGG: _Layout(Published("vgg16-397923af.pth", f"{_TORCH}vgg16-397923af.pth"), _vgg, (3, 8, 15, 22, 29), 16),
}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
_EPSILON = 1e-10
_BATCH = 4  # of 1024 pixels, whose first features alone take a gigabyte


class Lpips:
    """How far two images lie apart as a trunk sees them, its features weighted as people judge: 0 is the same.

    Args:
        trunk: which one; the authors advise AlexNet for a measure.
        weights: the file of its published weights, or the folder that it is in; None: see :meth:`Published.place`.
        device: that it runs on.

    Raises:
        DiffESError: there are no such weights, or they are others.
    """

    unit, higher_is_better = "", False

    def __init__(self, trunk: Trunk, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        layout, prefix = _LAYOUTS[trunk], "features."
        tensors = layout.published.read(weights)
        convolutions = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
        network = layout.make()
        layout.published.fill(network, convolutions, weights)
        self.name = f"LPIPS ({trunk})"
        self._trunk = network.eval().requires_grad_(False).to(device)
        self._taps, self._least = layout.taps, layout.least
        self._heads = [head.to(device) for head in heads(trunk)]

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        check_pairs(images, reference, self._least)
        parts = zip(images.split(_BATCH), reference.split(_BATCH), strict=True)
        return torch.cat([self._distance(*part).cpu() for part in parts])

    def _distance(self, images: Tensor, reference: Tensor) -> Tensor:
        """(N,): over the taps, the sum of the means over places of the weighted squares."""
        parts = zip(self._heads, self._seen(images), self._seen(reference), strict=True)
        squares = [torch.einsum("c,nchw->nhw", head, (a - b).square()) for head, a, b in parts]
        return torch.stack([one.mean((1, 2)) for one in squares]).sum(0)

    def _seen(self, images: Tensor) -> list[Tensor]:
        """At each tap (N, C, H, W), every place of unit length."""
        like, seen = self._heads[0], list[Tensor]()
        shift, scale = (like.new_tensor(one)[:, None, None] for one in (_SHIFT, _SCALE))
        values = (images.to(like) * 2 - 1 - shift) / scale
        for number, module in enumerate(self._trunk):
            values = module(values)
            if number in self._taps:
                seen.append(values / (torch.linalg.vector_norm(values, dim=1, keepdim=True) + _EPSILON))
        return seen


def heads(trunk: Trunk) -> list[Tensor]:
    """Of each tap (C,): how much each channel counts, as published; they come with torchmetrics."""
    with (files("torchmetrics.functional.image") / "lpips_models" / f"{trunk}.pth").open("rb") as file:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    return [tensors[f"lin{tap}.model.1.weight"].flatten() for tap in range(len(tensors))]
