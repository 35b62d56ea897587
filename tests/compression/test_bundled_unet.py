"""The bundled U-Net: a stock pipeline that heeds its prompts, and what pruning a trained U-Net is held to."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from diff_es import Levers, Method, Sampling, Settings, Width
from diff_es.compression.compress import result_of
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.evolve import evolve
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.study import prepare
from diff_es.evaluation.rivals import Contender, contenders
from diff_es.evaluation.sampling import sampled
from diff_es.evaluation.tiles_reference import CLASSES, load_reference
from diff_es.layers import DENSE, Kind, discover
from diff_es.layers.fingerprint import fingerprint
from diff_es.pipelines.bundled import MODELS
from diff_es.pipelines.loading import load, origin_of, reopen
from diff_es.pipelines.probes import Probe, bundled_prompts, conditions_of
from diff_es.pipelines.sampling import decode, sample
from diff_es.pipelines.tracing import trace
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.library import Library
from diff_es.routing.placements import Resident
from diff_es.routing.routing import routed
from diff_es.scoring.journal import Journal
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.trajectory.stages import Stages
from diff_es.utils.progress import Reporter

FOLDER = MODELS["bundled-unet"]
SAMPLING = Sampling(num_inference_steps=10, guidance_scale=2.5)
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load("bundled-unet", device="cpu")


def shown(pipe: Any, prompts: list[str], sampling: Sampling = SAMPLING) -> Tensor:
    """Images in [0, 1], (prompts, 3, 32, 32), of the same noises whatever the prompts."""
    probes = [Probe(seed, prompt) for seed, prompt in enumerate(prompts)]
    parts = [probes[i : i + 16] for i in range(0, len(probes), 16)]
    latents = torch.cat([sample(pipe, part, sampling) for part in parts])
    return decode(pipe, latents)


def test_it_is_a_small_stock_pipeline() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 10e6
    stock = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    assert type(stock) is StableDiffusionPipeline
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = stock("a potion", num_inference_steps=2, generator=generator, output_type="pt").images
    assert image.shape == (1, 3, 32, 32)
    assert image.isfinite().all()


def test_it_is_found_again_by_its_name(pipe: Any) -> None:
    origin = origin_of(pipe)
    assert origin.model == "bundled-unet"
    again = reopen(origin)
    assert fingerprint(again.unet) == fingerprint(pipe.unet)


def test_a_folder_brings_its_own_prompts(pipe: Any, tmp_path: Path) -> None:
    own = tuple((FOLDER / "prompts.txt").read_text().splitlines())
    assert len(own) == len(CLASSES)
    assert all(prompt.split()[-1] == name for prompt, name in zip(own, CLASSES, strict=True))
    assert conditions_of(pipe) == own
    assert conditions_of(pipe, ["a ring"]) == ("a ring",)
    shutil.copytree(FOLDER, tmp_path / "model")
    (tmp_path / "model" / "prompts.txt").write_text("a ring\n\na scroll\n")
    assert conditions_of(load(str(tmp_path / "model"), device="cpu")) == ("a ring", "a scroll")
    (tmp_path / "model" / "prompts.txt").unlink()
    assert conditions_of(load(str(tmp_path / "model"), device="cpu")) == bundled_prompts()


def test_every_word_of_the_prompts_is_one_token(pipe: Any) -> None:
    for prompt in (*map(str, conditions_of(pipe)), "a potion", "a picture of a scroll", "a game tile of grass"):
        assert len(pipe.tokenizer.tokenize(prompt)) == len(prompt.split())
    assert pipe.tokenizer.tokenize("xyz") == ["x", "y", "z</w>"]


def test_images_show_what_the_prompts_say(pipe: Any) -> None:
    prompts = [str(prompt) for prompt in conditions_of(pipe)] * 3
    images = shown(pipe, prompts)
    with torch.no_grad():
        named = load_reference().classifier(images * 2 - 1).argmax(1)
    right = (named == torch.arange(len(CLASSES)).repeat(3)).float().mean()
    assert right > 0.5  # chance is one in eight


def test_prompts_change_the_image_and_nothing_else_does(pipe: Any) -> None:
    floor, again, potion = (shown(pipe, [prompt], Sampling(4, 2.5)) for prompt in ("a floor", "a floor", "a potion"))
    assert torch.equal(floor, again)
    assert (floor - potion).abs().mean() > 0.02


def test_level_0_is_the_dense_model_to_the_bit(pipe: Any) -> None:
    sampling = Sampling(4, 2.5, 2)
    probes = (Probe(0, "a floor"), Probe(1, "a potion"))
    anatomy = discover(pipe.unet)
    assert {layer.kind for layer in anatomy.layers} == {Kind.ATTENTION, Kind.FEEDFORWARD, Kind.RESNET}
    dense = sample(pipe, probes, sampling)
    stages = Stages.split(trace(pipe, sampling).timesteps, 2)
    opened = partial(Resident().open, pipe.unet, anatomy, [DENSE] * 2)
    with routed(pipe.unet, stages, opened):
        assert torch.equal(sample(pipe, probes, sampling), dense)


@pytest.mark.slow
def test_evolved_beats_uniform_and_compensation_helps(pipe: Any) -> None:
    """At 0.7 of the MACs, on noises that no search has seen."""
    sampling = Sampling(num_inference_steps=4, guidance_scale=2.5)
    settings = Settings(
        sampling=sampling,
        stages=2,
        levers=Levers.PRUNE,
        method=Method(Width(4, dense=()), granularity=Granularity.KIND),
        calibration_samples=4,
        search_noises=2,
        first_rung=1,
        sensitivity_noises=1,
        finalists=1,
        held_out_noises=2,
        population=4,
        generations=1,
        survivors=1,
    )
    ready = prepare(pipe, settings)
    evaluator = Evaluator(ready, Journal(None, {}, resume=False))
    table = sensitivity(ready, evaluator, QUIET)
    (found,) = evolve(ready, (0.7,), evaluator, table, QUIET)
    fast = result_of(ready, found, table)
    assert fast.report.macs_ratio <= 0.7
    method = replace(ready.library.method, compensation=None)
    bare = replace(ready, library=Library(pipe.unet, ready.anatomy, ready.statistics, method, QUIET))
    goal, _ = sampled(ready, Contender("dense", 1.0, 1.0, Runner("dense", sampling)), 8, QUIET)

    def snr(contender: Contender) -> float:
        assert contender.macs_ratio <= 0.7
        return float(snr_db(goal, sampled(ready, contender, 8, QUIET)[0]).mean())

    _, _, uniform, *_, evolved = contenders(ready, found, saved=fast)
    _, _, uncompensated, *_ = contenders(bare, found)
    assert snr(evolved) >= snr(uniform)
    assert snr(uniform) > snr(uncompensated) + 1
