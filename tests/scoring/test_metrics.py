"""Metrics against values worked out by hand and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from diff_es.scoring.metrics import (
    EXACT_DB,
    band_snr_db,
    frechet_distance,
    kernel_distance,
    moments,
    psnr_db,
    snr_db,
    ssim,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_snr_by_hand() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 10.0]])
    result = torch.tensor([[3.0, 4.5], [0.0, 0.0], [0.0, 9.0]])
    # 25 / 0.25, 1 / 1, 100 / 1
    assert snr_db(reference, result).tolist() == pytest.approx([20.0, 0.0, 20.0])
    assert snr_db(reference[:1].reshape(1, 1, 2, 1), result[:1].reshape(1, 1, 2, 1)).tolist() == pytest.approx([20.0])


def test_snr_does_not_see_the_scale_and_may_be_negative() -> None:
    x, y = torch.randn(4, 3, 5, generator=generator(1)), torch.randn(4, 3, 5, generator=generator(2))
    torch.testing.assert_close(snr_db(x * 8, y * 8), snr_db(x, y))
    assert float(snr_db(torch.ones(1, 4), torch.full((1, 4), 11.0))) == pytest.approx(-20.0)


def test_psnr_by_hand() -> None:
    reference = torch.zeros(3, 1, 2, 2)
    result = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 1.0), torch.tensor([[[0.2, 0], [0, 0]]])])
    expected = [20.0, 0.0, -10 * math.log10(0.04 / 4)]
    assert psnr_db(reference, result).tolist() == pytest.approx(expected, abs=1e-5)


def test_an_exact_result_counts_as_exact_and_a_near_one_never_as_more() -> None:
    x = torch.rand(2, 3, 16, 16, generator=generator())
    assert snr_db(x, x.clone()).tolist() == [EXACT_DB] * 2
    assert psnr_db(x, x.clone()).tolist() == [EXACT_DB] * 2
    near = x.double() + 1e-9
    assert snr_db(x.double(), near).tolist() == [EXACT_DB] * 2
    assert psnr_db(x.double(), near).tolist() == [EXACT_DB] * 2


def test_an_exact_result_counts_as_exact_for_a_reference_of_zeros_too() -> None:
    assert snr_db(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [EXACT_DB]


@pytest.mark.parametrize("metric", [snr_db, band_snr_db, psnr_db, ssim])
def test_a_sample_does_not_see_its_neighbours(metric) -> None:
    x, y = torch.rand(4, 3, 24, 24, generator=generator(1)), torch.rand(4, 3, 24, 24, generator=generator(2))
    y[2] = x[2]
    together: Tensor = metric(x, y)
    assert together.shape == (4,)
    torch.testing.assert_close(together, torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(4)]))
    changed = y.clone()
    changed[3] = 0
    torch.testing.assert_close(metric(x, changed)[:3], together[:3])
    assert metric(x, changed)[3] != together[3]


def test_ssim_is_one_for_equals_and_falls_with_noise() -> None:
    x, noise = torch.rand(3, 3, 32, 32, generator=generator(3)), torch.randn(3, 3, 32, 32, generator=generator(4))
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3)
    little, much = ssim(x, (x + 0.05 * noise).clamp(0, 1)), ssim(x, (x + 0.5 * noise).clamp(0, 1))
    assert torch.all(little < 1 - 1e-4)
    assert torch.all(much < little)


def test_ssim_of_two_flat_images_by_hand() -> None:
    # without variance only the luminance term is left: (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    assert float(ssim(a, b)) == pytest.approx((0.24 + 1e-4) / (0.4 + 1e-4), abs=1e-4)


def test_moments_by_loops() -> None:
    x = torch.randn(7, 3, generator=generator()) + 2
    mean, covariance = moments(x)
    rows = x.double().tolist()
    for i in range(3):
        assert float(mean[i]) == pytest.approx(sum(r[i] for r in rows) / 7)
        for j in range(3):
            mi, mj = float(mean[i]), float(mean[j])
            assert float(covariance[i, j]) == pytest.approx(sum((r[i] - mi) * (r[j] - mj) for r in rows) / 6)


def spd(size: int, seed: int) -> Tensor:
    root = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


def test_frechet_of_equals_is_zero_and_of_shifted_means_the_squared_shift() -> None:
    mean, covariance = torch.arange(5.0, dtype=torch.float64), spd(5, 1)
    shift = torch.tensor([3.0, 0, -4, 0, 1], dtype=torch.float64)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(mean, covariance, mean + shift, covariance) == pytest.approx(26.0)


def test_frechet_of_commuting_covariances_has_a_closed_form() -> None:
    # same eigenvectors, eigenvalues p and q: sum of (sqrt p - sqrt q)^2
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator(2), dtype=torch.float64))
    p = torch.tensor([4.0, 1, 9, 0, 0.25, 16], dtype=torch.float64)  # singular in one direction
    q = torch.tensor([1.0, 1, 4, 0.01, 0, 25], dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    distance = frechet_distance(zero, basis * p @ basis.T, zero, basis * q @ basis.T)
    assert distance == pytest.approx(float((p.sqrt() - q.sqrt()).square().sum()), abs=1e-6)


def test_frechet_against_the_eigenvalues_of_the_product_and_symmetric() -> None:
    a, b = (torch.zeros(5, dtype=torch.float64), spd(5, 3)), (torch.ones(5, dtype=torch.float64), spd(5, 4))
    # the eigenvalues of C_a C_b are real and positive although the product is not symmetric
    cross = torch.linalg.eigvals(a[1] @ b[1]).real.sqrt().sum()
    expected = 5 + float(a[1].trace() + b[1].trace() - 2 * cross)
    assert frechet_distance(*a, *b) == pytest.approx(expected)
    assert frechet_distance(*b, *a) == pytest.approx(expected)
    assert expected > 5.1


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 1, 5, 12), (2, 3, 1, 1), (2, 3, 4, 6, 6)])
def test_bands_by_the_whole_transform(shape: tuple[int, ...]) -> None:
    """Recomputed frequency by frequency; octaves end at half a cycle, a quarter, and so on, to one in the image."""
    reference, result = torch.randn(shape, generator=generator(1)), torch.randn(shape, generator=generator(2))
    power, error = (np.abs(np.fft.fft2(x.double().numpy())) ** 2 for x in (reference, result - reference))
    bands = dict[int, list[tuple[int, int]]]()
    for i, f in enumerate(np.fft.fftfreq(shape[-2])):
        for j, g in enumerate(np.fft.fftfreq(shape[-1])):
            radius = min(max(math.hypot(f, g), 1 / min(shape[-2:])), 0.5)
            bands.setdefault(math.floor(math.log2(0.5 / radius) + 1e-9), []).append((i, j))
    expected = [
        np.mean([10 * math.log10(_within(power[n], one) / _within(error[n], one)) for one in bands.values()])
        for n in range(len(reference))
    ]
    assert band_snr_db(reference, result).tolist() == pytest.approx(expected)


def _within(spectrum: np.ndarray, band: list[tuple[int, int]]) -> float:
    return float(sum(spectrum[..., i, j].sum() for i, j in band))


def test_noise_that_the_whole_hides_shows_in_its_band() -> None:
    smooth = torch.linspace(-1, 1, 32).repeat(1, 1, 32, 1) + 0.01 * torch.randn(1, 1, 32, 32, generator=generator())
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1, 16, 16)
    noisy, darker = smooth + 0.05 * checks, smooth - 0.05
    assert float(snr_db(smooth, noisy)) == pytest.approx(float(snr_db(smooth, darker)), abs=1e-3)
    assert float(band_snr_db(smooth, darker)) > 80, "all octaves but one are exact"
    lost = EXACT_DB - float(band_snr_db(smooth, noisy))
    assert lost > EXACT_DB - float(band_snr_db(smooth, darker)), "there is less to hide it"


def test_without_space_there_is_one_band() -> None:
    x, y = torch.randn(3, 24, generator=generator(1)), torch.randn(3, 24, generator=generator(2))
    assert torch.equal(band_snr_db(x, y), snr_db(x, y))


def test_the_kernel_distance_is_that_of_torchmetrics_but_for_pairs_of_one_index() -> None:
    x, y = torch.randn(40, 6, generator=generator(1)), torch.randn(40, 6, generator=generator(2)) * 1.5 + 0.2
    same = (((x * y).sum(1) / 6 + 1) ** 3).double().mean()
    across = (((x @ y.T) / 6 + 1) ** 3).double().mean()
    theirs = float(poly_mmd(x.double(), y.double()))
    assert kernel_distance(x, y) == pytest.approx(theirs + float(2 * (same - across) / 39), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 4])
def test_the_kernel_distance_of_one_distribution_is_zero_on_average(classes: int) -> None:
    """Of few samples, too, also where classes are dealt to them in turn."""
    centres = torch.randn(classes, 3, generator=generator(-1)) * 2
    dealt = centres[torch.arange(8) % classes]
    sets = [dealt + torch.randn(8, 3, generator=generator(seed)) for seed in range(400)]
    distances = [kernel_distance(one, other) for one, other in zip(sets[::2], sets[1::2], strict=True)]
    error = np.std(distances) / math.sqrt(len(distances))
    assert abs(np.mean(distances)) < 3 * error
    assert min(distances) < 0
