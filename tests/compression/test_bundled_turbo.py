"""The bundled transformer distilled to four steps: a stock pipeline, and what pruning a few-step model is held to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, DiTPipeline
from tests.helpers.tiny import opened
from torch import Tensor

from diff_es import Levers, Method, Sampling, Settings, Width
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.tiles_reference import CLASSES, load_reference
from diff_es.layers.fingerprint import fingerprint
from diff_es.pipelines.bundled import MODELS
from diff_es.pipelines.loading import load, origin_of, reopen
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import decode, sample
from diff_es.pruning.granularity import Granularity
from diff_es.routing.routing import routed

FOLDER = MODELS["bundled-turbo"]
SAMPLING = Sampling(num_inference_steps=4, guidance_scale=1.0, batch=32)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load("bundled-turbo", device="cpu")


def shown(pipe: Any, count: int, purpose: str = "test", sampling: Sampling = SAMPLING) -> Tensor:
    """Images in [0, 1], (count, 3, 32, 32), of all classes in turn."""
    return decode(pipe, sample(pipe, make_probes(pipe, count, 0, purpose), sampling))


def test_it_is_a_stock_pipeline_whose_autoencoder_is_its_teachers(pipe: Any) -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 23e6
    assert not (FOLDER / "vae").exists()
    assert "_name_or_path" not in (FOLDER / "transformer" / "config.json").read_text(), "a folder of whoever made it"
    vae = AutoencoderDC.from_pretrained(MODELS["bundled"], subfolder="vae", dtype=torch.float32)
    stock = DiTPipeline.from_pretrained(FOLDER, vae=vae, dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(probe.seed) for probe in make_probes(pipe, 2, 0, "test")]
    images = stock([0, 1], guidance_scale=1.0, num_inference_steps=4, generator=generators, output_type="pt").images
    assert torch.equal(images, shown(pipe, 2))


def test_it_is_found_again_by_its_name(pipe: Any) -> None:
    origin = origin_of(pipe)
    assert origin.model == "bundled-turbo"
    assert fingerprint(reopen(origin).transformer) == fingerprint(pipe.transformer)


@pytest.fixture(scope="module")
def dense(pipe: Any) -> Tensor:
    return shown(pipe, 256)


def test_four_of_its_steps_are_nearer_to_the_tiles_than_four_of_its_teacher(pipe: Any, dense: Tensor) -> None:
    real, images = load_reference(), dense
    teacher = shown(load("bundled", device="cpu"), 256, sampling=Sampling(4, 2.0, 32))
    assert real.distance(images) < 0.8 * real.distance(teacher)
    with torch.no_grad():
        named = real.classifier(images * 2 - 1).argmax(1)
    assert (named == torch.arange(256) % len(CLASSES)).float().mean() > 0.7


@pytest.fixture(scope="module")
def study(pipe: Any) -> Study:
    method = Method(Width(4, dense=()), granularity=Granularity.WHOLE, stagewise=False)
    settings = Settings(SAMPLING, levers=Levers.PRUNE, method=method, calibration_samples=8)
    return prepare(pipe, settings)


def test_the_kernel_distance_tells_pruning_from_other_noises(pipe: Any, dense: Tensor, study: Study) -> None:
    """Near zero of the dense model to itself, and the further, the more of it is pruned."""
    real, dense, count = load_reference(), dense[:96], 96
    itself = abs(real.between(dense, shown(pipe, count, "others")))
    distances = list[float]()
    for level in range(1, 4):
        plans = [study.library.plan(stage, (level,)) for stage in range(len(study.stages))]
        with routed(pipe.transformer, study.stages, opened(pipe, plans)):
            distances.append(real.between(dense, shown(pipe, count, "others")))
    assert distances == sorted(distances)
    assert distances[-1] > 10 * itself


def test_each_step_is_a_stage(study: Study) -> None:
    assert study.costs.steps == (1, 1, 1, 1)
