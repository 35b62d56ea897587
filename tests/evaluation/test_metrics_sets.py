"""Measures of sets of images, against closed forms, double loops and what the published implementations give."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.weights import drawn, pictures, shapes_of
from torch import Tensor

from diff_es import DiffESError
from diff_es.evaluation.metrics import (
    Gaussian,
    MetricName,
    Moments,
    manifold,
    metric,
    reference_images,
    reference_moments,
)
from diff_es.evaluation.metrics.inception import FEATURES, WEIGHTS, Inception, InceptionFeatures, resized
from diff_es.evaluation.metrics.manifold import precision_recall
from diff_es.evaluation.metrics.sets import Fid, Kid, PrecisionRecall
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.scoring.metrics import kernel_distance
from diff_es.scoring.metrics import moments as at_once


def colours(images: Tensor) -> Tensor:
    """(N, 3, H, W) to (N, 3)."""
    return images.mean((2, 3))


def cloud(count: int, size: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5), st.floats(0, 1e4))
def test_moments_do_not_depend_on_the_batches(sizes: list[int], seed: int, shift: float) -> None:
    # to 1e-9 of the spread, which is 1, beside a mean of up to 1e4
    features = cloud(sum(sizes) + 2, 4, seed, shift)
    total = Moments.of(features[:2])
    for part in features[2:].split(sizes):
        total = total + Moments.of(part)
    mean, covariance = at_once(features)
    found = total.gaussian()
    assert total.count == len(features)
    torch.testing.assert_close(found.mean, mean, atol=1e-9, rtol=1e-12)
    torch.testing.assert_close(found.covariance, covariance, atol=1e-9, rtol=1e-9)


def test_moments_add_up_in_any_order() -> None:
    a, b, c = (Moments.of(cloud(count, 5, count, shift=100.0)) for count in (3, 8, 1))
    for left, right in ((a + b + c, c + (b + a)), ((a + c) + b, a + (c + b))):
        assert left.count == right.count == 12
        torch.testing.assert_close(left.mean, right.mean, atol=1e-10, rtol=0)
        torch.testing.assert_close(left.scatter, right.scatter, atol=1e-9, rtol=0)


def test_fid_of_gaussians_has_a_closed_form() -> None:
    # diagonal covariances a and b, means m apart: |m|^2 + sum of (sqrt a - sqrt b)^2; to 1e-9
    a, b = torch.tensor([4.0, 1.0, 0.0]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    ours, real = Gaussian(torch.tensor([0.0, 3.0, 0.0]).double(), a.diag()), Gaussian(torch.zeros(3).double(), b.diag())
    assert Fid(colours).distance(ours, real)["fid"] == pytest.approx(9 + 1 + 4 + 0.25, abs=1e-9)
    assert Fid(colours).distance(real, real)["fid"] == pytest.approx(0, abs=1e-9)


def test_fid_by_batches_is_that_of_all_features() -> None:
    features, real = cloud(40, 6, 1), cloud(50, 6, 2, shift=0.5)
    streamed = Moments.of(features[:7]) + Moments.of(features[7:])
    whole = Fid(colours).distance(features, real)["fid"]
    assert Fid(colours).distance(streamed, Moments.of(real).gaussian())["fid"] == pytest.approx(whole, abs=1e-9)


def test_fid_of_the_bundled_classifier_is_that_of_the_report() -> None:
    reference = load_reference()
    images = pictures(40, 32, 32)
    fid, real = (
        Fid(lambda shown: reference.classifier.features(shown * 2 - 1).detach()),
        Gaussian(reference.mean, reference.covariance),
    )
    assert fid.distance(fid.features(images), real)["fid"] == pytest.approx(reference.distance(images), rel=1e-5)


def kernel(x: Tensor, y: Tensor) -> float:
    return float((x.double() @ y.double() / len(x) + 1) ** 3)


def test_kid_by_double_loops() -> None:
    # one subset that holds everything, in another order: the estimate free of bias of Binkowski et al.; to 1e-9
    ours, real = cloud(7, 4, 1), cloud(7, 4, 2, shift=0.5)
    total, within, across = range(7), 7 * 6, 7 * 7
    expected = sum(kernel(one[i], one[j]) for one in (ours, real) for i in total for j in total if i != j) / within
    expected -= 2 * sum(kernel(ours[i], real[j]) for i in total for j in total) / across
    found = Kid(colours, subsets=3).distance(ours, real)
    assert found["kid"] == pytest.approx(expected, abs=1e-9)
    assert found["kid_std"] == pytest.approx(0, abs=1e-9)


def test_kid_over_subsets_is_near_that_of_all_and_repeats() -> None:
    ours, real = cloud(400, 3, 1), cloud(300, 3, 2, shift=0.7)
    kid = Kid(colours, subsets=60, size=100)
    found = kid.distance(ours, real)
    assert found == kid.distance(ours, real)
    assert found != Kid(colours, subsets=60, size=100, seed=1).distance(ours, real)
    error = found["kid_std"] / 60**0.5
    assert found["kid"] == pytest.approx(kernel_distance(ours[:300], real), abs=5 * error + 0.1 * found["kid"])
    alike = kid.distance(cloud(400, 3, 3), cloud(400, 3, 4))
    assert abs(alike["kid"]) < alike["kid_std"] < found["kid"]


def by_brute_force(features: Tensor, real: Tensor, neighbours: int) -> tuple[float, float]:
    """Equation 1 of Kynkäänniemi et al. 2019, one pair after the other."""

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = [sorted(float((c - o).norm()) for o in centres)[neighbours] for c in centres]  # the first is c itself
        hits = [any(float((p - c).norm()) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(hits) / len(points)

    return covered(features.double(), real.double()), covered(real.double(), features.double())


@pytest.mark.parametrize("block", [5, 16, 2048])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_by_brute_force(block: int, neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "_BLOCK", block)
    features, real = cloud(37, 3, 1, shift=0.5), cloud(29, 3, 2)
    features[20:] *= 3
    found = precision_recall(features, real, neighbours)
    assert found == by_brute_force(features, real, neighbours)
    assert 0 < found[0] < 1
    assert 0 < found[1] < 1


def test_precision_and_recall_of_equal_sets_and_of_sets_far_apart() -> None:
    measure, features = PrecisionRecall(colours), cloud(30, 3, 1)
    assert measure.distance(features, features.clone()) == {"precision": 1, "recall": 1}
    assert measure.distance(features, features + 100) == {"precision": 0, "recall": 0}
    few = torch.cat([features[:5]] * 6) + 0.01 * cloud(30, 3, 2)  # all of them good, and little of what there is
    found = measure.distance(few, features)
    assert found["precision"] == 1
    assert found["recall"] < 0.5


def test_what_a_distance_cannot_take_is_refused() -> None:
    features, moments = cloud(8, 3, 1), Moments.of(cloud(8, 3, 1))
    for measure in (Kid(colours), PrecisionRecall(colours)):
        with pytest.raises(DiffESError, match=r"expected \(N, F\) with N at least \d, found Moments"):
            measure.distance(moments, features)
        with pytest.raises(DiffESError, match=r"found \(1, 3\)"):
            measure.distance(features, features[:1])
    with pytest.raises(DiffESError, match="expected two images or more, found 1"):
        Fid(colours).distance(Moments.of(features[:1]), features)
    for other in (Fid(colours), Kid(colours), PrecisionRecall(colours)):
        with pytest.raises(DiffESError, match="real: expected 3 features, found 4"):
            other.distance(features, cloud(8, 4, 1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn ones of the published names and shapes, which :func:`drawn` makes the same anywhere."""
    path = tmp_path_factory.mktemp("inception") / WEIGHTS.file
    torch.save(drawn(shapes_of(Inception().state_dict())), path)
    return path


def test_inception_is_that_of_torch_fidelity(weights: Path) -> None:
    # torch-fidelity 0.4.0 for the same weights and images; of 2048 features every 256th, their mean and deviation; to
    # 1e-4, where another way to resize is 1e-2 away
    features = InceptionFeatures(weights.parent)(pictures(2, 64, 96))
    first = [2.4954774, 0.9394014, 0.0061299, 0.0, 0.3380143, 0.0030003, 5.2410645, 2.1021307]
    second = [2.4815288, 0.8129261, 0.0, 0.0, 0.2900369, 0.0284226, 5.5144749, 2.3045361]
    assert features.shape == (2, FEATURES)
    torch.testing.assert_close(features[:, ::256], torch.tensor([first, second]), atol=1e-4, rtol=0)
    assert features.mean(1).tolist() == pytest.approx([2.7331717, 2.4806275], abs=1e-4)
    assert features.std(1).tolist() == pytest.approx([3.8609674, 3.4987764], abs=1e-4)


def test_the_network_is_read_once_for_all_measures_that_share_it(weights: Path) -> None:
    names = (MetricName.FID, MetricName.KID, MetricName.PRECISION_RECALL)
    fid, kid, both = (metric(name, weights) for name in names)
    assert fid.features is kid.features is both.features  # type: ignore[union-attr]


def test_without_inception_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        DiffESError, match=r"pt_inception-2015-12-05-6726825d\.pth, found no such file\. Fetch https://"
    ):
        metric(MetricName.KID)
    with pytest.raises(DiffESError, match=r"other\.pth: expected the weights pt_inception"):
        metric(MetricName.FID, tmp_path / "other.pth")
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DiffESError, match=r"found Missing key\(s\) in state_dict: .*again\."):
        metric(MetricName.FID, tmp_path / "other.pth")


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 11), (9, 4, 3)])
def test_resized_by_loops(height: int, width: int, side: int) -> None:
    # TensorFlow 1 without aligned corners: new pixel i lies at i * size / side; to 1e-4 of 255
    image = pictures(1, height, width)[0, 0].double() * 255
    found = resized(image.float()[None, None], side)[0, 0]
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            below = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            assert float(found[i, j]) == pytest.approx(float(above * (top + 1 - y) + below * (y - top)), abs=1e-4)


@pytest.fixture
def batch(tmp_path: Path) -> dict[str, Any]:
    """A small reference batch in the layout of ADM's."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "arr_0": rng.integers(0, 256, (7, 6, 5, 3), np.uint8),
        "mu": rng.normal(size=4),
        "mu_s": np.zeros(2),
    }
    arrays |= {"sigma": np.cov(rng.normal(size=(4, 9))), "sigma_s": np.eye(2), "arr_1": np.arange(7)}
    np.savez(tmp_path / "batch.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    return {**arrays, "path": tmp_path / "batch.npz", "packed": tmp_path / "packed.npz"}


def test_a_reference_batch_gives_its_moments_and_images(batch: dict[str, Any]) -> None:
    found = reference_moments(batch["path"])
    assert torch.equal(found.mean, torch.from_numpy(batch["mu"]))
    assert torch.equal(found.covariance, torch.from_numpy(batch["sigma"]))
    for path in (batch["path"], batch["packed"]):
        parts = list(reference_images(path, 3))
        assert [tuple(part.shape) for part in parts] == [(3, 3, 6, 5), (3, 3, 6, 5), (1, 3, 6, 5)]
        pixels = torch.from_numpy(batch["arr_0"]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(torch.cat(parts), pixels)


def test_what_is_no_reference_batch_is_refused(batch: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"mu": np.zeros(3)}, "sigma is not a file", "arr_0"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"found \(3,\) and \(4, 4\)", "arr_0"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "could not convert", "arr_0"),
        ({"mu": np.array([None]), "sigma": np.eye(1), "arr_0": np.array([None])}, "pickle", r"found \(1,\) of object"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "mu is not a file", "of float64"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, "mu is not a file", r"found \(2, 4, 4\) of uint8"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "mu is not a file", "of uint8"),
    ]
    for arrays, of_moments, of_images in wrong:
        np.savez(path, **arrays)
        with pytest.raises(DiffESError, match=of_moments):
            reference_moments(path)
        with pytest.raises(DiffESError, match=of_images):
            list(reference_images(path, 2))
    with zipfile.ZipFile(path, "w") as file, zipfile.ZipFile(batch["path"]) as whole:
        file.writestr("arr_0.npy", whole.read("arr_0.npy")[:-10])
    with pytest.raises(DiffESError, match="ends 10 bytes early"):
        list(reference_images(path, 2))
    for content in (b"", b"text", batch["path"].read_bytes()[:400]):
        path.write_bytes(content)
        for read in (reference_moments, lambda place: list(reference_images(place, 2))):
            with pytest.raises(DiffESError, match=r"other\.npz: expected"):
                read(path)
    with pytest.raises(DiffESError, match=r"missing\.npz"):
        reference_moments(tmp_path / "missing.npz")
