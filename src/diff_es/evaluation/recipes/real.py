"""Sets of images beside real ones, as a run of a recipe judges them: features batch by batch, distances at the end."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...utils.errors import DiffESError, said
from ..metrics import Gaussian, Moments, OfSet, reference_images, reference_moments
from ..metrics.sets import Extractor, Fid
from ..tiles_reference import Reference

_BATCH = 64
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


class BesideReal(Protocol):
    """Of a set of images beside real ones."""

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, F), on the CPU; one image's do not depend on the others."""
        ...

    def figures(self, batches: Iterable[Tensor]) -> Mapping[str, float]:
        """Its figures by name, from the features of all images, which come a few at a time."""
        ...


def moments_of(batches: Iterable[Tensor]) -> Moments:
    """Of features (N, F) that come a few at a time: memory is that of one (F, F) matrix."""
    return reduce(operator.add, map(Moments.of, batches))


@dataclass(frozen=True)
class Tiles:
    """The Fréchet distance to real game tiles, by the features of the bundled classifier."""

    reference: Reference

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [0, 1] to (N, 64)."""
        return self.reference.features(images)

    def figures(self, batches: Iterable[Tensor]) -> Mapping[str, float]:
        """The distance, by the name of the metric."""
        distance = Fid(self.features).distance(moments_of(batches), self._real)
        return {"tiles": distance["fid"]}

    @property
    def _real(self) -> Gaussian:
        return Gaussian(self.reference.mean.double(), self.reference.covariance.double())


@dataclass(frozen=True)
class ByNetwork:
    """Measures that look with one network, beside the same real images.

    Args:
        reference: a reference batch of ADM, or a folder of images.
    """

    features: Extractor
    measures: Sequence[OfSet]
    reference: Path

    def figures(self, batches: Iterable[Tensor]) -> Mapping[str, float]:
        """Those of all its measures. Memory is that of moments for the Fréchet distance alone, otherwise that of all
        features, four bytes each; so is that of the real images of a folder."""
        each = None if self._moments_suffice else torch.cat(list(batches))
        ours = moments_of(batches) if each is None else each
        found = dict[str, float]()
        for measure in self.measures:
            real = self._moments if isinstance(measure, Fid) else self._each
            found |= measure.distance(ours, real)
        return found

    @property
    def _moments_suffice(self) -> bool:
        return all(isinstance(measure, Fid) for measure in self.measures)

    @cached_property
    def _moments(self) -> Gaussian:
        if self.reference.is_dir():
            return Moments.of(self._each).gaussian()
        return reference_moments(self.reference)

    @cached_property
    def _each(self) -> Tensor:
        return torch.cat([self.features(part) for part in self._images()])

    def _images(self) -> Iterator[Tensor]:
        return images_in(self.reference) if self.reference.is_dir() else reference_images(self.reference, _BATCH)


def images_in(folder: Path) -> Iterator[Tensor]:
    """The images of a folder in the order of their names, (1, 3, S, S) in [0, 1] each: the square in their middle.

    Raises:
        DiffESError: there are none, or one cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise DiffESError(str(folder), expected="images", found="none", remedy="Give the folder of the real images.")
    for path in paths:
        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):  # which Pillow clips in place of scaling them
                    raise ValueError(f"one of mode {file.mode}, with more than eight bits a value")
                pixels = torch.from_numpy(np.asarray(file.convert("RGB")).copy())
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, of broken files
            remedy = "Take it out, or save it with eight bits a value."
            raise DiffESError(str(path), expected="an image", found=said(error), remedy=remedy) from error
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        yield pixels[top : top + side, left : left + side].permute(2, 0, 1)[None].float() / 255
