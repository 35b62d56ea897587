"""Measures of images beside those of the dense model, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ...scoring.metrics import psnr_db, ssim
from ...utils.errors import DiffESError
from .contract import check_images


def check_pairs(images: Tensor, reference: Tensor, least: int = 1) -> None:
    """Refuse what are no pairs of images.

    Raises:
        DiffESError: one of them is no batch of images at least so high and wide, or their shapes differ.
    """
    check_images(images, least=least)
    check_images(reference, "reference", least)
    if images.shape != reference.shape:
        expected, remedy = f"{tuple(images.shape)}, as images have", "Compare images of the same noises and size."
        raise DiffESError("reference", expected=expected, found=str(tuple(reference.shape)), remedy=remedy)


@dataclass(frozen=True)
class OfPairs:
    """A measure that is a function alone; of images (N, 3, H, W) in [0, 1], first the reference, to (N,)."""

    name: str
    unit: str
    function: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool = True
    least: int = 1  # pixels, high and wide

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        check_pairs(images, reference, self.least)
        return self.function(reference, images)


def ms_ssim(reference: Tensor, result: Tensor) -> Tensor:
    """Structural similarity over five octaves (Wang, Simoncelli & Bovik 2003), of images in [0, 1], (N, C, H, W) to
    (N,). Contrasts that are reversed, below zero, count as zero."""
    value: Tensor = multiscale_structural_similarity_index_measure(
        result.float(), reference.float(), data_range=1.0, reduction="none"
    )
    return value.reshape(-1)


_WINDOW, _OCTAVES = 11, 5

PSNR = OfPairs("PSNR", "dB", psnr_db)
SSIM = OfPairs("SSIM", "", ssim, least=_WINDOW)
MS_SSIM = OfPairs("MS-SSIM", "", ms_ssim, least=_WINDOW * 2 ** (_OCTAVES - 1))
