"""What is set where the user says nothing: stages, levers and the reference, by how the pipeline samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from tests.helpers.own import fixed, own
from tests.helpers.tiny import CALL, settings, tiny

from diff_es import DiffESError, Levers, Sampling, Settings
from diff_es.compression.study import prepare
from diff_es.compression.survey import Survey, survey
from diff_es.pipelines.families import Pipeline
from diff_es.utils.progress import Reporter


def surveyed(pipe: Pipeline, steps: int = CALL.steps, **changes: Any) -> Survey:
    unsaid: dict[str, Any] = {"stages": None, "levers": None, "reference_multiple": None, **changes}
    sampling = Sampling(steps, CALL.guidance, CALL.batch)
    return survey(pipe, replace(settings(sampling=sampling), **unsaid), Reporter(quiet=True))


def test_of_few_steps_each_is_a_stage_and_together_they_are_the_reference() -> None:
    few = surveyed(tiny(), 4)
    assert len(few.stages) == few.settings.stages == 4
    assert few.reference == few.trace.timesteps
    assert few.own.steps == (1, 1, 1, 1)
    assert few.costs.choices == ((1,), (0, 1), (0, 1), (0, 1)), "steps may be merged, and no more are taken"


def test_of_many_steps_ten_stages_are_compared_with_a_finer_run() -> None:
    many = surveyed(tiny(), 20)
    assert len(many.stages) == many.settings.stages == 10
    assert many.settings.reference_multiple == 4
    assert len(many.reference or ()) == 80


def test_what_is_said_holds_for_few_steps_too() -> None:
    said = surveyed(tiny(), 4, stages=2, reference_multiple=3)
    assert len(said.stages) == 2
    assert len(said.reference or ()) == 12


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_steps_are_a_choice_where_the_sampler_lets_them(kind: type) -> None:
    assert surveyed(tiny(scheduler=kind)).settings.levers is Levers.BOTH


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        (EulerAncestralDiscreteScheduler, {}, "draws noise on the way"),
        (LCMScheduler, {}, "draws noise on the way"),
        (TCDScheduler, {}, "draws noise on the way"),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, "draws noise on the way"),
        (HeunDiscreteScheduler, {}, "takes no timesteps but its own"),
    ],
)
def test_levels_alone_are_searched_where_it_does_not(
    kind: type, options: dict[str, object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = Sampling(4, CALL.guidance, CALL.batch)
    found = survey(tiny(scheduler=kind, options=options), Settings(sampling=sampling), Reporter())
    assert found.settings.levers is Levers.PRUNE
    assert found.path is None
    assert f"{kind.__name__} {why}: levels alone are searched." in " ".join(capsys.readouterr().err.split())


def test_a_sampler_that_takes_a_timestep_twice_keeps_its_steps() -> None:
    """Exponential sigmas, whose timesteps are rounded, crowd towards the image."""
    pipe = tiny()
    pipe.scheduler = DPMSolverMultistepScheduler(use_exponential_sigmas=True)
    assert surveyed(pipe, 4).settings.levers is Levers.BOTH
    many = surveyed(pipe, 30)
    assert many.settings.levers is Levers.PRUNE
    assert len(set(many.trace.timesteps)) < 30
    with pytest.raises(DiffESError, match=r"own timesteps of DPMSolver.*search levels alone \(levers=Levers.PRUNE"):
        prepare(pipe, replace(settings(sampling=Sampling(30, CALL.guidance, CALL.batch)), levers=Levers.STEPS))


def test_a_loop_of_the_users_own_without_times_keeps_its_steps() -> None:
    assert (
        surveyed(own(sample=fixed, times=None, corrects=False), sampling=Sampling(batch=4)).settings.levers
        is Levers.PRUNE
    )
    assert surveyed(own(), sampling=Sampling(batch=4)).settings.levers is Levers.BOTH


def test_what_a_sampler_does_not_take_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(DiffESError, match=r"scheduler: expected .*found LCMScheduler\. Search levels alone"):
        surveyed(tiny(scheduler=LCMScheduler), levers=Levers.BOTH)
