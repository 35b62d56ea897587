"""Running sums over what passes through a layer, and over what a denoiser gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers import Convolution, often_seen
from .moments import Moments, squares_of


class Accumulator:
    """Running sums around the first batch's mean, float32 on the device of the data.

    Args:
        squares: whether of the second moments only those of each input with itself are summed.
    """

    def __init__(self, *, squares: bool = False) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        self._count, self._squares = 0, squares

    def add(self, vectors: Tensor) -> None:
        """Add vectors (..., D)."""
        x = vectors.detach().reshape(-1, vectors.shape[-1]).float()
        second, first, shift = self._around(x)
        x = x - shift
        self._add(second, x, x)
        first += x.sum(0)
        self._count += len(x)

    def add_pixels(self, images: Tensor, module: Convolution, outputs: Sequence[int]) -> None:
        """Add what the taps of a convolution see of images (N, D, H, W), or (N, D, L): each pixel as often as it is
        seen, and the zeros beside them, which are much of a small image.

        Args:
            outputs: the sizes of what comes out of it, without batch and channels.
        """
        often, looks = often_seen(module, images.shape[2:], outputs)
        x = images.detach().movedim(1, -1).reshape(-1, images.shape[1]).float()
        second, first, shift = self._around(x)
        x, zeros = x - shift, (looks - int(often.sum(dtype=torch.float64))) * len(images)
        weighted = x * often.flatten().repeat(len(images)).to(x.device)[:, None]
        self._add(second, weighted, x)
        self._add(second, zeros * shift[None], shift[None])
        first += weighted.sum(0) - zeros * shift
        self._count += looks * len(images)

    def _around(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._sums is None:
            size = x.shape[1]
            self._sums = x.new_zeros((size,) if self._squares else (size, size)), x.new_zeros(size), x.mean(0)
        return self._sums

    def _add(self, second: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the products (N, D) of the two to the sums."""
        if self._squares:
            second += (left * right).sum(0)
        else:
            second.addmm_(left.T, right)

    @property
    def empty(self) -> bool:
        return self._sums is None

    @property
    def finite(self) -> bool:
        """Whether no square overflowed; then no product did."""
        return self._sums is not None and bool(torch.isfinite(squares_of(self._sums[0])).all())

    def moments(self) -> Moments:
        assert self._sums is not None
        second, first, shift = self._sums
        return Moments(second, first, self._count, shift)


class Change:
    """Relative change of the denoiser's output between neighbouring steps of a trajectory, by stage."""

    def __init__(self, stages: int) -> None:
        self._sums, self._counts = [0.0] * stages, [0] * stages
        self.before: Tensor | None = None

    def add(self, stage: int, output: Tensor) -> None:
        now = output.detach().float()
        if self.before is not None and self.before.shape == now.shape:
            change = float((now - self.before).norm() / self.before.norm())
            if math.isfinite(change):  # relative to an output that is nothing there is none
                self._sums[stage] += change
                self._counts[stage] += 1
        self.before = now

    def means(self) -> tuple[float, ...]:
        return tuple(total / max(count, 1) for total, count in zip(self._sums, self._counts, strict=True))
