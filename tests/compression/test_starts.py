"""Laws of where a search begins: steps where the dense run is straightest, or where corrections miss least of it,
stand on it, whatever its sampler."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, LITTLE, joint, settings, tiny

from diff_es import Depth, Granularity, Method, Width, compress
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.settings import Levers
from diff_es.compression.starts import by_rule, foreseen, straightest
from diff_es.compression.study import Study, prepare
from diff_es.scoring.journal import Journal


@cache
def evaluator_of(scheduler: Any = DDIMScheduler, corrections: int = 4) -> tuple[Study, Evaluator]:
    case = CASES["SD"]
    pipe = made(case.make)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    own = {"sampling": case.sampling, "prompts": ("a fox", "a hat"), "corrections": corrections}
    settings = joint(levers=Levers.STEPS, search_noises=2, first_rung=0, **own)
    ready = prepare(pipe, settings)
    return ready, Evaluator(ready, Journal(None, {}, resume=False))


@pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
def test_steps_stand_on_points_of_the_dense_run_as_many_as_the_budget_holds(share: float) -> None:
    ready, evaluator = evaluator_of()
    found = straightest(ready, share, evaluator), foreseen(ready, share, evaluator)
    assert all(found)
    assert ready.reference is not None
    for one in chain(*found):
        assert one.timesteps[0] == ready.reference[0]
        assert set(one.timesteps) <= set(ready.reference)
        assert len(one.timesteps) == sum(one.steps) == int(share * sum(ready.costs.steps) + 1e-9)
        assert ready.stages.steps(one.timesteps) == one.steps


def test_there_are_none_where_the_dense_run_was_not_written_down() -> None:
    ready, evaluator = evaluator_of(corrections=0)
    assert straightest(ready, 0.7, evaluator) == foreseen(ready, 0.7, evaluator) == ()


def test_what_a_step_misses_is_the_same_in_the_states_of_every_sampler() -> None:
    """DDIM's states keep their power, Euler's their signal; both go the same way."""
    ddim, euler = (evaluator_of(kind)[1].scorer.fitness.bends for kind in (DDIMScheduler, EulerDiscreteScheduler))
    assert ddim is not None
    assert euler is not None
    later = np.triu_indices(len(ddim), 2)
    assert np.isinf(ddim.missed[np.tril_indices(len(ddim))]).all()
    assert ddim.missed[later] == pytest.approx(euler.missed[later], rel=2e-3)
    assert ddim.missed.diagonal(1) == pytest.approx(np.zeros(len(ddim) - 1), abs=1e-4)
    lost, also = (one.left(4, 5) for one in (ddim, euler))
    assert (np.isinf(lost) == np.isinf(also)).all()
    assert lost[np.isfinite(lost)] == pytest.approx(also[np.isfinite(also)], rel=2e-2, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (EulerDiscreteScheduler, {"final_sigmas_type": "sigma_min"}),
        (DDIMScheduler, {"set_alpha_to_one": False, "timestep_spacing": "linspace"}),
    ],
)
def test_a_sampler_that_ends_at_its_last_timestep_has_starts_too(kind: Any, options: dict[str, Any]) -> None:
    """Its last step has no length."""
    pipe = tiny(scheduler=kind, options=options, layers=1)
    ready = prepare(pipe, joint(levers=Levers.STEPS, search_noises=2, first_rung=0, corrections=2, stages=2))
    evaluator = Evaluator(ready, Journal(None, {}, resume=False))
    bends = evaluator.scorer.fitness.bends
    assert bends is not None
    assert not np.isnan(bends.missed).any()
    assert not np.isnan(bends.left(2, 3)).any()
    assert bends.missed[-2, -1] == pytest.approx(0, abs=1e-4)
    for share in (0.5, 1.0):
        found = [*straightest(ready, share, evaluator), *foreseen(ready, share, evaluator), *by_rule(ready, share)]
        assert len(found) > 2
        assert all(sum(one.steps) <= share * CALL.steps for one in found)


def test_a_budget_below_the_deepest_level_of_all_is_kept_by_another() -> None:
    """Where the deepest skips blocks, and costs more than the thinnest that skips none."""
    method = Method(Width(4, dense=(), depth=Depth()), granularity=Granularity.WHOLE)
    fast = compress(tiny(), 0.42, settings(**{**LITTLE, "search_noises": 2}, method=method))
    assert fast.report.macs_ratio <= 0.42


def test_a_share_of_many_digits_is_kept() -> None:
    fast = compress(tiny(), 0.3333333333, joint(**{**LITTLE, "search_noises": 2}))
    assert fast.report.macs_ratio <= 0.3333333333


def test_steps_are_those_of_the_sampler_however_often_each_calls_the_denoiser() -> None:
    pipe = tiny(scheduler=HeunDiscreteScheduler)
    own = settings(**{**LITTLE, "search_noises": 2}, stages=2, sampling=replace(CALL, num_inference_steps=5))
    report = compress(pipe, 0.7, own).report
    assert (sum(report.steps), len(report.timesteps)) == (5, 5)
    assert len(set(report.timesteps)) == 5
