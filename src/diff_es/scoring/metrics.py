"""Tensors to numbers: how close images and latents are, and how far two sets of images lie apart."""

from __future__ import annotations

import math

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


def band_snr_db(reference: Tensor, result: Tensor) -> Tensor:
    """Signal-to-noise ratio in dB within each octave of spatial frequency, averaged over them: (N, ..., H, W) to (N,).

    Natural images have most of their power at low frequencies, where :func:`snr_db` sees nearly all that it sees: noise
    that is faint beside the whole drowns what there is at high ones. Here all octaves count alike. The lowest holds the
    mean; where there is no room for an octave, or no space at all, there is one band.
    """
    if reference.dim() < 4:
        return snr_db(reference, result)
    power, error = (_octave_powers(one).flatten(1, -2).sum(1) for one in (reference, result - reference))
    return _decibel(power, error).mean(1)


def log_power(latents: Tensor) -> Tensor:
    """Logarithm of the power in each channel and octave of spatial frequency, (N, C, ..., H, W) to (N, C * octaves); of
    what has no space, (N, ..., C), in each channel."""
    if latents.dim() < 4:
        power = latents.cpu().double().square().reshape(len(latents), -1, latents.shape[-1]).mean(1)
    else:
        powers = _octave_powers(latents)
        power = powers.reshape(*latents.shape[:2], -1, powers.shape[-1]).mean(2)
    return torch.log(power.flatten(1).clamp_min(torch.finfo(power.dtype).tiny))


def energy_distances(reference: Tensor, result: Tensor) -> Tensor:
    """What each sample adds to the energy distance of two sets of features (Szekely & Rizzo 2013), which is the kernel
    distance under -|x - y|, relative to the mean distance within the reference: (N, D) twice, N > 1, to (N,).

    The mean is free of bias for any N. Sample i of both belongs together, so pairs of it are left out, as in
    :func:`kernel_distance`.
    """
    x, y = result.cpu().double(), reference.cpu().double()
    within, across = _to_others(y, y), (_to_others(x, y) + _to_others(y, x)) / 2
    spread = within.mean().clamp_min(torch.finfo(within.dtype).tiny)
    return (2 * across - within - _to_others(x, x)) / spread


def _to_others(x: Tensor, y: Tensor) -> Tensor:
    """(N,): the mean distance of each of x to those of y, but for its own."""
    distances: Tensor = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # exact where they meet
    return (distances.sum(1) - distances.diagonal()) / (len(x) - 1)


def noise_power(decibel: float) -> float:
    """Relative to the signal's; infinite where a float cannot hold it."""
    return float(10 ** (-decibel / 10)) if decibel > -3000 else math.inf


def _octave_powers(values: Tensor) -> Tensor:
    """Of (..., H, W), in each octave of spatial frequency: float64 (..., octaves)."""
    height, width = values.shape[-2:]
    spectrum = torch.fft.rfft2(values.cpu().double()).abs().square() * _both_halves(width)
    octaves = _octaves(height, width)
    return torch.stack([(spectrum * (octaves == one)).sum((-2, -1)) for one in octaves.unique()], -1)


def _octaves(height: int, width: int) -> Tensor:
    """Of each entry of a real Fourier transform, counted from the highest frequencies down: (H, W // 2 + 1)."""
    least = 1 / min(height, width)  # cycles in a pixel
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    radius = (rows[:, None].square() + columns.square()).sqrt().clamp_min(least)
    return torch.log2(0.5 / radius.clamp(max=0.5)).floor()


def _both_halves(width: int) -> Tensor:
    """How often each column of a real Fourier transform is in the whole one: (W // 2 + 1,)."""
    columns = torch.arange(width // 2 + 1)
    return torch.where((columns == 0) | (2 * columns == width), 1.0, 2.0).double()


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


def kernel_distance(features: Tensor, others: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features, (N, D) each, under the cubic kernel (x . y / D + 1)^3
    (Binkowski et al. 2018, arXiv 1801.01401).

    Free of bias for any N, so sets of one distribution come out around zero, below it too; the Fréchet distance of few
    samples is too large. Sample i of both may have been asked for the same, such as its class: pairs of it are left out
    of the terms between the sets as they are within them, or classes that are dealt in turn would meet themselves more
    often across than within.
    """
    x, y = features.double(), others.double()
    return float(_apart(_cubic(x, x)) + _apart(_cubic(y, y)) - 2 * _apart(_cubic(x, y)))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _apart(kernel: Tensor) -> Tensor:
    """The mean over pairs of different samples."""
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))
