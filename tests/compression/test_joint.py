"""Laws of the joint search: a schedule's own steps are what the sampler takes, at exactly the price that was named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DiTPipeline,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from tests.helpers.counting import counted
from tests.helpers.fresh import images_of
from tests.helpers.tiny import CALL, assert_same, assert_same_plans, images, joint, snapshot, tiny
from torch import Tensor

from diff_es import Compressed, DiffESError, Resident, Streamed, compress, disable, export, load
from diff_es.compression.reopening import found_again
from diff_es.compression.settings import Levers
from diff_es.compression.study import prepare
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.routing.routing import routing_of
from diff_es.solvers.custom_timesteps import stepping_of

KINDS: dict[str, dict[str, Any]] = {
    "DDIM": {},
    "DPM": {"scheduler": DPMSolverMultistepScheduler, "activation": "geglu"},
}
MACS = Fraction(6, 10)


class Case(NamedTuple):
    model: dict[str, Any]
    fast: Compressed


COMBINATIONS = [("DDIM", Levers.PRUNE), ("DPM", Levers.STEPS), ("DDIM", Levers.BOTH), ("DPM", Levers.BOTH)]
FEW: dict[str, Any] = {"timestep_generations": 1, "finalists": 1, "survivors": 2}


@cache
def searched(kind: str, levers: Levers) -> Case:
    return Case(KINDS[kind], compress(tiny(**KINDS[kind]), float(MACS), joint(levers=levers, corrections=4, **FEW)))


@pytest.fixture(params=COMBINATIONS, ids=" ".join)
def case(request: pytest.FixtureRequest) -> Case:
    return searched(*request.param)


@contextmanager
def heard(pipe: DiTPipeline) -> Iterator[list[float]]:
    """The timesteps that the denoiser receives."""
    timesteps = list[float]()
    handle = on_timestep(pipe.transformer, timesteps.append)
    try:
        yield timesteps
    finally:
        handle.remove()


# ------------------------------------------------------------------------------------------------------- the result


def test_another_denoiser_is_refused_and_the_result_still_goes_away() -> None:
    fast = searched(*COMBINATIONS[0]).fast
    pipe = tiny()
    own, dense, scheduler = pipe.transformer, images(pipe), pipe.scheduler
    for end in (fast.remove, disable):
        fast.apply(pipe)
        pipe.transformer = tiny(seed=1).transformer
        with pytest.raises(DiffESError, match=r"another DiTTransformer2DModel\. Leave the `routed` context"):
            images(pipe)
        end(pipe)
        assert routing_of(own) is None
        assert stepping_of(pipe) is None
        assert pipe.scheduler is scheduler
        pipe.transformer = own
        assert torch.equal(images(pipe), dense)


def test_the_calls_that_are_made_cost_what_was_promised(case: Case) -> None:
    pipe, report = tiny(**case.model), case.fast.report
    (table,), stages, levels = report.macs_by_level, case.fast.schedule.stages, case.fast.schedule.levels
    with counted(pipe) as dense:
        images(pipe, [1])
    with case.fast.routed(pipe), counted(pipe) as calls:
        images(pipe, [1])
    assert [call.macs for call in dense] == [table[0]] * CALL.steps
    assert [call.macs for call in calls] == [table[levels[stages.index(call.timestep)][0]] for call in calls]
    assert [call.timestep for call in calls] == list(report.timesteps)
    assert report.steps == stages.steps(report.timesteps)
    spent, own = sum(call.macs for call in calls), sum(call.macs for call in dense)
    assert report.macs_ratio == report.cost_ratio == spent / own
    assert spent <= MACS * own
    if report.settings.levers is Levers.STEPS:
        assert len(calls) == MACS * CALL.steps // 1  # as many steps as there can be


def test_a_routed_pipeline_takes_the_steps_of_the_result_and_keeps_no_trace(case: Case) -> None:
    pipe, fast = tiny(**case.model), case.fast
    scheduler, before, dense = pipe.scheduler, snapshot(pipe.transformer), images(pipe)
    state, config = dict(vars(scheduler)), dict(pipe.config)
    with fast.routed(pipe), heard(pipe) as timesteps:
        found = images(pipe)
        again = images(pipe, [1, 2], steps=len(fast.timesteps or ()))  # the other number that is understood
    assert timesteps == [*(fast.timesteps or ())] * 2
    assert torch.equal(found, again)
    assert not torch.equal(found, dense)
    assert pipe.scheduler is scheduler
    assert stepping_of(pipe) is None
    assert routing_of(pipe.transformer) is None
    assert dict(pipe.config) == config
    assert vars(scheduler).keys() == state.keys()
    assert_same(before, snapshot(pipe.transformer))
    assert torch.equal(images(pipe), dense)


def test_apply_and_remove_do_the_same(case: Case) -> None:
    pipe, fast = tiny(**case.model), case.fast
    scheduler, before, dense = pipe.scheduler, snapshot(pipe.transformer), images(pipe)
    with fast.routed(pipe):
        expected = images(pipe)
    fast.apply(pipe)
    assert torch.equal(images(pipe), expected)
    for again in (fast.apply, lambda pipe: fast.routed(pipe).__enter__()):
        with pytest.raises(DiffESError, match=r"pipe: expected a dense pipeline, .* routed already"):
            again(pipe)
    assert torch.equal(images(pipe), expected)
    fast.remove(pipe)
    assert pipe.scheduler is scheduler
    assert_same(before, snapshot(pipe.transformer))
    assert torch.equal(images(pipe), dense)
    with fast.routed(pipe):
        fast.remove(pipe)  # leaves early
        assert pipe.scheduler is scheduler
        assert torch.equal(images(pipe), dense)
    assert pipe.scheduler is scheduler


def test_another_number_of_steps_is_refused_with_the_one_to_ask_for(case: Case) -> None:
    pipe, fast = tiny(**case.model), case.fast
    with fast.routed(pipe):
        for steps in {1, 5, 7, 12} - {CALL.steps, len(fast.timesteps or ())}:
            with pytest.raises(DiffESError, match=rf"found {steps}\. Call the pipeline with num_inference_steps=6"):
                images(pipe, steps=steps)
        images(pipe, [1, 2, 3], guidance=1.0)  # batch and guidance are free
    assert stepping_of(pipe) is None


def test_a_sampler_that_takes_no_chosen_steps_is_refused_and_nothing_changes(case: Case) -> None:
    pipe = tiny(**case.model)
    pipe.scheduler = mine = PNDMScheduler()
    before, plain = snapshot(pipe.transformer), replace(case.fast, corrections=())
    for use in (plain.apply, lambda pipe: plain.routed(pipe).__enter__()):
        with pytest.raises(DiffESError, match=r"scheduler: expected one that can take other timesteps"):
            use(pipe)
        assert pipe.scheduler is mine
        assert_same(before, snapshot(pipe.transformer))


def test_every_placement_runs_it_alike(case: Case) -> None:
    pipe, shown = tiny(**case.model), list[Tensor]()
    for placement in (Resident(), Streamed(), Streamed(0.01)):
        with case.fast.routed(pipe, placement):
            shown.append(images(pipe))
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])


def test_it_is_whole_again_from_disk(case: Case, tmp_path: Path) -> None:
    case.fast.save(tmp_path / "out")
    again, one, other = load(tmp_path / "out"), tiny(**case.model), tiny(**case.model)
    assert (again.timesteps, again.schedule) == (case.fast.timesteps, case.fast.schedule)
    assert again.report == case.fast.report
    assert_same_plans(again.plans, case.fast.plans)
    with case.fast.routed(one), again.routed(other):
        assert torch.equal(images(one), images(other))


@pytest.mark.slow
def test_a_fresh_process_gives_bitwise_the_same_images(tmp_path: Path) -> None:
    expected, results = dict[str, Tensor](), list[tuple[str, str]]()
    for i, case in enumerate(searched(*combination) for combination in COMBINATIONS):
        pipe, model, folder = tiny(**case.model), str(tmp_path / f"model-{i}"), str(tmp_path / f"out-{i}")
        case.fast.save(folder)
        pipe.save_pretrained(model)
        expected[model] = images(pipe)
        with case.fast.routed(pipe):
            expected[folder] = images(pipe)
        results.append((model, folder))
    again = images_of(results, tmp_path / "images.safetensors")
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_what_is_saved_is_the_best_of_what_was_judged(case: Case) -> None:
    report = case.fast.report
    winner, *others = found_again(report).finalists
    assert (winner.score, winner.candidate.levels) == (report.score, case.fast.schedule.levels)
    if winner.candidate.chooses_steps:
        assert winner.candidate.steps == report.steps
    assert winner.candidate.timesteps in ((), case.fast.timesteps)
    assert bool(case.fast.corrections) == winner.corrected
    for other in others:
        assert other.noises < winner.noises or other.held_out <= winner.held_out
        assert np.isfinite([other.score, other.held_out]).all()
    assert report.score >= report.history[0].median


def test_a_folder_of_its_own_cannot_hold_chosen_steps(tmp_path: Path) -> None:
    pipe = tiny()
    fast = compress(pipe, 0.6, joint(stages=1, levers=Levers.STEPS, **FEW))
    with fast.routed(pipe), heard(pipe) as chosen:
        images(pipe)
    assert len(chosen) < CALL.steps
    with pytest.raises(DiffESError, match=r"steps"):
        export(fast, pipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_sampler_of_two_calls_a_step_is_refused_before_anything_runs() -> None:
    pipe = tiny(scheduler=HeunDiscreteScheduler)
    with heard(pipe) as timesteps:
        for levers in (Levers.BOTH, Levers.STEPS):
            with pytest.raises(DiffESError, match=r"one denoiser call a step, found HeunDiscreteScheduler.*calls it 2"):
                prepare(pipe, joint(levers=levers))
    assert len(set(timesteps)) == CALL.steps  # the trace, whose calls compute nothing


# ------------------------------------------------------------------------------------------------------------ fronts


def test_one_run_gives_a_front_from_dense_to_cheapest(tmp_path: Path) -> None:
    chosen = joint(front=(0.05, 0.35, 1.0, 0.001), population=8, generations=2, sensitivity_noises=1)
    fast, pipe = compress(tiny(), 0.65, chosen), tiny()
    fast.save(tmp_path / "out")
    points = sorted((fast, *fast.others), key=lambda point: point.report.limit)
    assert [point.report.limit for point in points] == [0.35, 0.65, 1.0]  # what can be had
    ratios, scores = ([getattr(point.report, key) for point in points] for key in ("macs_ratio", "held_out_score"))
    assert all(a < b for a, b in pairwise(ratios))
    assert all(ratio <= point.report.limit for ratio, point in zip(ratios, points, strict=True))
    assert all(a < b for a, b in pairwise(scores)), "a dearer point that is no closer"
    assert all(point.base == fast.base for point in points)
    for point in points:
        again = load(tmp_path / "out", 1 / point.report.macs_ratio)
        assert (again.schedule, again.timesteps) == (point.schedule, point.timesteps)
        assert again.report == point.report
        assert len(again.others) == len(points) - 1
        with point.routed(pipe):
            expected = images(pipe)
        with again.routed(pipe):
            assert torch.equal(images(pipe), expected)
    assert load(tmp_path / "out").report.limit == 0.65
    best, cheapest = load(tmp_path / "out", 1.0), 1 / ratios[0]
    assert best.report.macs_ratio == ratios[-1]
    assert load(tmp_path / "out", cheapest * 0.99).report.macs_ratio == ratios[0]
    with pytest.raises(DiffESError, match=rf"point: expected one of 1\.0\dx.* {cheapest:.2f}x, or less, found 99x"):
        load(tmp_path / "out", 99.0)
