"""The metrics that a recipe can name, by what they compare images with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ...scoring.metrics import snr_db
from ...utils.errors import DiffESError
from ..metrics import MetricName, metric
from ..metrics.names import Known
from ..metrics.sets import Fid, Kid, PrecisionRecall
from ..metrics.text import ClipScore, PickScore
from ..tiles_reference import load_reference
from .real import BesideReal, ByNetwork, Tiles
from .recipe import Metric

Compared: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Samples, and the dense model's for the same noises, (N, ...) each, to (N,)."""
Suited: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
"""Images in [0, 1], (N, 3, H, W), and their prompts, to (N,)."""


@dataclass
class Measures:
    """What a recipe's images are judged by, by name."""

    of_latents: dict[str, Compared] = field(default_factory=dict)
    of_images: dict[str, Compared] = field(default_factory=dict)
    of_set: dict[str, BesideReal] = field(default_factory=dict)
    of_text: dict[str, Suited] = field(default_factory=dict)


SNR, TILES = "snr", "tiles"
KNOWN = (SNR, TILES, *MetricName)
"""The names of all metrics: of latents, of the bundled tiles, and those of ``evaluation.metrics``."""
_WITHOUT_WEIGHTS = (SNR, TILES, MetricName.PSNR, MetricName.SSIM, MetricName.MS_SSIM)
_BESIDE_REAL = (MetricName.FID, MetricName.KID, MetricName.PRECISION_RECALL)


Opened: TypeAlias = tuple[Metric, Known | None]
"""A metric of a recipe, and what measures it where that is one of ``evaluation.metrics``."""


def opened_metric(one: Metric, device: torch.device | str, *, local_only: bool = False) -> Opened:
    """What a name stands for, read where it needs files of its own.

    Args:
        device: that its network runs on.
        local_only: whether nothing is fetched from elsewhere.

    Raises:
        DiffESError: a name that stands for nothing, what a metric does not take or needs, or weights that are not here.
    """
    _check(one)
    if one.name in (SNR, TILES):
        return one, None
    weights = None if one.weights is None else Path(one.weights)
    return one, metric(MetricName(one.name), weights, device, local_only=local_only)


def measures_of(metrics: Sequence[Opened]) -> Measures:
    """All of a recipe; those that look with one network take its features once.

    Raises:
        DiffESError: two are of one name, so that their figures could not be told apart.
    """
    _check_names([one.name for one, _ in metrics])
    found, beside_real = Measures(), dict[tuple[str, str | None], list[Fid | Kid | PrecisionRecall]]()
    for one, measure in metrics:
        if one.name == SNR:
            found.of_latents[one.name] = _snr
        elif measure is None:
            found.of_set[one.name] = Tiles(load_reference())
        elif isinstance(measure, Fid | Kid | PrecisionRecall):
            assert one.reference is not None, "checked when it was opened"
            beside_real.setdefault((one.reference, one.weights), []).append(measure)
        elif isinstance(measure, ClipScore | PickScore):
            found.of_text[one.name] = measure
        else:
            found.of_images[one.name] = measure
    for (reference, weights), measures in beside_real.items():
        name = f"beside {reference}" if weights is None else f"beside {reference} by {weights}"
        found.of_set[name] = ByNetwork(measures[0].features, tuple(measures), Path(reference))
    return found


def _check_names(names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            expected, remedy = "metrics of different names", "Leave one of them out, or judge by it in another recipe."
            raise DiffESError(f"metrics[{place}]", expected=expected, found=f"a second {name}", remedy=remedy)


def _check(one: Metric) -> None:
    """Whether a metric is known, and has what it needs and nothing else."""
    if one.name not in KNOWN:
        remedy = "Mind the spelling, or leave it out of the recipe."
        raise DiffESError("metrics", expected=f"one of {', '.join(KNOWN)}", found=one.name, remedy=remedy)
    where, beside_real = f"metrics, {one.name}", one.name in _BESIDE_REAL
    if one.weights is not None and one.name in _WITHOUT_WEIGHTS:
        raise DiffESError(where, expected="no weights", found=one.weights, remedy="Leave them out.")
    if one.reference is not None and not beside_real:
        raise DiffESError(where, expected="no reference", found=one.reference, remedy="Leave it out.")
    if beside_real and (one.reference is None or not Path(one.reference).exists()):
        found, remedy = one.reference or "none", "docs/recipes.md says what it can be."
        raise DiffESError(where, expected="a reference that is here", found=found, remedy=remedy)


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
