"""Corrections as products of thin eight-bit matrices: the smallest that keeps a layer's error within a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import Factor

_LEVELS = 127  # of an eight-bit integer, either side of zero


def factorise(delta: Tensor, hessian: Tensor, allowed: float) -> tuple[Factor, ...]:
    """Factors whose sum D' stands in for a correction D with an error tr((D - D') H (D - D')^T) of at most ``allowed``.

    The best product of a given rank is the projection of D on the leading left singular vectors of D H^(1/2) (reduced-
    rank regression); its rank is the least that keeps the error, rounding to eight bits included. Where rounding alone
    takes more than ``allowed``, another product makes up for it.

    Args:
        delta: (O, C) float64.
        hessian: (C, C) float64, positive definite: the second moments of the inputs.
        allowed: above 0.
    """
    root, left_over, factors = torch.linalg.cholesky(hessian), delta, list[Factor]()
    while _error(left_over, root) > allowed:
        vectors, singular, _ = torch.linalg.svd(left_over @ root, full_matrices=False)
        tails = singular.square().flip(0).cumsum(0).flip(0)  # [r]: the error that rank r leaves
        rank = max(1, int((tails > 0.9 * allowed).sum()))
        kept = vectors[:, :rank]
        factors.append(_rounded(kept, kept.T @ left_over))
        left_over = left_over - factors[-1].product().double()
    return tuple(factors)


def _error(delta: Tensor, root: Tensor) -> float:
    return float((delta @ root).square().sum())


def _rounded(left: Tensor, right: Tensor) -> Factor:
    """A product in eight bits; each of its r terms has its own scale on either side."""
    left_scale = left.abs().amax(0).clamp_min(1e-30) / _LEVELS
    right_scale = right.abs().amax(1).clamp_min(1e-30) / _LEVELS
    return Factor(
        (left / left_scale).round().to(torch.int8),
        left_scale.float(),
        (right / right_scale[:, None]).round().to(torch.int8),
        right_scale.float(),
    )
