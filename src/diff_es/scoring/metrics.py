"""Tensors to numbers: how close images and latents are, and how far two sets of images lie apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

EXACT_DB = 120.0  # what a bitwise equal result counts as, so that averages stay finite


def _decibel(power: Tensor, error: Tensor) -> Tensor:
    ratio = 10 * torch.log10(power / error.clamp_min(torch.finfo(error.dtype).tiny))
    return torch.where(error == 0, torch.full_like(ratio, EXACT_DB), ratio.clamp(max=EXACT_DB))


def snr_db(reference: Tensor, result: Tensor) -> Tensor:
    """Signal-to-noise ratio in dB of each sample, (N, ...) against (N, ...) to (N,): 10 log10(|r|^2 / |x - r|^2)."""
    reference, result = reference.cpu().double().flatten(1), result.cpu().double().flatten(1)
    return _decibel(reference.square().sum(1), (result - reference).square().sum(1))


def psnr_db(reference: Tensor, result: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1], (N, C, H, W) to (N,)."""
    error = (result.cpu().double() - reference.cpu().double()).flatten(1).square().mean(1)
    return _decibel(torch.ones_like(error), error)


def ssim(reference: Tensor, result: Tensor) -> Tensor:
    """Structural similarity of images in [0, 1], (N, C, H, W) to (N,)."""
    value = structural_similarity_index_measure(result.float(), reference.float(), data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(-1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two Gaussians (Heusel et al. 2017, arXiv 1706.08500)."""
    values, vectors = torch.linalg.eigh(cov_a.double())
    root_a = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b.double() @ root_a).clamp_min(0).sqrt().sum()
    trace = cov_a.double().trace() + cov_b.double().trace() - 2 * cross
    return float((mean_a - mean_b).double().square().sum() + trace)
