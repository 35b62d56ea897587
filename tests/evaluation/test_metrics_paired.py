"""Measures of pairs of images, against closed forms, loops and what the published implementations give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.helpers.weights import drawn, pictures
from torch import Tensor

from diff_es import DiffESError
from diff_es.evaluation.metrics import MetricName, metric
from diff_es.evaluation.metrics.lpips import Lpips, Trunk, heads

PAIRS = (MetricName.PSNR, MetricName.SSIM, MetricName.MS_SSIM)
CONVOLUTIONS = {  # their number, width in and out, and kernel
    Trunk.ALEX: ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)),
    Trunk.VGG: (
        *((0, 3, 64, 3), (2, 64, 64, 3), (5, 64, 128, 3), (7, 128, 128, 3)),
        *((10, 128, 256, 3), (12, 256, 256, 3), (14, 256, 256, 3)),
        *((17, 256, 512, 3), (19, 512, 512, 3), (21, 512, 512, 3)),
        *((24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3)),
    ),
}
"""Of the files that torchvision published."""


def made(name: MetricName) -> Any:
    return metric(name)


def noisy(images: Tensor, amount: float, seed: int = 5) -> Tensor:
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return (1 - amount) * images + amount * noise


@pytest.mark.parametrize(("name", "least"), [(MetricName.PSNR, 1), (MetricName.SSIM, 11), (MetricName.MS_SSIM, 176)])
def test_the_smallest_images_that_a_measure_takes(name: MetricName, least: int) -> None:
    images = pictures(2, least, least)
    assert made(name)(images, images).shape == (2,)
    if least > 1:
        with pytest.raises(DiffESError, match=f"at least {least} pixels high and wide, found"):
            made(name)(images[..., 1:, :], images[..., 1:, :])


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_no_pair_of_images_is_refused(name: MetricName) -> None:
    images, measure = pictures(2, 176, 176), made(name)
    wrong: list[tuple[Callable[[], Tensor], str]] = [
        (lambda: images[:, :2], r"images: expected floats \(N, 3, H, W\) in \[0, 1\]"),
        (lambda: images[0], "images: expected"),
        (lambda: images[:0], "images: expected"),
        (lambda: (images * 255).byte(), r"found \(2, 3, 176, 176\) of torch.uint8"),
        (lambda: images * 2 - 1, "found values from -"),
        (lambda: images + torch.nan, "found values from nan to nan"),
    ]
    for make, words in wrong:
        with pytest.raises(DiffESError, match=words):
            measure(make(), images)
        with pytest.raises(DiffESError, match="reference: expected"):
            measure(images, make())
    with pytest.raises(DiffESError, match=r"reference: expected \(2, 3, 176, 176\), as images have, found \(1, "):
        measure(images, images[:1])


@pytest.mark.parametrize("name", PAIRS)
def test_equal_images_are_as_close_as_can_be_and_noise_takes_them_apart(name: MetricName) -> None:
    images, measure = pictures(2, 176, 176), made(name)
    exact = 120.0 if name is MetricName.PSNR else 1.0
    assert measure(images, images.clone()).tolist() == pytest.approx([exact] * 2, abs=1e-6)
    little, much = measure(noisy(images, 0.05), images), measure(noisy(images, 0.5), images)
    assert torch.all(little < exact - 1e-4)
    assert torch.all(much < little - 1e-2)


def test_psnr_of_a_constant_error() -> None:
    # 10 log10(1 / 0.1^2), to 1e-4 dB
    images = pictures(2, 16, 16) / 2
    assert made(MetricName.PSNR)(images + 0.1, images).tolist() == pytest.approx([20.0] * 2, abs=1e-4)


def test_structure_of_flat_images_by_the_formula() -> None:
    # contrasts are c2 / c2 = 1, so only luminance is left: l = (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2, which over
    # octaves counts at the coarsest one alone: l^0.1333. To 2e-4: variances of 0 come out as 1e-8 beside c2 = 9e-4.
    a, b = torch.full((1, 3, 176, 176), 0.2), torch.full((1, 3, 176, 176), 0.6)
    luminance = (0.24 + 1e-4) / (0.4 + 1e-4)
    assert float(made(MetricName.SSIM)(a, b)) == pytest.approx(luminance, abs=2e-4)
    assert float(made(MetricName.MS_SSIM)(a, b)) == pytest.approx(luminance**0.1333, abs=2e-4)


def blurred(images: Tensor) -> Tensor:
    """By a Gaussian window of 11 pixels, deviation 1.5, as two sums of shifted images; mirrored at the border."""
    weights = torch.exp(-((torch.arange(11) - 5.0).double() ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    height, width = images.shape[2:]
    wide = F.pad(images, (5, 5, 5, 5), mode="reflect")
    rows = sum(w * wide[:, :, i : i + height] for i, w in enumerate(weights.tolist()))
    assert isinstance(rows, Tensor)
    both = sum(w * rows[..., i : i + width] for i, w in enumerate(weights.tolist()))
    assert isinstance(both, Tensor)
    return both


def maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast with structure around each pixel, by equations 6 and 13 of Wang et al. 2004."""
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    contrast = (2 * (blurred(x * y) - mean_x * mean_y) + 0.03**2) / (var_x + var_y + 0.03**2)
    return (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2), contrast


def by_scales(x: Tensor, y: Tensor) -> Tensor:
    """By equation 7 of Wang et al. 2003: contrasts where the window fits, the last octave's map whole."""
    product = torch.ones(len(x), dtype=torch.float64)
    for octave, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        luminance, contrast = maps(x, y)
        seen = contrast * luminance if octave == 4 else contrast[..., 5:-5, 5:-5]
        product *= seen.flatten(1).mean(1) ** weight
        x, y = (one.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) for one in (x, y))
    return product


def test_ssim_by_its_definition() -> None:
    # in float64; to 2e-5
    reference = pictures(2, 40, 50, seed=1)
    images = noisy(reference, 0.2)
    luminance, contrast = maps(images.double(), reference.double())
    found = made(MetricName.SSIM)(images, reference).double()
    torch.testing.assert_close(found, (luminance * contrast).flatten(1).mean(1), atol=2e-5, rtol=0)


def test_ms_ssim_by_its_definition() -> None:
    # in float64; to 2e-5
    reference = pictures(2, 192, 224, seed=1)
    images = noisy(reference, 0.2)
    found = made(MetricName.MS_SSIM)(images, reference).double()
    torch.testing.assert_close(found, by_scales(images.double(), reference.double()), atol=2e-5, rtol=0)


def test_ms_ssim_beside_pytorch_msssim() -> None:
    # pytorch-msssim 1.0.0 for the same images; it leaves the windows that overhang the border out of the last map, too
    reference = pictures(3, 192, 208, seed=1)
    found = made(MetricName.MS_SSIM)(0.8 * reference + 0.2 * noisy(reference, 1.0), reference)
    assert found.tolist() == pytest.approx([0.8781, 0.8763, 0.8789], abs=5e-4)


def trunk_file(trunk: Trunk, path: Path, seed: int = 0) -> Path:
    """Of the published names and shapes, the classifier's among them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, before, width, kernel in CONVOLUTIONS[trunk]:
        shapes |= {f"features.{number}.weight": (width, before, kernel, kernel), f"features.{number}.bias": (width,)}
    torch.save({**drawn(shapes, seed), "classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[Trunk, Path]:
    folder = tmp_path_factory.mktemp("trunks")
    return {trunk: trunk_file(trunk, folder / f"{trunk}.pth") for trunk in Trunk}


@pytest.mark.parametrize(
    ("trunk", "published"),
    [(Trunk.ALEX, (0.1358896196, 0.1319954246, 0.1226196960)), (Trunk.VGG, (0.1942810416,))],
)
def test_lpips_is_that_of_the_package_lpips(trunk: Trunk, published: Any, trunks: dict[Trunk, Path]) -> None:
    # lpips 0.1.4, with its own heads, for the same weights of the trunk and the same images; to 1e-5
    measure, count = Lpips(trunk, trunks[trunk]), len(published)
    images, reference = (pictures(3, 64, 80, seed=seed)[:count] for seed in (1, 2))
    assert measure(images, reference).tolist() == pytest.approx(published, abs=1e-5)
    assert measure(images, images.clone()).tolist() == [0] * count
    torch.testing.assert_close(measure(reference, images), measure(images, reference))


def test_lpips_by_hand(trunks: dict[Trunk, Path]) -> None:
    # in float64 by the equation of the paper, one pixel of a feature map after the other; to 1e-5
    weights = {name: one.double() for name, one in torch.load(trunks[Trunk.ALEX]).items()}
    pair = [pictures(1, 32, 40, seed=seed).double() for seed in (3, 4)]
    mean, deviation = (
        torch.tensor(one).double()[:, None, None] for one in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    maps, total = [(one - mean) / deviation for one in pair], 0.0
    steps = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # of the convolutions, with their padding
    for head, (number, stride, padding) in zip(heads(Trunk.ALEX), steps, strict=True):
        if number in (3, 6):
            maps = [F.max_pool2d(one, 3, 2) for one in maps]
        kernel, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
        maps = [F.conv2d(one, kernel, bias, stride, padding).clamp_min(0) for one in maps]
        _, _, height, width = maps[0].shape
        for place in [(row, column) for row in range(height) for column in range(width)]:
            a, b = (one[(0, slice(None), *place)] for one in maps)
            total += float((head * (a / a.norm() - b / b.norm()).square()).sum()) / (height * width)
    measure = Lpips(Trunk.ALEX, trunks[Trunk.ALEX])
    assert float(measure(pair[0].float(), pair[1].float())) == pytest.approx(total, abs=1e-5)


def test_lpips_of_an_image_does_not_see_its_batch(trunks: dict[Trunk, Path]) -> None:
    measure = Lpips(Trunk.ALEX, trunks[Trunk.ALEX])
    images, reference = pictures(19, 31, 31, seed=1), pictures(19, 31, 31, seed=2)  # more than are run at once
    alone = torch.cat([measure(images[i : i + 1], reference[i : i + 1]) for i in (0, 17, 18)])
    torch.testing.assert_close(measure(images, reference)[[0, 17, 18]], alone)
    with pytest.raises(DiffESError, match="at least 31 pixels"):
        measure(images[..., :30], reference[..., :30])


@pytest.mark.parametrize(
    ("trunk", "widths"), [(Trunk.ALEX, [64, 192, 384, 256, 256]), (Trunk.VGG, [64, 128, 256, 512, 512])]
)
def test_the_heads_have_a_number_a_channel_and_none_is_negative(trunk: Trunk, widths: list[int]) -> None:
    assert [len(head) for head in heads(trunk)] == widths
    assert min(float(head.min()) for head in heads(trunk)) >= 0


def test_weights_lie_where_torch_keeps_them_or_in_a_folder_or_file(
    trunks: dict[Trunk, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    where, file = tmp_path / "hub" / "checkpoints", "alexnet-owt-7be5be79.pth"
    with pytest.raises(
        DiffESError, match=rf"checkpoints/{file}: expected the weights {file}, found no such file"
    ) as error:
        metric(MetricName.LPIPS)
    assert f"Fetch https://download.pytorch.org/models/{file} and save it there" in str(error.value)
    where.mkdir(parents=True)
    trunk_file(Trunk.ALEX, where / file)
    safe = tmp_path / "alex.safetensors"
    save_file(torch.load(where / file), safe)
    images, reference = pictures(1, 32, 32, seed=1), pictures(1, 32, 32, seed=2)
    found: list[Any] = [metric(MetricName.LPIPS, place) for place in (None, where, trunks[Trunk.ALEX], safe)]
    assert len({float(one(images, reference)) for one in found}) == 1


def test_other_weights_are_refused(trunks: dict[Trunk, Path], tmp_path: Path) -> None:
    with pytest.raises(DiffESError, match=r"expected the weights alexnet-.*Fetch https://.* again"):
        metric(MetricName.LPIPS, trunks[Trunk.VGG])
    wrong = {"torn.pth": trunks[Trunk.ALEX].read_bytes()[:1000], "text.pth": b"not weights", "empty.safetensors": b""}
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DiffESError, match=f"{name}: expected the weights alexnet-"):
            metric(MetricName.LPIPS, tmp_path / name)
    torch.save(["no", "dictionary"], tmp_path / "list.pth")
    with pytest.raises(DiffESError, match="found no dictionary of tensors"):
        metric(MetricName.LPIPS, tmp_path / "list.pth")
