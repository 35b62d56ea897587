"""The laws on a GPU, where weights of stages stream ahead on a stream of their own; CI has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.pipelines import BY_BLOCK, BY_LEAF, CASES, in_groups, made
from tests.helpers.tiny import images, joint, opened, random_plan, settings, snapshot, stages_of, tiny
from torch import Tensor

from diff_es import Compact, Compressed, Depth, DiffESError, Method, Resident, Run, Streamed, Width, compress, load
from diff_es.compression.settings import Settings
from diff_es.layers import DENSE
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pruning.granularity import Granularity
from diff_es.routing.placements import Placed, Stitched
from diff_es.routing.routing import routed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def on_gpu(dtype: torch.dtype) -> Any:
    return tiny(dtype=dtype).to("cuda")


@BOTH
@pytest.mark.parametrize("placement", [Streamed(), Streamed(0.01), Stitched()])
def test_all_placements_give_bitwise_the_same_images(placement: Placed, dtype: torch.dtype) -> None:
    pipe = on_gpu(dtype)
    plans = (random_plan(pipe, 1), DENSE, random_plan(pipe, 2, skip=[1]))
    dense, before = images(pipe), snapshot(pipe.transformer)
    with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, plans, Resident())):
        expected = images(pipe)
    assert not torch.equal(expected, dense)
    for _ in range(3):  # a copy that is read before it is there would not show every time
        with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, plans, placement)):
            assert torch.equal(images(pipe), expected)
    after = snapshot(pipe.transformer)
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("value of "))
    assert torch.equal(images(pipe), dense)


@BOTH
def test_level_0_is_the_dense_model_bitwise(dtype: torch.dtype) -> None:
    pipe = on_gpu(dtype)
    dense = images(pipe)
    with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, (DENSE,) * 3)):
        assert torch.equal(images(pipe), dense)


@BOTH
@pytest.mark.parametrize("chosen", [settings(), joint()], ids=["levels", "steps and levels"])
def test_a_result_is_saved_and_loaded_and_gives_the_same_images(
    chosen: Settings, dtype: torch.dtype, tmp_path: Path
) -> None:
    pipe = on_gpu(dtype)
    dense = images(pipe)
    result = compress(pipe, 0.6, chosen)
    assert torch.equal(images(pipe), dense)
    with result.routed(pipe):
        pruned = images(pipe)
    assert not torch.equal(pruned, dense)
    result.save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert isinstance(again, Compressed)
    with again.routed(on_gpu(dtype)) as other:
        assert torch.equal(images(other), pruned)


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload()


def sequential_offload(pipe: Any) -> None:
    pipe.enable_sequential_cpu_offload()


@pytest.fixture(scope="module")
def thinned() -> Compressed:
    return compress(
        on_gpu(torch.float32),
        0.6,
        settings(method=Method(Width(8, dense=(), depth=Depth()), granularity=Granularity.WHOLE)),
    )


@pytest.mark.parametrize("offload", [model_offload, sequential_offload])
@pytest.mark.parametrize("placement", [Resident(), Streamed()])
def test_an_offloaded_model_gives_what_the_one_on_the_device_gives(
    offload: Callable[[Any], None], placement: Placed, thinned: Compressed
) -> None:
    pipe = on_gpu(torch.float32)
    dense = images(pipe)
    with thinned.routed(pipe):
        expected = images(pipe)
    assert not torch.allclose(expected, dense, atol=1e-3)
    other = tiny()
    offload(other)
    for _ in range(2):
        with thinned.routed(other, placement=placement):
            for _ in range(2):
                assert torch.allclose(images(other), expected, atol=1e-5)
        assert torch.allclose(images(other), dense, atol=1e-5)


@pytest.mark.parametrize("kind", [BY_BLOCK, BY_LEAF])
@pytest.mark.parametrize("placement", [Resident(), Streamed()])
def test_group_offload_gives_what_the_model_on_the_device_gives(kind: dict[str, Any], placement: Placed) -> None:
    case = CASES["SD"]
    chosen = settings(sampling=case.sampling, prompts=("a fox", "a hat"), method=Method(Width(4, dense=())))
    pipe = made(case.make).to("cuda")
    result, probes = compress(pipe, 0.95, chosen), make_probes(pipe, 2, 0, "test")
    dense = sample(pipe, probes, case.sampling)
    with result.routed(pipe):
        expected = sample(pipe, probes, case.sampling)
    assert not torch.allclose(expected, dense, atol=1e-3)
    other, streams = made(case.make), made(case.make)
    in_groups(other, "cuda", **kind)
    for _ in range(2):
        with result.routed(other, placement=placement):
            assert torch.allclose(sample(other, probes, case.sampling), expected, atol=1e-3)
        assert torch.allclose(sample(other, probes, case.sampling), dense, atol=1e-3)
    in_groups(streams, "cuda", use_stream=True, **kind)
    message = r"denoiser: expected parameters .*, found group offloading with streams.*Enable it without use_stream"
    with pytest.raises(DiffESError, match=message), result.routed(streams):
        pass
    assert torch.allclose(sample(streams, probes, case.sampling), dense, atol=1e-3)


@pytest.mark.parametrize("placement", [Resident(), Compact()])
def test_factors_are_merged_where_the_weights_lie(placement: Placed) -> None:
    """Into what the CPU gives, but for the rounding of convolutions in TF32."""
    result = compress(tiny(), 0.6, settings(), run=Run(placement=Compact()))
    assert any(cut.factors for plan in result.plans for cut in plan.cuts.values())
    shown = list[Tensor]()
    for pipe in (tiny(), on_gpu(torch.float32)):
        with result.routed(pipe, placement=placement):
            shown.append(images(pipe).cpu())
    assert torch.allclose(shown[0], shown[1], atol=2e-3)
