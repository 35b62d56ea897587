"""The method on DiT pipelines of many shapes, samplers and precisions, and diffusers' own published test, routed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    Transformer2DModel,
)
from tests.helpers.tiny import LITTLE, assert_same, images, opened, settings, snapshot, stages_of, tiny

from diff_es import BudgetOutOfReach, Depth, Method, Sampling, UnsupportedModel, Width, compress, load
from diff_es.layers import DENSE, Kind, discover
from diff_es.pipelines.supported import check
from diff_es.pipelines.tracing import trace
from diff_es.routing.routing import routed

GEGLU = {"activation": "geglu"}
MATRIX: dict[str, tuple[dict[str, Any], Sampling]] = {
    "head size 8": ({"heads": 2, "head_size": 8}, Sampling(4, 4.0, 2)),
    "head size 24, one layer": ({"heads": 3, "head_size": 24, "layers": 1, **GEGLU}, Sampling(4, 1.0, 2)),
    "five layers, Euler": ({"layers": 5, "scheduler": EulerDiscreteScheduler}, Sampling(5, 4.0, 3)),
    "one token a pixel": ({"patch": 1, "scheduler": DPMSolverMultistepScheduler}, Sampling(4, 4.0, 2)),
    "large patches, sigma": (
        {"patch": 4, "sigma": True, "scheduler": DPMSolverMultistepScheduler},
        Sampling(6, 1.0, 4),
    ),
    "sigma, guidance off": ({"sigma": True, "heads": 5}, Sampling(8, 0.0, 2)),
    "bfloat16": ({"dtype": torch.bfloat16, "sigma": True}, Sampling(4, 4.0, 2)),
    "bfloat16, Euler": ({"dtype": torch.bfloat16, "scheduler": EulerDiscreteScheduler, **GEGLU}, Sampling(4, 1.0, 2)),
    "AutoencoderDC, DPM": ({"decoder": AutoencoderDC, "scheduler": DPMSolverMultistepScheduler}, Sampling(4, 4.0, 2)),
    "one head": ({"heads": 1, "head_size": 8, "layers": 2}, Sampling(4, 4.0, 2)),
    "20 steps": ({"layers": 1}, Sampling(20, 4.0, 2)),
}


# Whose blocks are skipped, too: of another width, number, precision and decoder.
DEEP = ["head size 8", "five layers, Euler", "bfloat16", "AutoencoderDC, DPM"]


@pytest.mark.parametrize(("name", "prune"), [(n, "width") for n in MATRIX] + [(n, "depth") for n in DEEP])
def test_every_shape_is_compressed_routed_saved_and_loaded(name: str, prune: str, tmp_path: Path) -> None:
    changes, sampling = MATRIX[name]
    pipe = tiny(**changes)
    call: dict[str, Any] = {"steps": sampling.steps, "guidance": sampling.guidance}
    before, dense = snapshot(pipe.transformer), images(pipe, **call)
    with routed(pipe.transformer, stages_of(pipe, 3, sampling), opened(pipe, [DENSE] * 3)):
        assert torch.equal(images(pipe, **call), dense)
    method = Method(Depth()) if prune == "depth" else Method(Width(4))
    chosen = settings(**{**LITTLE, "sampling": sampling, "stages": 2, "population": 2, "method": method})
    fast = compress(pipe, 0.8, chosen)
    assert_same(before, snapshot(pipe.transformer))
    assert 0.4 < fast.report.macs_ratio <= 0.8
    assert np.isfinite(fast.report.held_out_score)
    with fast.routed(pipe):
        pruned = images(pipe, **call)
    assert not torch.equal(pruned, dense)
    assert torch.equal(images(pipe, **call), dense)
    fast.save(tmp_path / "out")
    other = tiny(**changes)
    with load(tmp_path / "out").routed(other):
        assert torch.equal(images(other, **call), pruned)


def anatomy_of(pipe: DiTPipeline) -> Any:
    return discover(pipe.transformer)


@pytest.mark.parametrize("name", MATRIX)
def test_every_head_channel_and_block_is_discovered(name: str) -> None:
    pipe = tiny(**MATRIX[name][0])
    config, found = pipe.transformer.config, anatomy_of(pipe)
    width = config.num_attention_heads * config.attention_head_dim
    expected = [
        (f"transformer_blocks.{i}.{part}", kind, groups, size)
        for i in range(config.num_layers)
        for part, kind, groups, size in (
            ("attn1", Kind.ATTENTION, config.num_attention_heads, config.attention_head_dim),
            ("ff", Kind.FEEDFORWARD, 4 * width, 1),
        )
    ]
    pruned = [(layer.name, layer.kind, layer.groups, layer.width) for layer in found.layers]
    assert pruned == [part for part in expected if part[2] > 1]
    assert [(b.name, b.width) for b in found.blocks] == [
        (f"transformer_blocks.{i}", width) for i in range(config.num_layers)
    ]
    single = [part[0] for part in expected if part[2] == 1]
    assert [refusal.name for refusal in found.refusals] == single
    assert all("one always stays" in refusal.reason for refusal in found.refusals)


@pytest.mark.parametrize("name", MATRIX)
def test_a_trace_hears_the_timesteps_of_the_sampler(name: str) -> None:
    changes, sampling = MATRIX[name]
    pipe = tiny(**changes)
    path = trace(pipe, sampling)
    pipe.scheduler.set_timesteps(sampling.steps)
    assert list(path.timesteps) == pipe.scheduler.timesteps.tolist()
    assert len(path.timesteps) == sampling.steps
    assert path.args[0].device.type == "meta"
    assert path.args[0].shape == (2 if sampling.guidance > 1 else 1, 4, 8, 8)


def test_the_only_block_is_never_skipped() -> None:
    with pytest.raises(BudgetOutOfReach, match=r"macs: expected at least 1\.0, .*found 0\.8"):
        compress(tiny(layers=1), 0.8, settings(method=Method(Depth())))


def test_what_cannot_be_slimmed_is_refused_by_name() -> None:
    pipe = tiny()
    for block in pipe.transformer.transformer_blocks:
        block.attn1.to_k = torch.nn.Sequential(block.attn1.to_k)
        block.ff.net[2] = torch.nn.Sequential(block.ff.net[2])
    message = r"DiTTransformer2DModel: expected .* found transformer_blocks\.0\.attn1: a projection is a Sequential"
    with pytest.raises(UnsupportedModel, match=message):
        compress(pipe, 0.8, settings())


# The components, the call and the pixels of tests/pipelines/dit/test_dit.py in huggingface/diffusers (Apache-2.0).
PIXELS = (0.2946, 0.6601, 0.4329, 0.3296, 0.4144, 0.5319, 0.7273, 0.5013, 0.4457)


OLD_CLASS = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput` is deprecated:FutureWarning")


@pytest.fixture(params=[pytest.param(Transformer2DModel, marks=OLD_CLASS), DiTTransformer2DModel])
def published(request: pytest.FixtureRequest) -> DiTPipeline:
    """diffusers tests the class that DiT had of old; checkpoints load as the new one."""
    torch.manual_seed(0)
    transformer = request.param(
        sample_size=16,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    pipe = DiTPipeline(transformer.eval(), AutoencoderKL().eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def published_image(pipe: DiTPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe(class_labels=[1], generator=generator, num_inference_steps=2, output_type="np").images


def assert_published(image: np.ndarray) -> None:
    assert image.shape == (1, 16, 16, 3)
    assert np.abs(image[0, -3:, -3:, -1].flatten() - np.array(PIXELS)).max() <= 1e-3


def test_diffusers_own_test_passes_with_nothing_pruned(published: DiTPipeline) -> None:
    assert check(published) is published
    dense = published_image(published)
    assert_published(dense)
    stages, anatomy = stages_of(published, 2, Sampling(2, 4.0, 1)), anatomy_of(published)
    assert len(anatomy.layers) == 4
    with routed(published.transformer, stages, opened(published, [DENSE, DENSE])):
        image = published_image(published)
    assert_published(image)
    assert np.array_equal(image, dense)


def test_the_published_pipeline_is_compressed_too(published: DiTPipeline, tmp_path: Path) -> None:
    chosen = settings(**{**LITTLE, "sampling": Sampling(2, 4.0, 1), "stages": 2})
    fast = compress(published, 0.7, chosen)
    fast.save(tmp_path / "out")
    with load(tmp_path / "out").routed(published):
        pruned = published_image(published)
    assert not np.array_equal(pruned, published_image(published))
    assert_published(published_image(published))
