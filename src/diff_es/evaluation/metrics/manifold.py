"""Precision and recall of a set of features (Kynkäänniemi et al. 2019, arXiv 1904.06991), in blocks: memory does not
grow with the square of their number."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3
_BLOCK = 2048


def precision_recall(features: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of features (N, F) within the balls of the real ones (M, F), and of the real ones within theirs.

    A ball reaches from each feature to its k-th nearest of the same set, itself left out; N, M > k.
    """
    radii, real_radii = (_radii(one, neighbours) for one in (features, real))
    inside, found = (torch.zeros(len(one), dtype=torch.bool, device=one.device) for one in (features, real))
    for rows in _blocks(features):
        for columns in _blocks(real):
            distances = _distances(features[rows], real[columns])
            inside[rows] |= (distances <= real_radii[columns]).any(1)
            found[columns] |= (distances <= radii[rows, None]).any(0)
    return float(inside.double().mean()), float(found.double().mean())


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """(N,): how far away the k-th nearest other is."""
    radii = list[Tensor]()
    for rows in _blocks(features):
        nearest = features.new_full((rows.stop - rows.start, neighbours), torch.inf, dtype=torch.float64)
        for columns in _blocks(features):
            distances = _distances(features[rows], features[columns])
            if rows == columns:
                distances.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distances], 1).topk(neighbours, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _blocks(features: Tensor) -> list[slice]:
    return [slice(start, min(start + _BLOCK, len(features))) for start in range(0, len(features), _BLOCK)]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """By products of matrices, in float64, which leaves an error of about 1e-7 of the features' length."""
    return torch.cdist(x.double(), y.double(), compute_mode="use_mm_for_euclid_dist")
