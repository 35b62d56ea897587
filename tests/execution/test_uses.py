"""What falls into independent pieces comes out the same of two workers of a real cluster as of this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.on_ray import Standing
from tests.helpers.own import own
from tests.helpers.tiny import CALL, assert_same_plans, assert_same_statistics, joint, stages_of, tiny

from diff_es import Compressed, Method, Reporter, Wanda, compress
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.final import Finalist, Found, select
from diff_es.compression.starts import by_rule
from diff_es.compression.study import prepare
from diff_es.evaluation.evaluate import Extent, evaluated
from diff_es.evaluation.recipes.opened import opened
from diff_es.evaluation.recipes.recipe import Dtype, Metric, Result, read_recipe
from diff_es.evaluation.recipes.run import run_recipe
from diff_es.evaluation.report import Row
from diff_es.execution import Crew
from diff_es.execution.shipping import shipped
from diff_es.layers import declared, discover
from diff_es.pipelines.families import Pipeline
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.calibration import calibrate
from diff_es.pruning.library import Library
from diff_es.pruning.solving import by_workers
from diff_es.pruning.statistics import Spilled
from diff_es.pruning.wanted import Wanted, parts_within
from diff_es.scoring.journal import Journal

QUIET = Reporter(quiet=True)
LITTLE = joint(generations=1, timestep_generations=1, search_noises=2, population=3)


@pytest.fixture
def pair(hired: Callable[[int], Standing]) -> Standing:
    """Two workers."""
    return hired(2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny pipeline lies, which workers open for themselves."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def pipe(place: Path) -> Pipeline:
    return load(str(place / "model"))


@pytest.fixture(scope="module")
def fast(place: Path, pipe: Pipeline) -> Compressed:
    """What was found for it: steps, levels and corrections."""
    found = compress(pipe, 0.6, LITTLE)
    found.save(place / "fast")
    return found


def untimed(row: Row) -> Row:
    """Without what was measured with a clock."""
    still = replace(row, latency_ms=0.0, latency_spread=0.0, speedup=0.0, denoiser_speedup=0.0, doubt="")
    return replace(still, speedup_low=None, speedup_high=None)


def test_what_was_declared_of_a_denoiser_is_known_where_it_is_opened() -> None:
    sampler = own()
    copy = shipped(sampler, sampler).opened("cpu")
    assert copy.denoiser is not sampler.denoiser
    assert declared(copy.denoiser) == declared(sampler.denoiser) is not None


def test_statistics_are_gathered_in_parts_to_the_bit_of_one_run(pair: Standing, pipe: Pipeline) -> None:
    """In memory, and on disk where they do not fit."""
    anatomy, probes = discover(pipe.transformer), make_probes(pipe, 3, 0, "calibration")
    wanted = Wanted(anatomy.layers, anatomy.blocks)
    given, largest = (pipe, probes, CALL, stages_of(pipe, 3), wanted, QUIET), max(wanted.sizes().values())
    whole = calibrate(*given)
    for memory, pieces in ((None, 2), (largest, len(parts_within(largest, 3, wanted.sizes())))):
        before, found = pair.done, calibrate(*given, memory, pair.workers)
        assert pair.done - before == pieces
        assert all(isinstance(stage, Spilled) == (memory is not None) for stage in found.stages)
        assert_same_statistics(whole, found)


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("method", [Method(), Method(shared_order=True), Method(ranking=Wanda(), compensation=None)])
def test_levels_are_solved_by_workers_to_the_bit(
    method: Method, memory: int | None, pair: Standing, pipe: Pipeline
) -> None:
    """Whose weights stay in memory, and whose wait on disk."""
    anatomy = discover(pipe.transformer)
    wanted = Wanted(anatomy.layers, squares=method.squares)
    statistics = calibrate(pipe, make_probes(pipe, 2, 0, "calibration"), CALL, stages_of(pipe, 3), wanted, QUIET)
    given, before = (denoiser_of(pipe), anatomy, statistics, method, QUIET, None, memory), pair.done
    alone, together = Library(*given), Library(*given, partial(by_workers, pipe, pair.workers))
    assert pair.done - before == len(anatomy.layers) * (1 if method.shared_order else 3)
    units = range(len(alone.units))
    for stage, unit in itertools.product(range(3), units):
        for level in range(1, len(alone.units[unit].options)):
            assert together.left(stage, unit, level) == alone.left(stage, unit, level)
            assert_same_plans(*([library.part(stage, unit, level)] for library in (together, alone)))


def test_finalists_are_judged_by_workers_to_the_same_choice(pair: Standing, pipe: Pipeline) -> None:
    ready = prepare(pipe, LITTLE)
    field = [Finalist(candidate, corrected) for candidate in by_rule(ready, 0.6) for corrected in (True, False)]

    def chosen(crew: Crew | None) -> Found:
        return select(ready, 0.6, field, Evaluator(ready, Journal(None, {}, resume=False), crew), (), 7, QUIET)

    before = pair.done
    found = chosen(pair.workers)
    trials = sum(one.noises // LITTLE.held_out_noises for one in found.finalists)
    assert pair.done - before == trials + len(field), "each on every part that it reached, and on the search's probes"
    assert found == chosen(None)


def test_an_evaluation_has_the_same_images_and_figures(pair: Standing, pipe: Pipeline, fast: Compressed) -> None:
    extent = Extent(noises=3, images=3, rounds=1, batch=2, random=2)
    here, before = evaluated(pipe, fast, extent), pair.done
    there = evaluated(pipe, fast, extent, executor=pair)
    assert pair.done - before > 2 * len(here.rows), "two batches of each contender, and the search by chance"
    assert [untimed(row) for row in here.rows] == [untimed(row) for row in there.rows]
    assert all(map(torch.equal, here.images, there.images))
    assert (here.cases, here.snr_db, here.random) == (there.cases, there.snr_db, there.random)


def test_a_recipe_comes_to_the_same_files(pair: Standing, place: Path, fast: Compressed, tmp_path: Path) -> None:
    recipe, made = read_recipe("dit-xl-256-ddim20"), fast.sampling
    asked = replace(
        recipe,
        model=replace(recipe.model, weights=str(place / "model")),
        setting=replace(recipe.setting, steps=made.steps, guidance=made.guidance, dtype=Dtype.FLOAT32),
        images=replace(recipe.images, count=7, batch=2),
        metrics=(Metric("tiles"), Metric("snr")),
        results=(Result(str(place / "fast")),),
    )
    ready = opened(asked)
    run_recipe(ready, tmp_path / "here", QUIET, keep=True)
    before = pair.done
    run_recipe(ready, tmp_path / "there", QUIET, pair, keep=True)
    assert pair.done - before == 4
    files = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*.*")]
    assert {path.suffix for path in files} == {".json", ".png", ".safetensors"}
    for file in files:
        here, there = tmp_path / "here" / file, tmp_path / "there" / file
        if file.suffix == ".safetensors":  # whose header has names in any order
            assert_equal(load_file(here), load_file(there))
        else:
            assert here.read_bytes() == there.read_bytes(), file
    run_recipe(ready, tmp_path / "there", QUIET, Nobody(), keep=True)  # nothing is left to do


class Nobody:
    """An executor that is not to be called."""

    def crew(self, reporter: Reporter) -> AbstractContextManager[Crew]:
        raise AssertionError


def assert_equal(scores: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    assert scores.keys() == others.keys()
    assert all(torch.equal(score, others[name]) for name, score in scores.items())
