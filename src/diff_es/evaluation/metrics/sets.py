"""Measures of a set of images beside real ones, by their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from ...scoring.metrics import frechet_distance
from ...utils.errors import DiffESError
from ...utils.seeds import derive_seed
from .contract import Summary
from .manifold import NEIGHBOURS, precision_recall
from .moments import Gaussian, Moments

Extractor = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] to features (N, F) on the CPU."""


@dataclass(frozen=True)
class Fid:
    """Fréchet distance (Heusel et al. 2017, arXiv 1706.08500); it falls with the number of images, so only those of
    equal numbers compare. Moments will do: features need not be kept."""

    features: Extractor
    name: str = "FID"
    unit: str = ""
    higher_is_better: bool = False

    def distance(self, features: Summary, real: Summary) -> Mapping[str, float]:
        ours, theirs = gaussian(features), gaussian(real)
        _check_alike(len(ours.mean), len(theirs.mean))
        return {"fid": frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)}


@dataclass(frozen=True)
class Kid:
    """Kernel distance (Bińkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy under the cubic
    kernel, free of bias, as the mean over subsets drawn of each set anew, with their standard deviation.

    Args:
        subsets: how many.
        size: of each, or as many as the smaller set has.
        seed: of the draws.
    """

    features: Extractor
    subsets: int = 100
    size: int = 1000
    seed: int = 0
    name: str = "KID"
    unit: str = ""
    higher_is_better: bool = False

    def distance(self, features: Summary, real: Summary) -> Mapping[str, float]:
        ours, theirs = (_each(one, 2) for one in (features, real))
        _check_alike(ours.shape[1], theirs.shape[1])
        size = min(self.size, len(ours), len(theirs))
        values = list[Tensor]()
        for subset in range(self.subsets):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "kid", subset))
            a, b = (one[torch.randperm(len(one), generator=generator)[:size]].double() for one in (ours, theirs))
            values.append(poly_mmd(b, a))
        found = torch.stack(values)
        return {"kid": float(found.mean()), "kid_std": float(found.std(correction=0))}


@dataclass(frozen=True)
class PrecisionRecall:
    """What share of the images looks real, and what share of the real ones is covered; for as many of each."""

    features: Extractor
    neighbours: int = NEIGHBOURS
    name: str = "precision and recall"
    unit: str = ""
    higher_is_better: bool = True

    def distance(self, features: Summary, real: Summary) -> Mapping[str, float]:
        ours, theirs = (_each(one, self.neighbours + 1) for one in (features, real))
        _check_alike(ours.shape[1], theirs.shape[1])
        precision, recall = precision_recall(ours, theirs, self.neighbours)
        return {"precision": precision, "recall": recall}


def gaussian(summary: Summary) -> Gaussian:
    """The mean and covariance of features, or of what was kept of them.

    Raises:
        DiffESError: it is of fewer than two images.
    """
    moments = Moments.of(_each(summary, 2)) if isinstance(summary, Tensor) else summary
    return moments.gaussian() if isinstance(moments, Moments) else moments


def _each(summary: Summary, least: int) -> Tensor:
    """Features one by one, at least so many."""
    if not isinstance(summary, Tensor) or summary.dim() != 2 or len(summary) < least:
        found = str(tuple(summary.shape)) if isinstance(summary, Tensor) else type(summary).__name__
        remedy = "Sample more images, and keep the features of each."
        raise DiffESError("features", expected=f"(N, F) with N at least {least}", found=found, remedy=remedy)
    return summary


def _check_alike(ours: int, theirs: int) -> None:
    if ours != theirs:
        remedy = "Take the features of both from one network."
        raise DiffESError("real", expected=f"{ours} features", found=str(theirs), remedy=remedy)
