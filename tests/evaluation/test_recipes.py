"""Evaluations as files: each that ships is read, priced and run on a tiny pipeline of its class, killed and resumed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load, load_file, save_file
from tests.helpers.pipelines import flux, made, sd35, sdxl, stable_diffusion
from tests.helpers.tiny import tiny
from tests.helpers.weights import drawn, shapes_of
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from diff_es import Compressed, DiffESError, Reporter, Sampling, StorageError, UnsupportedModel
from diff_es.cli.app import main
from diff_es.evaluation.assemble import picture
from diff_es.evaluation.metrics import Moments
from diff_es.evaluation.metrics.inception import WEIGHTS, Inception, InceptionFeatures
from diff_es.evaluation.metrics.sets import Fid, Kid, PrecisionRecall
from diff_es.evaluation.recipes import run, shards
from diff_es.evaluation.recipes.measures import measures_of, opened_metric
from diff_es.evaluation.recipes.opened import Opened, opened
from diff_es.evaluation.recipes.price import Basis, price
from diff_es.evaluation.recipes.real import ByNetwork, images_in
from diff_es.evaluation.recipes.recipe import (
    RUNS,
    Conditions,
    Figure,
    Metric,
    Part,
    Recipe,
    Result,
    read_recipe,
    shipped,
)
from diff_es.evaluation.recipes.run import run_recipe
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.layers import DENSE, anatomy_of, fingerprint
from diff_es.pipelines.configured import call_without_pipeline, without_weights
from diff_es.pipelines.sampling import decode, denoiser_of, sample
from diff_es.pipelines.tracing import trace
from diff_es.pruning.macs import MacCounter
from diff_es.scoring.metrics import frechet_distance, psnr_db, snr_db
from diff_es.trajectory.stages import Schedule, Stages

QUIET, TILES = Reporter(quiet=True), (Metric("tiles"),)
MAKERS: dict[str, Callable[[], Any]] = {
    "DiTPipeline": tiny,
    "StableDiffusionPipeline": lambda: made(stable_diffusion),
    "StableDiffusionXLPipeline": lambda: made(sdxl),
    "StableDiffusion3Pipeline": lambda: made(sd35),
    "FluxPipeline": lambda: made(flux),
}
PUBLISHED = [name for name in shipped() if not name.startswith("bundled")]
PARAMETERS = {  # of the denoisers, as diffusers has them
    "DiTPipeline": 749.8e6,
    "StableDiffusionXLPipeline": 2.567e9,
    "StableDiffusion3Pipeline": 8.06e9,
    "FluxPipeline": 11.90e9,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Where a tiny pipeline of a class lies, with random weights."""
    home = tmp_path_factory.mktemp("pipelines")

    @cache
    def saved(kind: str) -> str:
        MAKERS[kind]().save_pretrained(home / kind)
        return str(home / kind)

    return saved


def small(recipe: Recipe, weights: str, count: int = 16, **setting: Any) -> Recipe:
    """A recipe on other weights, in two steps to tiny images, judged by what is here."""
    side = 16 if recipe.model.pipeline == "FluxPipeline" else None
    asked = replace(recipe.setting, **{"steps": 2, "height": side, "width": side, "dtype": "float32", **setting})
    images = replace(recipe.images, count=count, batch=5, prompts=None)
    return replace(recipe, model=replace(recipe.model, weights=weights), setting=asked, images=images, metrics=TILES)


@pytest.fixture
def ready(folder_of: Callable[[str], str]) -> Opened:
    """Of the tiny transformer, 16 images in four batches."""
    return opened(small(read_recipe("dit-xl-256-ddim20"), folder_of("DiTPipeline")))


def interrupted(monkeypatch: pytest.MonkeyPatch, ready: Opened, folder: Path, after: int) -> None:
    """Run until something breaks in the batch that comes after so many."""
    judge, seen = vars(run)["judge"], [0]

    def breaking(*given: Any) -> dict[str, Tensor]:
        seen[0] += 1
        if seen[0] > after:
            raise RuntimeError("the machine is gone")
        return judge(*given)

    with monkeypatch.context() as patch:
        patch.setattr(run, "judge", breaking)
        with pytest.raises(RuntimeError, match="gone"):
            run_recipe(ready, folder, QUIET)


def result(folder: Path) -> bytes:
    return (folder / shards.RESULT).read_bytes()


@pytest.mark.parametrize("name", shipped())
def test_each_recipe_runs_on_a_tiny_pipeline_of_its_class_and_goes_on_to_the_identical_result(
    name: str, folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(name)
    ready = opened(small(recipe, folder_of(recipe.model.pipeline)))
    interrupted(monkeypatch, ready, tmp_path / "broken", 2)
    kept = sorted((tmp_path / "broken" / shards.SHARDS).iterdir())
    assert [path.name for path in kept] == ["0000000-0000005.safetensors", "0000005-0000010.safetensors"]
    before = [path.stat().st_mtime_ns for path in kept]
    outcome = run_recipe(ready, tmp_path / "broken", QUIET)
    assert [path.stat().st_mtime_ns for path in kept] == before, "what was there was evaluated again"
    run_recipe(ready, tmp_path / "whole", QUIET)
    assert result(tmp_path / "broken") == result(tmp_path / "whole")
    assert [(row.contender, row.metric) for row in outcome.rows] == [("dense", "tiles")]
    assert outcome.images == 16


def test_killed_in_the_middle_of_a_file_a_run_goes_on_to_the_identical_result(ready: Opened, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        written, disk = [0], vars(shards)

        def torn(*given: Any) -> None:
            save_file(*given)
            written[0] += 1
            if written[0] == 3:
                os.truncate(given[1], given[1].stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        disk["save_file"] = torn
        run_recipe(ready, tmp_path / "killed", QUIET)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "killed" / shards.SHARDS).iterdir())
    assert [name[0] for name in left] == [".", "0", "0"], "two batches, and what was torn"
    for name in ("killed", "whole"):
        run_recipe(ready, tmp_path / name, QUIET)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert len([*(tmp_path / "killed" / shards.SHARDS).iterdir()]) == len(ready.batches())


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_recipe_is_priced_without_its_weights(name: str) -> None:
    recipe = read_recipe(name)
    found = price(recipe, "cpu")
    assert found.basis is Basis.COUNTED
    assert found.seconds is not None
    assert found.seconds > 0
    size = torch.finfo(getattr(torch, recipe.setting.dtype)).bits // 8
    assert found.memory == pytest.approx(size * PARAMETERS[recipe.model.pipeline], rel=2e-3)
    assert any(recipe.model.weights in one for one in found.missing)
    assert all(figure.source for figure in recipe.published)
    unsaid = replace(recipe, model=replace(recipe.model, denoiser=None))
    assert price(unsaid, "cpu").basis is Basis.NOTHING


@pytest.mark.parametrize("name", sorted({*shipped()} - {*PUBLISHED}))
def test_each_bundled_recipe_is_priced_by_calls_of_its_pipeline(name: str) -> None:
    recipe = read_recipe(name)
    little = replace(recipe, images=replace(recipe.images, batch=2))
    found, kept = price(little, "cpu"), price(little, "cpu", keep=True)
    assert (found.basis, found.missing) == (Basis.TIMED, ())
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.disk == 5000 * 64 * 4  # the features
    assert kept.disk == found.disk + 5000 * 32 * 32 * 3


def unwanted(*_: object, **__: object) -> None:
    raise AssertionError("the hub was asked")


def test_a_dry_run_takes_a_model_from_the_cache_if_it_is_whole_and_fetches_nothing(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the hub is in reach."""
    whole, repository, commit = Path(folder_of("DiTPipeline")), tmp_path / "models--me--tiny", "0" * 40
    place, asked, download = repository / "snapshots" / commit, list[object](), DiffusionPipeline.download
    place.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diff_es.pipelines.hub.model_info", unwanted)
    for module in ("hub", "loading"):
        monkeypatch.setattr(f"diff_es.pipelines.{module}.hub_out_of_reach", lambda: None)

    def heard(*given: Any, **named: Any) -> Any:
        asked.append(named.get("local_files_only"))
        return download(*given, **named)

    monkeypatch.setattr(DiffusionPipeline, "download", heard)
    recipe = small(read_recipe("dit-xl-256-ddim20"), "me/tiny")
    recipe = replace(recipe, model=replace(recipe.model, denoiser=None))
    assert price(recipe, "cpu").basis is Basis.NOTHING, "there is no cache"
    shutil.copy(whole / "model_index.json", place)
    assert price(recipe, "cpu").basis is Basis.NOTHING, "there is the index alone"
    shutil.copytree(whole, place, dirs_exist_ok=True)
    assert price(recipe, "cpu").basis is Basis.TIMED
    (place / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found = price(recipe, "cpu")
    assert found.basis is Basis.NOTHING
    assert any("the weights of me/tiny" in one for one in found.missing)
    assert asked
    assert all(asked)


def test_a_dry_run_fetches_no_network_of_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()

    def heard(*_: object, **named: object) -> nn.Module:
        asked.append(named.get("local_files_only"))
        return nn.Linear(1, 1)

    for kind in (CLIPModel, AutoImageProcessor, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", heard)
    for name in ("clip-score", "pick-score"):
        opened_metric(Metric(name), "cpu", local_only=True)
    assert asked == [True] * 6
    opened_metric(Metric("clip-score"), "cpu")
    assert asked[6:] == [False] * 3

    def missing(*given: object, **named: object) -> None:
        heard(*given, **named)
        raise OSError("not in the cache")

    monkeypatch.setattr(CLIPModel, "from_pretrained", missing)
    recipe = read_recipe("sdxl-coco2017-val5k")
    unsaid = replace(recipe, model=replace(recipe.model, denoiser=None))
    assert any("not in the cache" in one for one in price(unsaid, "cpu").missing)
    assert asked[9:] == [True]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_denoiser_without_its_weights_is_called_as_its_pipeline_calls_it(kind: str) -> None:
    pipe = MAKERS[kind]()
    side = 16 if kind == "FluxPipeline" else None
    denoiser, sampling = denoiser_of(pipe), Sampling(3, 4.0, 2, height=side, width=side)
    settings = {name: value for name, value in denoiser.config.items() if not name.startswith("_")}
    bare = without_weights(type(denoiser).__name__, settings)
    call = call_without_pipeline(bare, sampling, shrinks=2)
    counted = MacCounter(bare, anatomy_of(bare), call).dense()
    assert counted == MacCounter(denoiser, anatomy_of(denoiser), trace(pipe, sampling)).dense()
    assert len(call.timesteps) == 3


def test_a_denoiser_that_cannot_be_made_without_its_weights_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"model.denoiser: expected one of DiT.*found AutoencoderKL"):
        without_weights("AutoencoderKL", {})
    with pytest.raises(UnsupportedModel, match=r"expected settings of a DiTTransformer2DModel, found .*'layers'"):
        without_weights("DiTTransformer2DModel", {"layers": 3})


WRONG = [
    ("steps = 20", "steps = 20\nstepz = 3", r"setting\.stepz: expected no entry of this name, found 3\."),
    ("steps = 20", "", r"setting\.steps: expected an entry, found none\."),
    ("steps = 20", "steps = 0", r"setting\.steps: expected a whole number from 1 to 10000, found 0\."),
    ('dtype = "float32"', 'dtype = "float"', r"setting\.dtype: expected 'float32' or .*, found 'float'\."),
    ('"balanced classes"', '"classes"', r"images\.conditions: expected 'balanced classes' or .*found 'classes'"),
    ("[[metrics]]", "[metrics]", r"metrics: expected a tuple, found an object\."),
    ('weights = "bundled"', "weights = 3", r"model\.weights: expected a string, found 3\."),
    ("title =", "title", r"expected a recipe in TOML, found .*Give a file, or one of bundled, "),
]


@pytest.mark.parametrize(("text", "other", "message"), WRONG)
def test_what_a_recipe_does_not_take_is_refused_by_name(text: str, other: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text((RUNS / "bundled.toml").read_text().replace(text, other, 1))
    with pytest.raises(DiffESError, match=message):
        read_recipe(str(file))


def test_what_does_not_fit_the_pipeline_is_refused(
    folder_of: Callable[[str], str], fast: Compressed, tmp_path: Path
) -> None:
    recipe = small(read_recipe("bundled"), folder_of("DiTPipeline"))
    fast.save(tmp_path / "fast")
    wrong: dict[str, Any] = {
        "expected a FluxPipeline, found a DiTPipeline": {"model": replace(recipe.model, pipeline="FluxPipeline")},
        "scheduler: expected a class of diffusers, found Sampler": {"sampler": Part("Sampler")},
        "sampler.settings: expected settings of a DDIMScheduler, found spacing": {
            "sampler": Part("DDIMScheduler", {"spacing": "trailing"})
        },
        "images.conditions: expected conditions of a pipeline that is asked for classes, found prompts": {
            "images": replace(recipe.images, conditions=Conditions.PROMPTS)
        },
        "metrics: expected one of snr, .*, found fit": {"metrics": [Metric("fit")]},
        r"metrics\[2\]: expected metrics of different names, found a second psnr": {
            "metrics": [Metric("psnr"), *TILES, Metric("psnr")]
        },
        "metrics, tiles: expected no reference, found real": {"metrics": [Metric("tiles", "real")]},
        "metrics, fid: expected a reference that is here, found none": {"metrics": [Metric("fid")]},
        "metrics, ssim: expected no weights, found these": {"metrics": [Metric("ssim", None, "these")]},
        "metrics: expected something to compare with the dense model, found psnr": {"metrics": [Metric("psnr")]},
        "expected a result for the steps 2, found one that was made for 6": {
            "results": [Result(str(tmp_path / "fast"))]
        },
        r"fast: expected a result for the guidance 4.0, found one that was made for 2.0. Compress for the setting of": {
            "results": [Result(str(tmp_path / "fast"))],
            "setting": replace(recipe.setting, steps=6, guidance=4.0),
        },
        "nowhere.txt: expected prompts": {"images": replace(recipe.images, prompts=str(tmp_path / "nowhere.txt"))},
    }
    for message, change in wrong.items():
        with pytest.raises(DiffESError, match=message):
            opened(replace(recipe, **change))


SIDES = "height", "width"


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_a_result_of_another_size_or_negative_prompt_is_refused(
    kind: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    """The pipeline's own size may be said or left out."""
    name = {"FluxPipeline": "flux-dev-drawbench"}.get(kind, "sdxl-coco2017-val5k")
    recipe, pipe = small(read_recipe(name), folder_of(kind)), MAKERS[kind]()
    own = pipe.vae_scale_factor * pipe.default_sample_size
    setting = replace(recipe.setting, height=own, width=None)
    recipe = replace(recipe, setting=setting, results=(Result(str(tmp_path / "fast")),))
    base, dense = fingerprint(denoiser_of(pipe)), Schedule(Stages(()), ((0,),))

    def judged(**change: Any) -> Opened:
        sampling = Sampling(2, setting.guidance, 1, setting.negative_prompt)
        Compressed(dense, (DENSE,), replace(sampling, **change), base).save(tmp_path / "fast")
        return opened(recipe)

    assert [one.name for one in judged().contenders] == ["dense", "fast"]
    assert judged(height=own, width=own).contenders[1].result is not None
    for side in SIDES:
        with pytest.raises(
            DiffESError, match=f"fast: expected a result for the {side} .*, found one .* {2 * own}. Com"
        ):
            judged(**{"height": own, side: 2 * own})
    if kind != "FluxPipeline":
        with pytest.raises(
            DiffESError, match=r"expected a result for the negative prompt 'normal.*found .* for 'blurred'"
        ):
            judged(negative_prompt="blurred")


def test_a_result_is_judged_beside_the_dense_model(
    folder_of: Callable[[str], str], fast: Compressed, tmp_path: Path
) -> None:
    fast.save(tmp_path / "fast")
    recipe = small(read_recipe("bundled"), folder_of("DiTPipeline"), 7, steps=6)
    figure = Figure("tiles", 3, "a paper")
    recipe = replace(
        recipe,
        metrics=(Metric("snr"), Metric("psnr"), *TILES),
        results=(Result(str(tmp_path / "fast")),),
        published=(figure,),
    )
    ready = opened(recipe)
    rows = {(row.contender, row.metric): row for row in run_recipe(ready, tmp_path / "out", QUIET).rows}
    probes = [ready.probe(i) for i in range(7)]
    dense = sample(ready.pipe, probes, recipe.sampling)
    with fast.routed(ready.pipe):
        own = sample(ready.pipe, probes, recipe.sampling)
    images = [decode(ready.pipe, latents) for latents in (dense, own)]
    reference, features = load_reference(), [load_reference().features(each) for each in images]
    assert rows["fast", "snr"].value == pytest.approx(float(snr_db(dense, own).mean()))
    assert rows["fast", "psnr"].value == pytest.approx(float(psnr_db(*images).mean()))
    for name, seen in zip(("dense", "fast"), features, strict=True):
        moments = seen.double().mean(0), torch.cov(seen.double().T)
        expected = frechet_distance(*moments, reference.mean, reference.covariance)
        assert rows[name, "tiles"].value == pytest.approx(expected)
    assert (rows["dense", "tiles"].published, rows["dense", "tiles"].source) == (3, "a paper")
    assert rows["fast", "tiles"].published is None
    assert len(rows) == 4


def test_what_is_no_image_of_eight_bits_is_refused_by_its_file(tmp_path: Path) -> None:
    """Pillow raises as it likes, and clips what has more."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    (found,) = images_in(tmp_path)
    assert found.shape == (1, 3, 6, 6)
    whole = (tmp_path / "a.png").read_bytes()
    for damaged in (whole.replace(b"IDAT", b"\x00DAT"), whole[:40]):
        (tmp_path / "b.png").write_bytes(damaged)
        with pytest.raises(DiffESError, match=r"b.png: expected an image, found .* Take it out"):
            list(images_in(tmp_path))
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(
        DiffESError, match=r"b.png: .* one of mode I;16, with more than eight bits .*save it with eight"
    ):
        list(images_in(tmp_path))


def test_sets_are_judged_beside_real_images_by_features_taken_once(
    folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    """Beside a folder and a reference batch, as the metrics themselves have it of all images at once."""
    weights = tmp_path / WEIGHTS.file
    torch.save(drawn(shapes_of(Inception().state_dict())), weights)
    looks = InceptionFeatures(weights)
    real = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    (tmp_path / "real").mkdir()
    for i, image in enumerate(real):
        picture(image).save(tmp_path / "real" / f"{i}.png")
    square = (real[..., 4:20] * 255).round() / 255
    seen = Moments.of(looks(square)).gaussian()
    pixels = (square * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", arr_0=pixels, mu=seen.mean.numpy(), sigma=seen.covariance.numpy())
    names = ("fid", "kid", "precision-recall")
    recipe = small(read_recipe("bundled"), folder_of("DiTPipeline"), 4)
    found = list[dict[str, float]]()
    for place in ("real", "real.npz"):
        metrics = tuple(Metric(name, str(tmp_path / place), str(weights)) for name in names)
        ready = opened(replace(recipe, metrics=metrics))
        assert len(ready.measures.of_set) == 1
        found.append({row.metric: row.value for row in run_recipe(ready, tmp_path / f"out-{place}", QUIET).rows})
    probes = [ready.probe(i) for i in range(4)]
    ours, theirs = looks(decode(ready.pipe, sample(ready.pipe, probes, recipe.sampling))), looks(square)
    expected = dict[str, float]()
    for measure in (Fid(looks), Kid(looks), PrecisionRecall(looks)):
        expected |= measure.distance(ours, theirs)
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert found[1] == pytest.approx(expected, rel=1e-4)


def test_measures_of_several_networks_each_have_their_own_features(tmp_path: Path) -> None:
    """Beside one reference; those of one network take its features once, in whatever order they are named."""
    for name, seed in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        torch.save(drawn(shapes_of(Inception().state_dict()), seed), tmp_path / name / WEIGHTS.file)
    picture(torch.rand(3, 16, 16)).save(tmp_path / "0.png")
    networks = (("fid", "one"), ("kid", "two"), ("precision-recall", "one"))
    metrics = [Metric(name, str(tmp_path), str(tmp_path / network)) for name, network in networks]
    found = measures_of([opened_metric(one, "cpu") for one in metrics]).of_set
    assert [[type(one) for one in by.measures] for by in found.values() if isinstance(by, ByNetwork)] == [
        [Fid, PrecisionRecall],
        [Kid],
    ]
    seen = torch.rand(1, 3, 16, 16)
    one, two = (by.features(seen) for by in found.values())
    assert not torch.equal(one, two)


def test_an_image_is_the_same_in_any_batch(ready: Opened, tmp_path: Path) -> None:
    seen = dict[int, Tensor]()
    for batch in (1, 3, 16):
        other = replace(ready, recipe=replace(ready.recipe, images=replace(ready.recipe.images, batch=batch)))
        run_recipe(other, tmp_path / str(batch), QUIET)
        kept = shards.begun(tmp_path / str(batch), other.identity)
        seen[batch] = torch.cat([*kept.column("dense/tiles", other.batches())])
    assert torch.allclose(seen[1], seen[3], atol=1e-5)
    assert torch.allclose(seen[1], seen[16], atol=1e-5)
    assert len(seen[1].unique(dim=0)) == 16, "no two images are alike"


def test_what_images_are_asked_for(ready: Opened) -> None:
    def asked(conditions: Conditions) -> list[Any]:
        images = replace(ready.recipe.images, conditions=conditions)
        other = replace(ready, recipe=replace(ready.recipe, images=images), conditions=(0, 1, 2))
        return [other.probe(i).condition for i in range(300)]

    assert asked(Conditions.BALANCED) == [0, 1, 2] * 100
    drawn = asked(Conditions.RANDOM)
    assert drawn != [0, 1, 2] * 100
    assert all(70 < drawn.count(label) < 130 for label in range(3))
    assert len({ready.probe(i).seed for i in range(300)}) == 300


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, held, judge = read_recipe("bundled"), list[int](), vars(run)["judge"]
    images = replace(recipe.images, count=24, batch=2)
    ready = opened(replace(recipe, setting=replace(recipe.setting, steps=1), images=images))

    def watched(*given: Any) -> dict[str, Tensor]:
        alive = {id(one): one.nbytes for one in gc.get_objects() if type(one) is Tensor}  # none of a compiler's
        held.append(sum(alive.values()))
        return judge(*given)

    monkeypatch.setattr(run, "judge", watched)
    run_recipe(ready, tmp_path, QUIET)
    image = 2 * 3 * 32 * 32 * 4  # bytes of those of a batch
    assert len(held) == 12
    assert max(held[2:]) - held[1] < image


def test_a_run_of_fewer_images_goes_on_to_more(ready: Opened, tmp_path: Path) -> None:
    def of(count: int) -> Opened:
        return replace(ready, recipe=replace(ready.recipe, images=replace(ready.recipe.images, count=count)))

    run_recipe(of(7), tmp_path / "more", QUIET)
    first = tmp_path / "more" / shards.SHARDS / "0000000-0000005.safetensors"
    before = first.stat().st_mtime_ns
    run_recipe(of(16), tmp_path / "more", QUIET)
    run_recipe(ready, tmp_path / "whole", QUIET)
    assert first.stat().st_mtime_ns == before
    assert result(tmp_path / "more") == result(tmp_path / "whole")


def test_what_was_damaged_is_evaluated_again_and_another_recipe_refused(ready: Opened, tmp_path: Path) -> None:
    run_recipe(ready, tmp_path, QUIET)
    whole, first = result(tmp_path), tmp_path / shards.SHARDS / "0000000-0000005.safetensors"
    good = first.read_bytes()
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:50], b""):
        first.write_bytes(bad)
        run_recipe(ready, tmp_path, QUIET)
        assert load_file(first)["dense/tiles"].equal(load(good)["dense/tiles"])
        assert result(tmp_path) == whole
    other = replace(ready, recipe=replace(ready.recipe, setting=replace(ready.recipe.setting, guidance=3)))
    with pytest.raises(DiffESError, match="the recipe that the run began with, found one with another setting"):
        run_recipe(other, tmp_path, QUIET)
    (tmp_path / shards.IDENTITY).write_text("{")
    with pytest.raises(DiffESError, match="expected what an evaluation of a recipe wrote"):
        run_recipe(ready, tmp_path, QUIET)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError):
        run_recipe(ready, tmp_path / "file", QUIET)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet", "sampler"])
def test_a_run_over_other_weights_or_another_sampler_of_the_model_is_refused(
    part: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    name, kind = "sdxl-coco2017-val5k", "StableDiffusionXLPipeline"
    recipe = small(read_recipe(name), folder_of(kind), 2)
    run_recipe(opened(recipe), tmp_path / "out", QUIET)
    run_recipe(opened(recipe), tmp_path / "out", QUIET)  # the same goes on
    other = MAKERS[kind]()
    if part == "sampler":
        other.scheduler.register_to_config(beta_end=0.02)
    else:
        with torch.no_grad():
            next(iter(other.components[part].parameters())).mul_(2)
    other.save_pretrained(tmp_path / "other")
    changed = opened(replace(recipe, model=replace(recipe.model, weights=str(tmp_path / "other"))))
    with pytest.raises(DiffESError, match=f"that the run began with, found one with another {part}. Choose"):
        run_recipe(changed, tmp_path / "out", QUIET)


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code and outputs of ``diff-es evaluate``."""
    monkeypatch.setattr(sys, "argv", ["diff-es", "evaluate", *map(str, words)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, " ".join(err.split())


def test_the_command_prices_runs_and_keeps_images(
    folder_of: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    text = (RUNS / "bundled.toml").read_text().replace("steps = 20", "steps = 2")
    file.write_text(f'{text}\n[[published]]\nmetric = "tiles"\nvalue = 12.5\nsource = "a paper"\n')
    asked = "--recipe", file, "--model", folder_of("DiTPipeline"), "--count", 6, "--out", out, "--json"
    code, said, err = command(monkeypatch, capfd, *asked, "--dry-run")
    assert code == 0, err
    assert json.loads(said.splitlines()[-1])["basis"] == Basis.TIMED
    assert not out.exists()
    code, said, err = command(monkeypatch, capfd, *asked, "--keep-images")
    assert code == 0, err
    assert json.loads(said.splitlines()[-1]) == json.loads(result(out))
    assert "12.5" in said
    assert "Published: a paper." in said
    pictures = sorted((out / "images" / "dense").iterdir())
    assert [path.name for path in pictures] == [f"000000{i}.png" for i in range(6)]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (16, 16)
    pictures[2].unlink()
    code, _, err = command(monkeypatch, capfd, *asked, "--keep-images")
    assert code == 0, err
    assert pictures[2].exists()


def test_the_point_that_is_asked_for_is_judged_and_a_run_of_another_is_refused(
    folder_of: Callable[[str], str],
    fast: Compressed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Beside one that is cheaper, a result that is no cheaper than dense is dense itself."""
    none = replace(fast.schedule, levels=tuple((0,) * len(row) for row in fast.schedule.levels))
    whole = replace(fast, schedule=none, plans=(DENSE,) * 3, searched=replace(fast.report, macs_ratio=1.0))
    replace(fast, others=(whole,)).save(tmp_path / "fast")
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    text = (RUNS / "bundled.toml").read_text().replace("steps = 20", "steps = 6").replace('"tiles"', '"psnr"')
    file.write_text(text)
    asked = tmp_path / "fast", "--recipe", file, "--model", folder_of("DiTPipeline"), "--count", 2, "--out", out
    code, said, err = command(monkeypatch, capfd, *asked, "--point", 1, "--json")
    assert code == 0, err
    found = {row["contender"]: row["value"] for row in json.loads(said.splitlines()[-1])["rows"]}
    assert found.keys() == {"fast@1"}
    before = result(out)
    for other in ((), ("--point", 1.5)):
        code, _, err = command(monkeypatch, capfd, *asked, *other)
        assert (code, "expected the recipe that the run began with, found one with another results" in err) == (2, True)
    assert result(out) == before
    pair = f'results = ["{tmp_path}/fast", {{ folder = "{tmp_path}/fast", point = 1 }}]'
    file.write_text(f"{pair}\n{text}")
    code, said, err = command(monkeypatch, capfd, *asked[1:-1], tmp_path / "both", "--json")
    assert code == 0, err
    both = {row["contender"]: row["value"] for row in json.loads(said.splitlines()[-1])["rows"]}
    assert both.keys() == {"fast", "fast@1"}
    assert both["fast@1"] == found["fast@1"] > both["fast"]
    code, said, err = command(monkeypatch, capfd, *asked, "--point", 99, "--dry-run", "--json")
    assert code == 0, err
    assert any("found 99x" in one for one in json.loads(said.splitlines()[-1])["missing"])


def test_ctrl_c_says_how_to_go_on(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "judge", stopped)
    words = "--recipe", "bundled", "--model", folder_of("DiTPipeline"), "--count", 2, "--out", tmp_path
    code, _, err = command(monkeypatch, capfd, *words)
    assert code == 130
    assert f"What was evaluated is in {tmp_path}: run the same command again to go on." in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "DIR: expected a result, or a recipe, found neither."),
        (("--dry-run",), "--dry-run: expected a recipe, found none."),
        (("folder", "--count", 3), "--count: expected a recipe, found none."),
        (
            ("folder", "--recipe", "bundled", "--noises", 64),
            "--noises: expected no recipe, found bundled. Leave it out",
        ),
        (("--recipe", "bundled", "--batch", 4), "--batch: expected no recipe, found bundled."),
        (("--recipe", "bundled", "--point", 2), "--point: expected a result, found none. Say DIR,"),
        (("folder", "--recipe", "bundled", "--point", 0.5), "point: expected a number from 1 to 1000, found 0.5."),
        (("--recipe", "nothing"), "recipe nothing: expected a recipe in TOML"),
        (("--recipe", "bundled", "--count", 0), "count: expected a whole number from 1 to 1000000, found 0."),
        (("--recipe", "dit-xl-256-ddim20", "--model", "nowhere", "--out", "new"), "metrics, fid: expected a reference"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    words: tuple[object, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(monkeypatch, capfd, *words)
    assert (code, message in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []
