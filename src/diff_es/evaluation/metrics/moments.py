"""Mean and covariance of a set of features, added up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import DiffESError


@dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance knows of a set of features."""

    mean: Tensor  # (F,), float64
    covariance: Tensor  # (F, F), float64


@dataclass(frozen=True)
class Moments:
    """Of features seen so far; they add up over batches and processes, in any order to within rounding.

    Squares are summed around the mean, by the update of Chan, Golub & LeVeque (1983), so that a small spread around a
    large mean is not lost. Memory is that of one (F, F) matrix, however many features there were.
    """

    count: int
    mean: Tensor  # (F,), float64
    scatter: Tensor  # (F, F), float64: the sum of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of a batch (N, F), N > 0."""
        rows = features.cpu().double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        count, step = self.count + other.count, other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), self.scatter + other.scatter + between)

    def gaussian(self) -> Gaussian:
        """With the covariance that is free of bias.

        Raises:
            DiffESError: it is of a single feature.
        """
        if self.count < 2:
            remedy = "Sample more of them."
            raise DiffESError("features", expected="two images or more", found=str(self.count), remedy=remedy)
        return Gaussian(self.mean, self.scatter / (self.count - 1))
