"""Laws of widths: channel counts that the hardware likes, and a layer that would run slower stays dense."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.tiny import CALL, assert_same, settings, snapshot, tiny
from torch import Tensor, nn

from diff_es import DiffESError, Method, Run, Width, compress
from diff_es.evaluation.demo import settings_of
from diff_es.evaluation.inspection import inspect
from diff_es.layers import Kind, Layer, discover
from diff_es.pipelines.families import Sampling
from diff_es.pruning.latency import hardware_multiple, slower_layers, time_layers
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)


@given(groups=st.integers(1, 6000), levels=st.integers(2, 12), multiple=st.sampled_from([1, 8, 16, 32, 64]))
def test_channels_that_stay_are_rounded_up_to_a_multiple(groups: int, levels: int, multiple: int) -> None:
    ladder, layer = Width(levels, multiple, ()), Layer("ff", Kind.FEEDFORWARD, groups, 1, (), "out")
    kept = [ladder.kept(layer, level) for level in range(levels)]
    step = next(s for s in (64, 32, 16, 8, 4, 2, 1) if s <= multiple and (s * levels <= groups or s == 1))
    assert kept[0] == groups
    assert kept == sorted(kept, reverse=True)
    for level, count in enumerate(kept):
        exact = groups - level * groups // levels
        assert exact <= count < exact + step
        assert count % step == 0 or count == groups


@given(heads=st.integers(1, 48), levels=st.integers(2, 12))
def test_heads_are_never_rounded(heads: int, levels: int) -> None:
    layer = Layer("attn", Kind.ATTENTION, heads, 64, (), "out")
    for level in range(levels):
        assert Width(levels, 64, ()).kept(layer, level) == heads - level * heads // levels


def test_the_multiple_follows_precision_and_device() -> None:
    assert hardware_multiple(torch.device("cuda"), torch.bfloat16) == 64
    assert hardware_multiple(torch.device("cuda"), torch.float32) == 32
    assert hardware_multiple(torch.device("cpu"), torch.float32) == 16


@pytest.mark.parametrize("changes", [{"multiple": 0}, {"levels": 1}])
def test_a_ladder_of_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DiffESError, match=rf"Width.{next(iter(changes))}: expected a whole number from . to"):
        Width(**changes)


@pytest.fixture
def slow_when_thin() -> Iterator[Any]:
    """A pipeline whose feed-forward layers sleep where they have fewer than 40 of 64 channels."""
    pipe = tiny()

    def wait(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        time.sleep(0.004 if 8 < module.net[2].in_features < 40 else 0.001)  # type: ignore[union-attr, index]

    handles = [block.ff.register_forward_hook(wait) for block in pipe.transformer.transformer_blocks]
    yield pipe
    for handle in handles:
        handle.remove()


def test_a_level_that_would_run_slower_than_dense_is_left_dense(slow_when_thin: Any, tmp_path: Path) -> None:
    pipe = slow_when_thin
    before, anatomy = snapshot(pipe.transformer), discover(pipe.transformer)
    ladder = Width(8, 1, ())
    times = time_layers(pipe, anatomy, ladder, CALL, QUIET)
    assert_same(before, snapshot(pipe.transformer))
    assert sorted(name for shape in times for name in shape.layers) == sorted(layer.name for layer in anatomy.layers)
    slow = slower_layers(times)
    forward = [layer.name for layer in anatomy.layers if layer.kind is Kind.FEEDFORWARD]
    assert {(name, level) for name, level in slow if name in forward} == {
        (name, n) for name in forward for n in (4, 5, 6)
    }
    found: dict[str, Any] = inspect(pipe, 8, QUIET, Sampling(num_inference_steps=10, batch=2), timed=True)
    for row in found["layers"]:
        if row["name"] in forward:
            assert row["kept_by_level"] == [64, 56, 48, 40, 64, 64, 64, 8]
    widths = [found["width_macs_ratio"][level] for level in (3, 4)]
    assert widths[1] > widths[0], "a level whose feed-forward stays dense costs more, and its price says so"
    assert [seconds > 0 for seconds in found["width_seconds"]] == [True] * 8
    assert_same(before, snapshot(pipe.transformer))


def test_what_was_measured_is_kept_and_a_resume_does_not_measure_again(slow_when_thin: Any, tmp_path: Path) -> None:
    chosen, journal = replace(settings(), method=Method(Width(8))), tmp_path / "journal.jsonl"
    first = compress(slow_when_thin, 0.9, chosen, run=Run(journal=journal))
    ladder = first.report.settings.method.ladder
    assert isinstance(ladder, Width)
    assert ladder.multiple == 16
    assert ("transformer_blocks.0.ff", 5) in (ladder.dense or ())
    again = compress(tiny(), 0.9, chosen, run=Run(journal=journal, resume=True))  # here nothing is slow any more
    assert again.report.settings == first.report.settings
    assert again.schedule == first.schedule
    goes_on, begins = settings_of(0, journal).method.ladder, settings_of(0, tmp_path / "none.jsonl").method.ladder
    assert isinstance(goes_on, Width)
    assert isinstance(begins, Width)
    assert (goes_on.dense, begins.dense) == (ladder.dense, None), "so does the demo"
