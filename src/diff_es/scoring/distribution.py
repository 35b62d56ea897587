"""How close a set of results is to a set of references, whichever belongs to which: by the energy distance of features.

Where a pruned model composes an image anew, the new one may be as good, and a distance to the old one cannot tell. What
a noisy or a blurred image cannot hide from is the distribution of features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..pipelines.families import Pipeline
from ..pipelines.sampling import decode
from ..utils.arguments import Text, checked
from ..utils.errors import DiffESError
from . import metrics


@dataclass(frozen=True)
class OfSets:
    """What measures that compare sets of samples, not each by itself, have in common.

    Args:
        features: ``module:attribute`` of a ``torch.nn.Module`` that takes images in [0, 1], (N, 3, H, W), to one row of
            features each. None: the logarithm of the latents' power in each channel and octave of spatial frequency.
    """

    features: Text | None = None
    least: ClassVar[int] = 2  # samples that are compared at once

    @property
    def of_images(self) -> bool:
        return self.features is not None

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return decode(pipe, latents) if self.of_images else latents

    def apart(self, reference: Tensor, result: Tensor) -> Tensor:
        """(N,): what each sample adds to the distance, which is their mean."""
        return metrics.energy_distances(*(self._described(one) for one in (reference, result)))

    def _described(self, shown: Tensor) -> Tensor:
        if self.features is None:
            return metrics.log_power(shown)
        network = feature_network(self.features)
        like = next(network.parameters(), shown)
        with torch.no_grad():
            rows: Tensor = network(shown.to(like))
        if not isinstance(rows, Tensor) or len(rows) != len(shown):
            remedy = "Wrap it in a module whose forward returns a tensor (N, D)."
            found = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise DiffESError(self.features, expected="a row of features an image", found=str(found), remedy=remedy)
        return rows.flatten(1)


@checked()
@dataclass(frozen=True)
class Distribution(OfSets):
    """How far two sets of features lie apart, relative to the spread of the reference's, with a minus: 0 is alike, and
    what is above it is chance."""

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        return -self.apart(reference, result)

    def error(self, closeness: float) -> float:
        return max(-closeness, 0.0)


@checked()
@dataclass(frozen=True)
class Blend(OfSets):
    """Signal-to-noise ratio in dB, of images where features are of images, in which what a set lacks of the reference's
    distribution is noise, too: no schedule wins by results that are each near, and noisier all together."""

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        noise = 10 ** (-metrics.snr_db(reference, result) / 10)
        apart = self.apart(reference, result).mean().clamp_min(0)
        return (-10 * torch.log10(noise + apart.to(noise))).clamp(max=metrics.EXACT_DB)

    def error(self, closeness: float) -> float:
        return metrics.noise_power(closeness)


@lru_cache(maxsize=1)
def feature_network(name: str) -> nn.Module:
    """The module of a name ``module:attribute``, which is not called for it: settings may come from others.

    Raises:
        DiffESError: there is none, or it is no ``torch.nn.Module``.
    """
    place, _, attribute = name.partition(":")
    expected, remedy = "module:attribute of a torch.nn.Module", "Put one at the top of a module that can be imported."
    try:
        network = getattr(import_module(place), attribute) if place and attribute else None
    except (ImportError, AttributeError) as error:
        raise DiffESError("features", expected=expected, found=f"{name!r} ({error})", remedy=remedy) from error
    if not isinstance(network, nn.Module):
        raise DiffESError("features", expected=expected, found=repr(name), remedy=remedy)
    return network.eval()
