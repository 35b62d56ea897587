"""What a measure of images is asked for, by what it compares them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ...utils.errors import DiffESError
from .moments import Gaussian, Moments

Summary = Tensor | Moments | Gaussian
"""Of a set of images: its features, (N, F), or as much of them as a distance needs."""


class Measure(Protocol):
    """What every measure says of itself."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...  # empty where it has none
    @property
    def higher_is_better(self) -> bool: ...


class Paired(Measure, Protocol):
    """Of images beside those of the dense model for the same noises."""

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] each to (N,)."""
        ...


class OfSet(Measure, Protocol):
    """Of a set of images beside real ones."""

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, F), on the CPU; one image's do not depend on the others."""
        ...

    def distance(self, features: Summary, real: Summary) -> Mapping[str, float]:
        """Its figures by name."""
        ...


class OfText(Measure, Protocol):
    """Of images beside the prompts that they were asked for."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N prompts to (N,)."""
        ...


def check_images(images: Tensor, where: str = "images", least: int = 1) -> None:
    """Refuse what is no batch of images.

    Args:
        least: pixels that they have to be high and wide.

    Raises:
        DiffESError: it is not (N, 3, H, W) in [0, 1], N > 0, or too small.
    """
    shape, expected = tuple(images.shape), f"floats (N, 3, H, W) in [0, 1], at least {least} pixels high and wide"
    remedy = "Decode latents to images, clamp them to [0, 1], and take a measure that suits their size."
    fits = images.dim() == 4 and images.is_floating_point() and shape[1] == 3 and min(shape[2:]) >= least and shape[0]
    if not fits:
        raise DiffESError(where, expected=expected, found=f"{shape} of {images.dtype}", remedy=remedy)
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # which not-a-number fails too
        found = f"values from {float(low):g} to {float(high):g}"
        raise DiffESError(where, expected=expected, found=found, remedy=remedy)
