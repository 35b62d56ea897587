"""Statistics and weights that do not fit into memory wait on disk, and come back the same to the bit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
import torch
from tests.helpers.tiny import (
    CALL,
    assert_same,
    assert_same_plans,
    assert_same_statistics,
    calls_of,
    settings,
    snapshot,
    stages_of,
    tiny,
)

from diff_es import Compressed, DiffESError, Run, compress
from diff_es.compression.study import Study
from diff_es.layers import Cut, discover
from diff_es.pipelines.probes import make_probes
from diff_es.pruning.calibration import calibrate
from diff_es.pruning.cut_store import CutStore
from diff_es.pruning.library import Library
from diff_es.pruning.moments import Moments
from diff_es.pruning.statistics import Spilled, Statistics, spilled
from diff_es.pruning.wanted import Wanted, parts_within, shared_out
from diff_es.utils.malloc import give_back
from diff_es.utils.memory import held_memory
from diff_es.utils.progress import Reporter
from diff_es.utils.spill import Spill

QUIET = Reporter(quiet=True)


def gathered(memory: int | None) -> Statistics:
    pipe = tiny()
    anatomy, probes = discover(pipe.transformer), make_probes(pipe, 3, 0, "calibration")
    return calibrate(pipe, probes, CALL, stages_of(pipe, 3), Wanted(anatomy.layers, anatomy.blocks), QUIET, memory)


def largest() -> int:
    anatomy = discover(tiny().transformer)
    return max(Wanted(anatomy.layers, anatomy.blocks).sizes().values())


def test_statistics_that_are_gathered_in_parts_are_those_of_one_run() -> None:
    whole = gathered(None)
    for memory in (largest(), 3 * largest()):
        parts = gathered(memory)
        assert all(isinstance(stage, Spilled) for stage in parts.stages)
        assert_same_statistics(whole, parts)
        assert_same_statistics(whole, pickle.loads(pickle.dumps(parts)))
    assert not any(isinstance(stage, Spilled) for stage in gathered(10**9).stages)


def test_parts_on_disk_leave_no_memory_behind() -> None:
    """Of each, 40 sums of 1.3 MB: malloc would find no place for them among those that are gone."""
    names, device, held = [str(one) for one in range(40)], torch.device("cpu"), list[int]()

    def parts() -> Iterator[Statistics]:
        for _ in range(6):
            held.append(held_memory(device))
            yield Statistics(
                ({name: Moments(torch.ones(576, 576), torch.ones(576), 4, torch.ones(576)) for name in names},), (0.0,)
            )

    give_back()
    assert len(spilled(1, names, parts()).stages[0]) == 40
    assert max(held) - held[0] < 20e6


def test_a_part_runs_no_further_than_its_stages() -> None:
    """Three stages of two steps, a pass for each: 2, 4 and 6 calls for every batch."""
    pipe = tiny()
    anatomy, probes = discover(pipe.transformer), make_probes(pipe, 2 * CALL.batch, 0, "calibration")
    sizes = Wanted(anatomy.layers, anatomy.blocks).sizes()
    scheduler, before = pipe.scheduler, snapshot(pipe.transformer)
    given = (pipe, probes, CALL, stages_of(pipe, 3), Wanted(anatomy.layers, anatomy.blocks), QUIET)
    with calls_of(pipe.transformer.proj_out_2) as calls:
        found = calibrate(*given, sum(sizes.values()))
    assert calls == [2 * (2 + 4 + 6)]
    assert_same_statistics(calibrate(*given), found)
    assert pipe.scheduler is scheduler
    assert_same(before, snapshot(pipe.transformer))


def test_parts_hold_everything_once_and_never_more_than_the_limit() -> None:
    sizes = {"a": 5, "b": 3, "c": 4}
    assert parts_within(None, 2, sizes) == parts_within(24, 2, sizes) == [[(s, n) for s in (0, 1) for n in sizes]]
    for limit in range(5, 24):
        parts = parts_within(limit, 2, sizes)
        assert [pair for part in parts for pair in part] == [(s, n) for s in (0, 1) for n in sizes]
        assert all(sum(sizes[name] for _, name in part) <= limit for part in parts)
        assert len(parts) > 1


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_share_everything_out_so_that_runs_and_gathering_take_all_of_them_the_same(workers: int) -> None:
    whole = [(stage, str(name)) for stage in range(10) for name in range(100)]
    parts, end = shared_out(whole, workers), 0
    assert [pair for part in parts for pair in part] == whole
    for part in parts:
        end += len(part)
        assert end + len(part) == pytest.approx(2 * len(parts[0]), abs=2)
    assert shared_out(whole[:1], workers) == [whole[:1]]
    assert shared_out([], workers) == [[]]


def test_too_little_for_one_layer_is_refused_with_what_it_takes() -> None:
    found = rf"memory: expected at least {largest() / 1e9:.3f} GB, for .*, found 0\.000 GB\. Give more"
    with pytest.raises(DiffESError, match=found):
        gathered(largest() - 1)


def test_weights_of_levels_wait_on_disk_and_come_back(study: Study) -> None:
    def library(memory: int | None) -> Library:
        made = study.library
        return Library(made.denoiser, made.anatomy, study.statistics, made.method, QUIET, made.units, memory)

    whole = study.library
    rows = [(stage, (level,)) for stage in range(3) for level in (3, 1, 2)]
    for memory in (0, 5000):
        little = library(memory)
        for stage, row in [*rows, *reversed(rows)]:
            assert_same_plans([little.plan(stage, row)], [whole.plan(stage, row)])


def test_a_store_keeps_what_was_asked_for_last_and_loses_nothing() -> None:
    cuts = {(0, name, 1): Cut(torch.arange(1), torch.randn(4, 4)) for name in "abc"}
    store = CutStore(128)
    for key, cut in cuts.items():
        store[key] = cut
    assert store[0, "b", 1] is cuts[0, "b", 1]
    for _ in range(2):
        for again in (store, pickle.loads(pickle.dumps(store))):
            for key, cut in cuts.items():
                assert key in again
                assert torch.equal(again[key].weight, cut.weight)  # type: ignore[arg-type]
    bare = Cut(torch.arange(1))
    store[1, "a", 1] = bare
    assert store[1, "a", 1] is bare
    assert (0, "d", 1) not in store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_a_tensor_comes_back_from_disk(dtype: torch.dtype) -> None:
    spill, given = (
        Spill(),
        [torch.randn(3, 4, 5).mul(9).to(dtype), torch.zeros(0, 2, dtype=dtype), torch.ones((), dtype=dtype)],
    )
    for key, tensor in enumerate([*given, given[0].mT]):
        spill.put(key, tensor)
    for key, tensor in enumerate([*given, given[0].mT]):
        found = spill.get(key)
        assert (found.dtype, found.shape) == (dtype, tensor.shape)
        assert torch.equal(found, tensor)


def test_moments_on_disk_are_where_their_vectors_are() -> None:
    stage = Spilled(Spill(), 0, ["a"])
    stage.put("a", Moments(torch.eye(2), torch.ones(2), 3, torch.zeros(2)))
    assert list(stage) == ["a"]
    assert torch.equal(stage["a"].second, torch.eye(2))


def test_a_search_finds_the_same_however_little_memory_it_may_take(fast: Compressed) -> None:
    found = compress(tiny(), 0.6, settings(), Run(memory=largest() / 1e9))
    assert found.report == fast.report
    assert_same_plans(found.plans, fast.plans)
