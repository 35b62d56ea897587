"""The reference of the bundled models: a small classifier of tiles, whose features serve a Fréchet distance offline,
and its statistics over the real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..pipelines.bundled import FOLDER
from ..scoring.metrics import frechet_distance, kernel_distance, moments

CLASSES = ("floor", "wall", "feature", "monster", "weapon", "armour", "trinket", "icon")


class TileClassifier(nn.Module):
    """Names a tile's class; its 64 pooled features serve the Fréchet distance."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((3, 24), (24, 40), (40, 64)):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(4, c_out), nn.SiLU()]
            layers += [nn.Conv2d(c_out, c_out, 3, stride=2, padding=1), nn.GroupNorm(4, c_out), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.SiLU())
        self.head = nn.Linear(64, len(CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] to (N, 64)."""
        pooled: Tensor = self.body(images).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images))
        return scores


@dataclass(frozen=True)
class Reference:
    """The classifier and the mean and covariance of its features over the real tiles."""

    classifier: TileClassifier
    mean: Tensor  # (64,)
    covariance: Tensor  # (64, 64)

    @torch.no_grad()
    def distance(self, images: Tensor) -> float:
        """Fréchet distance of images in [0, 1], (N, 3, 32, 32), to the real tiles."""
        return frechet_distance(*moments(self.features(images)), self.mean, self.covariance)

    @torch.no_grad()
    def between(self, images: Tensor, others: Tensor) -> float:
        """Kernel distance of two sets of images in [0, 1], (N, 3, 32, 32) each, whose classes are dealt alike."""
        return kernel_distance(self.features(images), self.features(others))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Of images in [0, 1], (N, 3, 32, 32): (N, 64)."""
        return torch.cat([self.classifier.features(part * 2 - 1) for part in images.split(256)])


def load_reference() -> Reference:
    """The statistics that ship with the bundled models."""
    with safe_open(FOLDER / "tile-features.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["about"])
    assert tuple(about["classes"]) == CLASSES
    classifier = TileClassifier().eval()
    prefix = "classifier."
    classifier.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return Reference(classifier, tensors["real.mean"], tensors["real.covariance"])
