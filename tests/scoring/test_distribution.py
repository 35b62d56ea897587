"""Laws of what compares sets of samples: its mean is what it estimates, and no set gains by noise or blur."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.tiny import CALL, assert_same_plans, settings, tiny
from torch import Tensor

from diff_es import Blend, DiffESError, Distribution, Run, compress, load
from diff_es.compression.settings import describe, restore
from diff_es.compression.survey import survey
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.scoring.distribution import feature_network
from diff_es.scoring.fitness import _parts
from diff_es.scoring.metrics import EXACT_DB, energy_distances, log_power, snr_db
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_energy_distance_by_hand() -> None:
    x, y = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [1.0]])
    # between different places: across 2 and 1, within x 3, within y 0; each twice
    across, within = (1 + 2) / 2, 3
    assert float(energy_distances(x, y).mean()) == pytest.approx((2 * across - within - 0) / within)


def test_equal_sets_are_at_zero_exactly_and_sets_of_one_distribution_around_it() -> None:
    x = drawn(0, 6, 5)
    assert energy_distances(x, x.clone()).tolist() == [0.0] * 6
    chance = torch.stack([energy_distances(drawn(i, 8, 4), drawn(1000 + i, 8, 4)).mean() for i in range(400)])
    assert abs(float(chance.mean())) < 3 * float(chance.std()) / 20
    assert float(chance.min()) < 0, "an estimate without bias is below zero by chance"


@given(st.floats(0.3, 3), st.integers(0, 50))
def test_it_does_not_see_the_unit_and_sees_what_is_shifted(scale: float, seed: int) -> None:
    x, y = drawn(seed, 12, 3).double(), drawn(seed + 99, 12, 3).double()
    torch.testing.assert_close(energy_distances(x * scale, y * scale), energy_distances(x, y))
    far = [float(energy_distances(x, y + shift).mean()) for shift in (0.0, 2.0, 4.0, 8.0)]
    assert far == sorted(far)


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (5, 7)])
def test_octaves_hold_all_of_the_power(size: tuple[int, int]) -> None:
    latents = drawn(1, 3, 2, *size).double()
    whole = log_power(latents).exp().view(3, 2, -1).sum(-1)
    torch.testing.assert_close(whole, latents.square().sum((2, 3)) * size[0] * size[1])


def test_of_videos_frames_are_averaged_and_of_tokens_channels_have_their_power() -> None:
    frames = drawn(2, 3, 2, 4, 8, 8)
    each = torch.stack([log_power(frames[:, :, i]).exp() for i in range(4)]).mean(0)
    torch.testing.assert_close(log_power(frames).exp(), each)
    tokens = drawn(3, 3, 10, 4)
    torch.testing.assert_close(log_power(tokens).exp(), tokens.double().square().mean(1))


def test_no_set_gains_by_noise_or_by_blur() -> None:
    reference = torch.nn.functional.avg_pool2d(drawn(4, 16, 4, 18, 18), 3, 1)  # smooth, as images are
    noisy = reference + 0.2 * drawn(5, *reference.shape)
    blurred = torch.nn.functional.avg_pool2d(reference, 3, 1, 1)
    moved = reference.roll(1, 0)  # another composition of the same kind, which is as good
    distribution, blend = Distribution(), Blend()

    def apart(result: Tensor) -> float:
        return distribution.error(float(distribution.closeness(reference, result).mean()))

    assert apart(reference) == 0
    assert min(apart(noisy), apart(blurred)) > 10 * apart(moved)
    for result in (noisy, blurred):
        assert (blend.closeness(reference, result) < snr_db(reference, result)).all()
    assert blend.closeness(reference, reference.clone()).tolist() == [EXACT_DB] * 16


def test_what_is_not_finite_is_no_score() -> None:
    reference, broken = drawn(6, 4, 2, 8, 8), torch.full((4, 2, 8, 8), math.nan)
    for measure in (Distribution(), Blend()):
        assert measure.closeness(reference, broken).isnan().all()


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 2))
def test_parts_are_all_probes_in_order_and_none_too_small(count: int, size: int, least: int) -> None:
    probes: list[Any] = list(range(count))
    size = max(size, 2 * least - 1)
    parts = _parts(probes, size, least)
    assert [one for part in parts for one in part] == probes
    assert all(len(part) <= size for part in parts)
    assert all(len(part) >= min(least, count) for part in parts)
    if least == 1:
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)


def test_a_network_is_found_by_its_name_and_never_called_to_be_found() -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    named = Distribution("tests.helpers.features:colours")
    assert named.of_images
    assert not Distribution().of_images
    mean = images.mean((2, 3))
    torch.testing.assert_close(named.apart(images, images.flip(1)), energy_distances(mean, mean.flip(1)))
    wrong = ("os:abort", "no_such_module:x", "tests.helpers.features:missing", "tests.helpers.features", ":", "")
    for name in (*wrong, "tests.helpers.features:nothing", "tests.helpers.features:Colours"):
        with pytest.raises(DiffESError, match=r"features: expected module:attribute of a torch\.nn\.Module"):
            feature_network(name)
    with pytest.raises(DiffESError, match=r"whole: expected a row of features an image, found \(1, 3\)"):
        Distribution("tests.helpers.features:whole").apart(images, images)


def test_the_bundled_classifier_has_a_name() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    features = load_reference().classifier.features(images * 2 - 1)
    apart = Distribution("diff_es.evaluation.tile_features:network").apart(images, images.flip(0))
    torch.testing.assert_close(apart, energy_distances(features, features.flip(0)))


@pytest.mark.parametrize("measure", [Distribution(), Blend("tests.helpers.features:colours")])
def test_a_search_goes_by_it_repeats_and_is_saved(measure: Distribution | Blend, tmp_path: Path) -> None:
    chosen = settings(
        sampling=replace(CALL, batch=3),
        measure=measure,
        search_noises=7,
        held_out_noises=3,
        sensitivity_noises=2,
        population=3,
        generations=1,
    )
    pipe = tiny()
    fast, again = (compress(pipe, 0.7, chosen, Run(reporter=QUIET)) for _ in range(2))
    assert fast.report == again.report
    assert_same_plans(fast.plans, again.plans)
    fast.save(tmp_path / "result")
    loaded = load(tmp_path / "result")
    assert loaded.report == fast.report
    assert loaded.report is not None
    assert loaded.report.settings.measure == measure
    assert restore(describe(chosen)).measure == measure


def test_too_few_samples_at_once_are_refused_before_anything_runs() -> None:
    pipe, base = (
        tiny(),
        settings(
            sampling=replace(CALL, batch=3),
            measure=Distribution(),
            search_noises=8,
            held_out_noises=3,
            sensitivity_noises=2,
        ),
    )
    wrong = {
        "batch": replace(base, sampling=replace(base.sampling, batch=2)),
        "first_rung": replace(base, first_rung=1),
        "search_noises": replace(base, search_noises=5, first_rung=4),
        "sensitivity_noises": replace(base, sensitivity_noises=1),
        "held_out_noises": replace(base, held_out_noises=1),
    }
    for name, one in wrong.items():
        with pytest.raises(DiffESError, match=f"{name}: expected at least [23] samples at once for Distribution"):
            survey(pipe, one, QUIET)
    with pytest.raises(DiffESError, match="features: expected module:attribute"):
        survey(pipe, replace(base, measure=Blend("no_such_module:x")), QUIET)
