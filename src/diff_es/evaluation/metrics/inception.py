"""The Inception-v3 of the Fréchet distance: Google's weights of 2015 in TensorFlow's arithmetic.

torch-fidelity and pytorch-fid have it and require torchvision, as torchmetrics does through the former. This is the
same network, by the published names, so that the file that both of them publish loads into it. As in the graph of the
original, averages leave the padding out, and the last block takes a maximum where the paper has an average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import check_images
from .weights import Published

WEIGHTS = Published(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)
FEATURES = 2048
_SIDE, _BATCH = 299, 32
_mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_max = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halve = partial(F.max_pool2d, kernel_size=3, stride=2)


class _Conv(NamedTuple):
    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


_Step = _Conv | tuple[_Conv, _Conv] | Callable[[Tensor], Tensor]
"""Of a branch: a convolution, two side by side, or a pool."""
_Branch = Sequence[_Step]
_ROW, _COLUMN = (1, 7), (7, 1)
_SQUARE = (3, 3)


def _double(width: int, last: int, *, halved: bool = False) -> _Branch:
    end = _Conv("branch3x3dbl_3", last, _SQUARE, 2, padded=False) if halved else _Conv("branch3x3dbl_3", last, _SQUARE)
    return (_Conv("branch3x3dbl_1", width), _Conv("branch3x3dbl_2", last, _SQUARE), end)


def _a(pool: int) -> Sequence[_Branch]:
    return (
        (_Conv("branch1x1", 64),),
        (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
        _double(64, 96),
        (_mean, _Conv("branch_pool", pool)),
    )


def _c(width: int) -> Sequence[_Branch]:
    kernels = (_COLUMN, _ROW, _COLUMN, _ROW)
    long = [_Conv(f"branch7x7dbl_{n + 2}", 192 if n == 3 else width, kernel) for n, kernel in enumerate(kernels)]
    return (
        (_Conv("branch1x1", 192),),
        (_Conv("branch7x7_1", width), _Conv("branch7x7_2", width, _ROW), _Conv("branch7x7_3", 192, _COLUMN)),
        (_Conv("branch7x7dbl_1", width), *long),
        (_mean, _Conv("branch_pool", 192)),
    )


def _e(pool: Callable[[Tensor], Tensor]) -> Sequence[_Branch]:
    def fork(name: str) -> tuple[_Conv, _Conv]:
        return _Conv(f"{name}a", 384, (1, 3)), _Conv(f"{name}b", 384, (3, 1))

    return (
        (_Conv("branch1x1", 320),),
        (_Conv("branch3x3_1", 384), fork("branch3x3_2")),
        (_Conv("branch3x3dbl_1", 448), _Conv("branch3x3dbl_2", 384, _SQUARE), fork("branch3x3dbl_3")),
        (pool, _Conv("branch_pool", 192)),
    )


_B: Sequence[_Branch] = (
    (_Conv("branch3x3", 384, _SQUARE, 2, padded=False),),
    _double(64, 96, halved=True),
    (_halve,),
)
_D: Sequence[_Branch] = (
    (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, _SQUARE, 2, padded=False)),
    (
        _Conv("branch7x7x3_1", 192),
        *(_Conv("branch7x7x3_2", 192, _ROW), _Conv("branch7x7x3_3", 192, _COLUMN)),
        _Conv("branch7x7x3_4", 192, _SQUARE, 2, padded=False),
    ),
    (_halve,),
)
_STEM: _Branch = (
    _Conv("Conv2d_1a_3x3", 32, _SQUARE, 2, padded=False),
    _Conv("Conv2d_2a_3x3", 32, _SQUARE, padded=False),
    _Conv("Conv2d_2b_3x3", 64, _SQUARE),
    _halve,
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, _SQUARE, padded=False),
    _halve,
)
_BLOCKS = {
    **{"Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B},
    **{"Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192)},
    **{"Mixed_7a": _D, "Mixed_7b": _e(_mean), "Mixed_7c": _e(_max)},
}


class _Normed(nn.Module):
    """A convolution, its norm and a rectifier."""

    def __init__(self, width_in: int, of: _Conv) -> None:
        super().__init__()
        padding = (of.kernel[0] // 2, of.kernel[1] // 2) if of.padded else (0, 0)
        self.conv = nn.Conv2d(width_in, of.width, of.kernel, of.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(of.width, eps=1e-3)

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(values)), inplace=True)


class _Mixed(nn.Module):
    """Branches side by side, whose convolutions lie in it by their own names."""

    def __init__(self, width: int, branches: Sequence[_Branch]) -> None:
        super().__init__()
        self._branches, self.width = branches, 0
        for branch in branches:
            last = width
            for step in branch:
                if isinstance(step, _Conv):
                    self.add_module(step.name, _Normed(last, step))
                    last = step.width
                elif isinstance(step, tuple):
                    for conv in step:
                        self.add_module(conv.name, _Normed(last, conv))
                    last = sum(conv.width for conv in step)
            self.width += last

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([self._along(branch, values) for branch in self._branches], 1)

    def _along(self, branch: _Branch, values: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, _Conv):
                values = self.get_submodule(step.name)(values)
            elif isinstance(step, tuple):
                values = torch.cat([self.get_submodule(conv.name)(values) for conv in step], 1)
            else:
                values = step(values)
        return values


class Inception(_Mixed):
    """(N, 3, H, W), numbers from 0 to 255, to the 2048 features before its classifier, which is there to be loaded."""

    def __init__(self) -> None:
        super().__init__(3, (_STEM,))
        for name, branches in _BLOCKS.items():
            block = _Mixed(self.width, branches)
            self.add_module(name, block)
            self.width = block.width
        self.fc = nn.Linear(self.width, 1008)

    def forward(self, values: Tensor) -> Tensor:
        values = super().forward((resized(values, _SIDE) - 128) / 128)
        for name in _BLOCKS:
            values = self.get_submodule(name)(values)
        return values.mean((2, 3))


def resized(values: Tensor, side: int) -> Tensor:
    """Bilinear, (N, C, H, W) to (N, C, side, side), as TensorFlow 1 has it: pixels lie at their corners, not centres,
    and none is averaged away where the image shrinks."""
    rows, columns = (_hats(size, side, values) for size in values.shape[2:])
    return rows @ values @ columns.T


def _hats(size: int, side: int, like: Tensor) -> Tensor:
    """(side, size): how much of each pixel each new one takes."""
    places = torch.arange(side, device=like.device) * (size / side)
    distances = places[:, None] - torch.arange(size, device=like.device)
    weights = (1 - distances.abs()).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)).to(like)  # beyond the last pixel there is only that


class InceptionFeatures:
    """(N, 3, H, W) in [0, 1] to (N, 2048), on the CPU; images are rounded to 8 bits first, as they are in files.

    Args:
        weights: the file of the published weights, or the folder that it is in; None: see :meth:`Published.place`.
        device: that it runs on.

    Raises:
        DiffESError: there are no such weights, or they are others.
    """

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        tensors, network = WEIGHTS.read(weights), Inception()
        WEIGHTS.fill(network, tensors, weights)
        self._network, self._device = network.eval().requires_grad_(False).to(device), device

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        parts = ((part.float() * 255).round().to(self._device) for part in images.split(_BATCH))
        return torch.cat([self._network(part).cpu() for part in parts])


inception = lru_cache(maxsize=1)(InceptionFeatures)
"""The same, read once for all measures that share it."""
