"""Caches of other libraries, through these libraries: exact where they skip nothing, less work where they do, and the
pipeline as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import nn

from diff_es import DiffESError, Sampling
from diff_es.evaluation.rivals.caches import Cache, Cached, Deep, DualBlock, Native, calibrated, counted, offered
from diff_es.evaluation.rivals.caches.offered import faster, taylor
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.scoring.timing import Runner, Way
from diff_es.utils.patching import exchanged

CALL = Sampling(num_inference_steps=5, guidance_scale=2.0, batch=2)
TRANSFORMER, UNET = "bundled", "bundled-unet"
RATIOS = [1.0] * CALL.steps
PARTS = {
    TRANSFORMER: ("proj_out_2", r"transformer_blocks\.\d+"),
    UNET: ("conv_out", r".*\.(resnets|transformer_blocks|downsamplers|upsamplers)\.\d+"),
}


def attention(skip: int) -> Native:
    always = (-1, 1000)
    return Native(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=skip,
            cross_attention_block_skip_range=skip,
            spatial_attention_timestep_skip_range=always,
            cross_attention_timestep_skip_range=always,
        )
    )


def magnitude(threshold: float) -> Native:
    return Native(MagCacheConfig(threshold=threshold, num_inference_steps=CALL.steps, mag_ratios=RATIOS))


CACHES: Mapping[str, tuple[str, Cache, Cache]] = {  # one that skips nothing, and one that skips much
    "FirstBlockCache": (
        TRANSFORMER,
        Native(FirstBlockCacheConfig(threshold=-1.0)),
        Native(FirstBlockCacheConfig(threshold=10.0)),
    ),
    "MagCache": (TRANSFORMER, magnitude(-1.0), magnitude(1.0)),
    "DBCache": (TRANSFORMER, DualBlock(-1.0, max_warmup_steps=1), DualBlock(1.0, max_warmup_steps=1)),
    "DeepCache": (UNET, Deep(1), Deep(3)),
    **{f"TaylorSeer, {name}": (name, taylor(1, *parts), taylor(5, *parts)) for name, parts in PARTS.items()},
    **{f"PyramidAttentionBroadcast, {name}": (name, attention(1), attention(3)) for name in PARTS},
    **{f"FasterCache, {name}": (name, faster(1, (-1, 1000)), faster(5, (-1, 1000))) for name in PARTS},
}


@pytest.fixture(scope="module")
def pipes() -> Mapping[str, Any]:
    return {name: load(name, dtype=torch.float32) for name in PARTS}


@pytest.fixture(scope="module")
def dense(pipes: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    return {name: latents(pipe, Runner("dense", CALL)) for name, pipe in pipes.items()}


def latents(pipe: Any, way: Way) -> torch.Tensor:
    with way.context(pipe):
        return sample(pipe, make_probes(pipe, 2, 0, "test"), way.sampling)


def attributes(pipe: Any) -> list[dict[str, Any]]:
    """Of the pipeline, and of every module of its denoiser, with what those that are dictionaries hold."""
    owners = (pipe, *denoiser_of(pipe).modules())
    return [
        {"class": type(one)} | {name: dict(v) if isinstance(v, dict) else v for name, v in vars(one).items()}
        for one in owners
    ]


def unchanged(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """By identity: tensors have no truth value."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
        return a is b or (isinstance(a, int | float | str | bool) and a == b)

    return len(before) == len(after) and all(map(same, before, after))


@contextmanager
def layers_run(pipe: Any) -> Iterator[list[int]]:
    """How many samples each call of a linear layer or a convolution takes."""
    calls = list[int]()
    parts = [one for one in denoiser_of(pipe).modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    handles = [one.register_forward_hook(lambda module, given, out: calls.append(len(out))) for one in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", CACHES)
def test_what_skips_nothing_changes_no_bit(name, pipes, dense):
    model, nothing, _ = CACHES[name]
    assert torch.equal(latents(pipes[model], Cached(name, CALL, nothing)), dense[model])


@pytest.mark.parametrize("name", CACHES)
def test_what_skips_runs_less_and_forgets_and_leaves_no_trace(name, pipes, dense):
    model, _, much = CACHES[name]
    pipe, way = pipes[model], Cached(name, CALL, much)
    before = attributes(pipe)
    with layers_run(pipe) as all_calls:
        assert torch.equal(latents(pipe, Runner("dense", CALL)), dense[model])
    with layers_run(pipe) as calls, way.context(pipe):
        probes = make_probes(pipe, 2, 0, "test")
        first, once = sample(pipe, probes, CALL), sum(calls)
        second = sample(pipe, probes, CALL)
    assert torch.equal(first, second), "a trajectory starts afresh"
    assert not torch.equal(first, dense[model])
    assert first.isfinite().all()
    assert once == sum(calls) - once < sum(all_calls)
    assert unchanged(before, attributes(pipe))
    assert torch.equal(latents(pipe, Runner("dense", CALL)), dense[model])


@pytest.mark.parametrize("name", CACHES)
def test_pipeline_is_as_it_was_after_an_exception(name, pipes, dense):
    model, _, much = CACHES[name]
    pipe, steps = pipes[model], list[int]()
    before, step = attributes(pipe), pipe.scheduler.step

    def failing(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise ZeroDivisionError
        return step(*args, **kwargs)

    with exchanged(pipe.scheduler, "step", failing), pytest.raises(ZeroDivisionError):
        latents(pipe, Cached(name, CALL, much))
    assert unchanged(before, attributes(pipe))
    assert torch.equal(latents(pipe, Runner("dense", CALL)), dense[model])


@pytest.mark.parametrize("model", PARTS)
def test_each_is_offered_at_three_settings(model, pipes):
    pipe = pipes[model]
    found = offered(pipe, CALL, make_probes(pipe, 2, 0, "test"))
    libraries = [way.name.split(", ")[0] for way in found]
    taken = {name.split(", ")[0] for name, (of, *_) in CACHES.items() if of == model}
    assert {name.split(" ")[0] for name in libraries} == taken
    assert {libraries.count(name) for name in libraries} == {3}
    assert len({way.name for way in found}) == len(found)
    assert found[0].of_batch(7).sampling == replace(CALL, batch=7)
    assert found[0].steps == CALL.steps
    own = sum(one.numel() * one.element_size() for one in denoiser_of(pipe).parameters())
    assert found[0].weight_bytes(pipe) == own


def test_calibration_of_mag_cache_is_of_the_model(pipes):
    pipe = pipes[TRANSFORMER]
    before = attributes(pipe)
    ratios = calibrated(pipe, CALL, make_probes(pipe, 2, 0, "test"))
    assert len(ratios) == CALL.steps
    assert ratios[0] == 1
    assert all(0.3 < ratio < 3 for ratio in ratios)
    assert len(set(ratios)) == CALL.steps
    assert unchanged(before, attributes(pipe))


def test_macs_that_ran(pipes):
    """Of the dense model they are what its sizes say: 16 tokens, 7 blocks of 256 channels, patches of 64 numbers."""
    pipe, tokens, width, blocks, patch = pipes[TRANSFORMER], 16, 256, 7, 64
    with counted(pipe) as ran:
        latents(pipe, Runner("dense", CALL))
    embedder, modulation = 2 * width**2, 6 * width**2
    block = tokens * 12 * width**2 + 2 * tokens**2 * width + embedder + modulation
    ends = 2 * tokens * patch * width + embedder + 2 * width**2
    assert ran.macs == CALL.steps * 2 * CALL.batch * (blocks * block + ends)
    with counted(pipe) as cached:
        latents(pipe, Cached("strong", CALL, CACHES["FirstBlockCache"][2]))
    assert cached.macs == CALL.steps * 2 * CALL.batch * (block + ends) + 2 * CALL.batch * (blocks - 1) * block
    with counted(pipe) as again:
        latents(pipe, Cached("DBCache", CALL, CACHES["DBCache"][1]))
    assert again.macs == ran.macs


@pytest.mark.parametrize(
    ("model", "cache", "sampling", "said"),
    [
        (UNET, Native(FirstBlockCacheConfig()), CALL, "UNet2DConditionModel: expected a list of transformer blocks"),
        (UNET, magnitude(0.1), CALL, "found down_blocks, up_blocks"),
        (UNET, DualBlock(0.1), CALL, "StableDiffusionPipeline: expected a pipeline that cache-dit supports"),
        (TRANSFORMER, Native(TaylorSeerCacheConfig()), CALL, "expected modules that the cache knows by class or name"),
        (TRANSFORMER, Deep(2), CALL, "DiTPipeline: expected a U-Net"),
        (TRANSFORMER, faster(2, (-1, 641)), replace(CALL, guidance_scale=1.0), "guidance_scale: expected more than 1"),
    ],
)
def test_what_does_not_take_a_pipeline_says_so(model, cache, sampling, said, pipes, dense):
    pipe = pipes[model]
    before = attributes(pipe)
    with pytest.raises(DiffESError) as raised:
        latents(pipe, Cached("refused", sampling, cache))
    assert said in str(raised.value)
    assert unchanged(before, attributes(pipe))


@pytest.mark.parametrize(
    ("model", "cache", "name"), [(TRANSFORMER, DualBlock(0.1), "cache_dit"), (UNET, Deep(2), "DeepCache")]
)
def test_missing_library_names_the_extra(model, cache, name, pipes, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DiffESError, match=rf"{name}: expected .* pip install 'diff-es\[caches\]'"):
        latents(pipes[model], Cached("missing", CALL, cache))
