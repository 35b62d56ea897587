"""Second moments of what a layer's output projection receives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over the vectors x (D,) that a layer received; they add up over batches, workers and stages.

    They are taken around ``shift`` (None: around 0), so that float32 loses nothing of a small spread around a large
    mean. Where the power of each input is all that is asked for, ``second`` is its own diagonal.
    """

    second: Tensor  # (D, D), sum of (x - shift)(x - shift)^T; or (D,), the diagonal of that
    first: Tensor  # (D,), sum of x - shift
    count: int
    shift: Tensor | None = None  # (D,)

    def __add__(self, other: Moments) -> Moments:
        moved = other.around(self.shift)
        return Moments(self.second + moved.second, self.first + moved.first, self.count + other.count, self.shift)

    def around(self, shift: Tensor | None) -> Moments:
        """The same sums taken around another point."""
        here = torch.zeros_like(self.first) if self.shift is None else self.shift
        there = torch.zeros_like(self.first) if shift is None else shift
        step = here - there  # x - there = (x - here) + step
        if self.second.dim() == 1:
            second = self.second + step * (2 * self.first + self.count * step)
        else:
            cross = torch.outer(step, self.first)
            second = self.second + cross + cross.T + self.count * torch.outer(step, step)
        return Moments(second, self.first + self.count * step, self.count, shift)

    def mean(self) -> Tensor:
        """(D,) float64."""
        offset = double(self.first) / self.count
        return offset if self.shift is None else offset + double(self.shift)

    def power(self) -> Tensor:
        """(D,) float64: the mean square of each input."""
        offset = double(self.first) / self.count
        return double(squares_of(self.second)) / self.count - offset.square() + self.mean().square()

    def rounding(self, inputs: int | None = None) -> Tensor:
        """What rounding of the sums may leave of a covariance that is really zero."""
        spread = double(self.second.diagonal()) / self.count
        return 64 * torch.finfo(self.second.dtype).eps * spread[:inputs].mean()

    def hessian(self, *, centred: bool) -> Tensor:
        """(D, D) float64: E[x x^T], or the covariance where an intercept takes care of the mean.

        Of sums of all products, not of squares alone.
        """
        covariance, mean = self._covariance(), self.mean()
        return covariance if centred else covariance + torch.outer(mean, mean)

    def _covariance(self) -> Tensor:
        offset = double(self.first) / self.count
        return double(self.second) / self.count - torch.outer(offset, offset)


def squares_of(second: Tensor) -> Tensor:
    """(D,): the sums of squares, of sums of all products or of these alone."""
    return second if second.dim() == 1 else second.diagonal()


def double(tensor: Tensor) -> Tensor:
    """float64; on the CPU where the device has none."""
    return where_doubles_are(tensor).double()


def where_doubles_are(tensor: Tensor) -> Tensor:
    """On its device, or on the CPU where that has no float64."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def damped(hessian: Tensor, damping: float, floor: float | Tensor = 0.0) -> Tensor:
    """H + (damping * mean(diag H) + floor) * I; for an input that is always zero, I."""
    scale = damping * hessian.diagonal().mean().clamp_min(0) + floor
    ridge = torch.where(scale > 0, scale, torch.ones_like(scale))
    found = hessian.clone()
    found.diagonal().add_(ridge)
    return found
