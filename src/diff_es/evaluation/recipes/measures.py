"""The metrics that a recipe can name, by what they compare images with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ...scoring.metrics import frechet_distance, psnr_db, snr_db, ssim
from ...utils.errors import DiffESError
from ..tiles_reference import Reference, load_reference
from .recipe import Metric

Paired: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Samples, and the dense model's for the same noises, (N, ...) each, to (N,)."""
OfText: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
"""Images in [0, 1], (N, 3, H, W), and their prompts, to (N,)."""


class OfSet(Protocol):
    """Of a set of images beside real ones."""

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, F), on the CPU; one image's do not depend on the others."""

    def figures(self, batches: Iterable[Tensor]) -> Mapping[str, float]:
        """Its figures by name, from the features of all images, which come a few at a time."""


@dataclass
class Measures:
    """What a recipe's images are judged by, by name."""

    of_latents: dict[str, Paired] = field(default_factory=dict)
    of_images: dict[str, Paired] = field(default_factory=dict)
    of_set: dict[str, OfSet] = field(default_factory=dict)
    of_text: dict[str, OfText] = field(default_factory=dict)


KNOWN = ("snr", "psnr", "ssim", "tiles")


def measures_of(metrics: Sequence[Metric]) -> Measures:
    """What these names stand for: what needs files of its own reads them here.

    Raises:
        DiffESError: a name that stands for nothing, or options that a metric does not take.
    """
    found = Measures()
    for metric in metrics:
        match metric.name:
            case "snr":
                found.of_latents[metric.name] = _snr
            case "psnr":
                found.of_images[metric.name] = psnr_db
            case "ssim":
                found.of_images[metric.name] = ssim
            case "tiles":
                found.of_set[metric.name] = Tiles(load_reference())
            case name:
                remedy = "Mind the spelling, or leave it out of the recipe."
                raise DiffESError("metrics", expected=f"one of {', '.join(KNOWN)}", found=name, remedy=remedy)
        if metric.options:
            found_options, remedy = ", ".join(metric.options), "Leave them out."
            raise DiffESError(f"metrics, {metric.name}", expected="no options", found=found_options, remedy=remedy)
    return found


def _snr(latents: Tensor, reference: Tensor) -> Tensor:
    return snr_db(reference, latents)


@dataclass(frozen=True)
class Made:
    """What a contender has made of a batch."""

    latents: Tensor
    images: Tensor  # (N, 3, H, W) in [0, 1]
    prompts: tuple[str, ...]


def judge(measures: Measures, made: Made, dense: Made | None) -> dict[str, Tensor]:
    """Of each image, by metric: a score, (N,), or features, (N, F).

    Args:
        dense: what the dense model has made; None: it is this.
    """
    found = dict[str, Tensor]()
    if dense is not None:
        found |= {name: paired(made.latents, dense.latents) for name, paired in measures.of_latents.items()}
        found |= {name: paired(made.images, dense.images) for name, paired in measures.of_images.items()}
    found |= {name: of_set.features(made.images) for name, of_set in measures.of_set.items()}
    return found | {name: of_text(made.images, made.prompts) for name, of_text in measures.of_text.items()}


@dataclass(frozen=True)
class Tiles:
    """The Fréchet distance to real game tiles, by the features of the bundled classifier."""

    reference: Reference

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [0, 1] to (N, 64)."""
        return self.reference.features(images)

    def figures(self, batches: Iterable[Tensor]) -> Mapping[str, float]:
        """The distance, by the name of the metric."""
        seen = moments_of(batches)
        return {"tiles": frechet_distance(*seen, self.reference.mean, self.reference.covariance)}


def moments_of(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (F,) and covariance (F, F) of features (N, F) that come a few at a time, in float64.

    Squares are summed around the mean, by the update of Chan, Golub & LeVeque (1983), so memory is that of one matrix.

    Raises:
        DiffESError: fewer than two features.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.double()
        step, total = rows.mean(0) - mean, count + len(rows)
        centred = rows - rows.mean(0)
        scatter = scatter + centred.T @ centred + torch.outer(step, step) * (count * len(rows) / total)
        mean, count = mean + step * (len(rows) / total), total
    if count < 2:
        raise DiffESError("count", expected="two images or more", found=str(count), remedy="Sample more of them.")
    return mean, scatter / (count - 1)
