"""The laws on a GPU, where weights of stages stream ahead on a stream of their own; CI has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import images, joint, opened, random_plan, settings, snapshot, stages_of, tiny

from diff_es import Compressed, Resident, Streamed, compress, load
from diff_es.layers import DENSE
from diff_es.placements import Placement, Stitched
from diff_es.route import routed
from diff_es.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def on_gpu(dtype: torch.dtype) -> Any:
    return tiny(dtype=dtype).to("cuda")


@BOTH
@pytest.mark.parametrize("placement", [Streamed(), Streamed(0.01), Stitched()])
def test_all_placements_give_bitwise_the_same_images(placement: Placement, dtype: torch.dtype) -> None:
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


def test_an_offloaded_model_gives_what_the_one_on_the_device_gives() -> None:
    pipe = on_gpu(torch.float32)
    result = compress(pipe, 0.6, settings())
    with result.routed(pipe):
        expected = images(pipe)
    for placement in (Resident(), Streamed()):
        other = tiny()
        other.enable_model_cpu_offload()
        with result.routed(other, placement=placement):
            assert torch.allclose(images(other), expected, atol=1e-5)
