"""Measures by the names that recipes and commands call them by."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import torch

from .inception import inception
from .lpips import Lpips, Trunk
from .paired import MS_SSIM, PSNR, SSIM, OfPairs
from .sets import Fid, Kid, PrecisionRecall
from .text import ClipScore, PickScore, clip


class MetricName(StrEnum):
    """Every measure of images."""

    PSNR = "psnr"
    SSIM = "ssim"
    MS_SSIM = "ms-ssim"
    LPIPS = "lpips"
    LPIPS_VGG = "lpips-vgg"
    FID = "fid"
    KID = "kid"
    PRECISION_RECALL = "precision-recall"
    CLIP_SCORE = "clip-score"
    PICK_SCORE = "pick-score"


CLIP_MODEL = "openai/clip-vit-large-patch14"
PICK_MODEL = "yuvalkirstain/PickScore_v1"
"""Of the hub."""


Known: TypeAlias = OfPairs | Lpips | Fid | Kid | PrecisionRecall | ClipScore | PickScore


def metric(
    name: MetricName,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    *,
    local_only: bool = False,
) -> Known:
    """The measure of that name.

    Args:
        weights: where its weights are, of those that have any: a file or its folder for what looks with Inception,
            AlexNet or VGG, a model's folder for CLIP. None: where they lie when they were fetched the usual way.
        device: that its network runs on.
        local_only: whether nothing is fetched from elsewhere.

    Raises:
        DiffESError: the weights are not there, and how to get them; or the extra ``text`` is missing.
    """
    match name:
        case MetricName.PSNR:
            return PSNR
        case MetricName.SSIM:
            return SSIM
        case MetricName.MS_SSIM:
            return MS_SSIM
        case MetricName.LPIPS:
            return Lpips(Trunk.ALEX, weights, device)
        case MetricName.LPIPS_VGG:
            return Lpips(Trunk.VGG, weights, device)
        case MetricName.FID:
            return Fid(inception(weights, device))
        case MetricName.KID:
            return Kid(inception(weights, device))
        case MetricName.PRECISION_RECALL:
            return PrecisionRecall(inception(weights, device))
        case MetricName.CLIP_SCORE:
            return ClipScore(clip(str(weights or CLIP_MODEL), device, local_only=local_only))
        case MetricName.PICK_SCORE:
            return PickScore(clip(str(weights or PICK_MODEL), device, local_only=local_only))
