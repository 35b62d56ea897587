"""Offloaded from a device of its own, a routed pipeline gives what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.helpers.pipelines import BY_BLOCK, BY_LEAF, CASES, in_groups, made
from tests.helpers.second import SECOND, second_device
from tests.helpers.tiny import LITTLE, settings
from torch import Tensor

from diff_es import Compressed, Method, Resident, Streamed, Width, compress
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pruning.granularity import Granularity
from diff_es.routing.placements import Placed

CASE = replace(CASES["SD"], sampling=replace(CASES["SD"].sampling, num_inference_steps=2, batch=1))


@pytest.fixture(scope="module")
def result() -> Compressed:
    method = Method(Width(4, dense=()), granularity=Granularity.WHOLE)
    chosen = settings(sampling=CASE.sampling, stages=2, prompts=("a fox", "a hat"), method=method, **LITTLE)
    return compress(made(CASE.make), 0.95, chosen)


def shown(pipe: Any) -> Tensor:
    return sample(pipe, make_probes(pipe, 1, 0, "test"), CASE.sampling).cpu()


def offloaded(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device=SECOND)


def in_sequence(pipe: Any) -> None:
    pipe.enable_sequential_cpu_offload(device=SECOND)


def by_block(pipe: Any) -> None:
    in_groups(pipe, SECOND, **BY_BLOCK)


def by_leaf(pipe: Any) -> None:
    in_groups(pipe, SECOND, **BY_LEAF)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "placement"),
    [
        (offloaded, Resident()),
        (in_sequence, Resident()),
        (by_block, Resident()),
        (by_leaf, Resident()),
        (by_leaf, Streamed()),
    ],
)
def test_an_offloaded_pipeline_gives_what_it_gives_on_the_cpu(
    place: Callable[[Any], None], placement: Placed, result: Compressed
) -> None:
    pipe = made(CASE.make)
    dense = shown(pipe)
    with result.routed(pipe):
        expected = shown(pipe)
    assert not torch.allclose(expected, dense, atol=1e-2)
    with second_device():
        place(pipe)
        with result.routed(pipe, placement=placement):
            assert torch.allclose(shown(pipe), expected, atol=1e-3)
        assert torch.allclose(shown(pipe), dense, atol=1e-3)
        waits = pipe.unet.conv_in.weight.device.type
        assert waits == ("meta" if place is in_sequence else "cpu")
