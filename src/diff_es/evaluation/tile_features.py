"""What the bundled classifier sees in an image, by a name that a measure takes:
``--measure blend --features diff_es.evaluation.tile_features:network``.

It is read where this module is imported, which only such a search does.
"""

from __future__ import annotations

from torch import Tensor, nn

from .tiles_reference import TileClassifier, load_reference


class TileFeatures(nn.Module):
    """(N, 3, 32, 32) in [0, 1] to (N, 64)."""

    def __init__(self, classifier: TileClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images * 2 - 1)


network = TileFeatures(load_reference().classifier)
