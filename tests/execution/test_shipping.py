"""Laws of what workers are given: a pipeline that can be opened travels as names, and any other weights are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.tiny import assert_same_plans, joint, tiny
from torch import nn

from diff_es.compression.study import prepare
from diff_es.execution.shipping import shipped
from diff_es.pipelines.loading import load
from diff_es.utils.errors import DiffESError


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    tiny().save_pretrained(tmp_path / "model")
    return load(str(tmp_path / "model"), device="cpu")


def test_a_pipeline_from_a_folder_travels_as_names_and_everything_else_as_it_is(pipe: Any) -> None:
    own, half = torch.randn(3, 4), torch.randn(5).bfloat16()
    parts = [pipe, pipe.transformer.transformer_blocks[0], pipe.transformer.proj_out_1.weight, pipe.scheduler]
    sent = shipped({"parts": parts, "own": own, "twice": [own, half]}, pipe)
    assert sent.origin is not None
    assert sent.bytes < 10_000
    assert sum(array.nbytes for array in sent.arrays) == own.nbytes + half.nbytes
    found = sent.opened("cpu")
    again, block, weight, scheduler = found["parts"]
    assert again is not pipe
    assert block is again.transformer.transformer_blocks[0]
    assert weight is again.transformer.proj_out_1.weight
    assert scheduler is again.scheduler
    assert scheduler.config == pipe.scheduler.config
    assert torch.equal(found["own"], own)
    assert found["twice"][0] is found["own"]
    assert torch.equal(found["twice"][1], half)


def test_other_weights_than_those_that_lie_there_are_refused(pipe: Any) -> None:
    with torch.no_grad():
        pipe.transformer.proj_out_1.weight += 1
    with pytest.raises(DiffESError, match=r"expected the same weights as in the process that asks, found another tra"):
        shipped(pipe, pipe).opened("cpu")


def test_adapters_are_no_part_of_what_lies_there(pipe: Any) -> None:
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q"]), pipe.transformer)
    with pytest.raises(DiffESError, match=r"found another transformer. Save it with `save_pretrained`, adapters fused"):
        shipped(pipe, pipe).opened("cpu")


def test_a_pipeline_made_in_memory_brings_its_weights() -> None:
    pipe = tiny()
    sent = shipped(pipe, pipe)
    again = sent.opened("cpu")
    before, after = pipe.transformer.state_dict(), again.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(isinstance(one, nn.Parameter) and one.is_contiguous() for one in again.transformer.parameters())
    assert sent.bytes > sum(value.nbytes for value in before.values())


def test_who_scores_needs_no_statistics_where_levels_are_solved_before() -> None:
    ready = prepare(tiny(), joint())
    lean = ready.for_scoring(2)
    assert (lean.known_bytes, lean.library.memory) == (ready.known_bytes // 2, (ready.library.memory or 0) // 2)
    assert shipped(lean, ready.pipe).bytes < 0.9 * shipped(ready, ready.pipe).bytes
    again = shipped(lean, ready.pipe).opened("cpu")
    for unit in range(len(ready.units)):
        levels = [0] * len(ready.units)
        levels[unit] = len(ready.units[unit].options) - 1
        assert_same_plans([again.library.plan(1, levels)], [ready.library.plan(1, levels)])


def strides(pipe: Any) -> list[tuple[int, ...]]:
    return [one.stride() for part in (pipe.transformer, pipe.vae) for one in part.parameters()]


@pytest.mark.parametrize("saved", [False, True])
def test_weights_lie_in_memory_as_they_did(saved: bool, pipe: Any) -> None:
    """Convolutions of the same weights, one after the other or channels last, differ in their last bits."""
    pipe = pipe if saved else tiny()
    plain = strides(pipe)
    pipe.vae.to(memory_format=torch.channels_last)
    across = torch.randn(3, 4).T
    again, other = shipped((pipe, across), pipe).opened("cpu")
    assert strides(again) == strides(pipe) != plain
    assert torch.equal(other, across)
    assert other.stride() == across.stride()


def test_a_device_that_no_worker_has_is_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diff_es.execution.shipping.device_of", lambda denoiser: torch.device("mps"))
    with pytest.raises(DiffESError, match=r"workers: expected a pipeline on the CPU or on a GPU.*one on mps.*--device"):
        shipped(pipe, pipe)
