"""How close a result is to its reference: what a search maximises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor

from ..pipelines.families import Pipeline
from ..pipelines.sampling import decode
from ..utils.arguments import checked
from . import metrics
from .distribution import Blend, Distribution


@checked()
@dataclass(frozen=True)
class LatentSNR:
    """Signal-to-noise ratio of the final latent against the dense one, in dB."""

    least: ClassVar[int] = 1  # as of every measure: samples that are compared at once
    of_images: ClassVar[bool] = False  # whether images are compared, or latents

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """As of every measure: what is compared, the latents themselves or their images."""
        return latents

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        """(N,) in the measure's own unit; higher is better."""
        return metrics.snr_db(reference, result)

    def error(self, closeness: float) -> float:
        """A closeness as an error that adds up over independent causes, 0 being exact."""
        return metrics.noise_power(closeness)


@checked()
@dataclass(frozen=True)
class BandSNR:
    """The same within each octave of spatial frequency, averaged: noise that the whole hides shows in some of them."""

    least: ClassVar[int] = 1
    of_images: ClassVar[bool] = False

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return latents

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        return metrics.band_snr_db(reference, result)

    def error(self, closeness: float) -> float:
        return metrics.noise_power(closeness)


@checked()
@dataclass(frozen=True)
class ImagePSNR:
    """Peak signal-to-noise ratio of the image, in dB."""

    least: ClassVar[int] = 1
    of_images: ClassVar[bool] = True

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return decode(pipe, latents)

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        return metrics.psnr_db(reference, result)

    def error(self, closeness: float) -> float:
        return metrics.noise_power(closeness)


@checked()
@dataclass(frozen=True)
class ImageSSIM:
    """Structural similarity of the image, at most 1."""

    least: ClassVar[int] = 1
    of_images: ClassVar[bool] = True

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return decode(pipe, latents)

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        if reference.dim() == 4:
            return metrics.ssim(reference, result)
        frames = (images.transpose(1, 2).flatten(0, 1) for images in (reference, result))  # of videos: frame by frame
        return metrics.ssim(*frames).view(len(reference), -1).mean(1)

    def error(self, closeness: float) -> float:
        return 1 - closeness


Measure: TypeAlias = LatentSNR | BandSNR | ImagePSNR | ImageSSIM | Distribution | Blend
"""A closeness of two sets of final latents that settings can be saved with."""
