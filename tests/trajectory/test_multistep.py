"""Laws of corrected steps: what lies in their directions is found again, what is fitted is never further off, and a
corrected run is a function of its noise alone."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.tiny import tiny
from torch import Tensor

from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pipelines.tracing import trace
from diff_es.scoring import metrics
from diff_es.solvers.custom_timesteps import stepped
from diff_es.solvers.samplers import is_deterministic, trajectory
from diff_es.trajectory.corrections import Recording, corrected, directions, fitting, fixed
from diff_es.trajectory.timesteps import trailing
from diff_es.utils.errors import DiffESError


def drawn(count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return list(torch.randn(count, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype))


def each(states: Tensor) -> Tensor:
    """(N,): the length of every noise's own."""
    return states.flatten(1).norm(dim=1)


def recorded(states: list[Tensor]) -> Recording:
    """A run from timestep 100 down, ten a step, through these states."""
    recording = Recording([100.0 - 10 * i for i in range(len(states) - 1)], 110.0 - 10 * len(states))
    for step in range(len(states) - 1):
        assert recording(step, [states[step + 1], states[step]]) == ()
    return recording


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(2, 5),
    taken=st.integers(1, 5),
    weights=st.lists(st.floats(-2, 2), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_miss_along_the_directions_is_found_again(count: int, taken: int, weights: list[float], seed: int) -> None:
    states, taken = drawn(count, seed), min(taken, count)
    goal = corrected(states, weights[:taken])
    found = fitting(recorded([states[1], goal]), [100.0], 90.0, taken)(0, states)
    assert found == pytest.approx(weights[:taken], abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 5), taken=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_fitted_step_is_never_further_from_its_goal(count: int, taken: int, seed: int) -> None:
    *states, goal = drawn(count + 1, seed)
    weights = fitting(recorded([states[1], goal]), [100.0], 90.0, taken)(0, states)
    assert len(weights) == len(directions(states, taken)) == min(count, taken)
    missed, missing = (each(state - goal) for state in (corrected(states, weights), states[0]))
    assert (missed / missing).square().mean() <= 1 + 1e-6


def test_every_noise_counts_alike() -> None:
    *states, goal = drawn(4, 0)
    far = torch.tensor([1.0, 30.0, 0.1]).view(-1, 1, 1, 1)
    weights = fitting(recorded([states[1], goal]), [100.0], 90.0, 3)(0, states)
    scaled = [state * far for state in states]
    found = fitting(recorded([scaled[1], goal * far]), [100.0], 90.0, 3)(0, scaled)
    assert found == pytest.approx(weights, rel=1e-4)


def test_a_step_that_misses_nothing_is_not_moved() -> None:
    states = drawn(4, 0)
    weights = fitting(recorded([states[1], states[0]]), [100.0], 90.0, 4)(0, states)
    assert torch.equal(corrected(states, weights), states[0])
    assert corrected(states, ()) is states[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_corrections_are_summed_in_float32(dtype: torch.dtype) -> None:
    states = drawn(3, 0, dtype)
    expected = corrected([state.float() for state in states], (0.01, -0.02, 0.3)).to(dtype)
    assert torch.equal(corrected(states, (0.01, -0.02, 0.3)), expected)


def test_directions_that_depend_on_each_other_give_finite_weights() -> None:
    state, goal = drawn(2, 0)
    weights = fitting(recorded([state, goal]), [100.0], 90.0, 4)(0, [state, state, state, torch.zeros_like(state)])
    assert all(abs(weight) < 1e3 for weight in weights)
    assert (corrected([state] * 4, weights) - goal).norm() <= (state - goal).norm() * (1 + 1e-6)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_is_not_corrected(broken: float) -> None:
    state, goal = drawn(2, 0)
    fit = fitting(recorded([state, goal]), [100.0], 90.0, 4)
    assert fit(0, [torch.full_like(state, broken), state]) == ()


def test_states_between_two_of_a_run_are_interpolated() -> None:
    states = drawn(4, 0)
    recording = recorded(states)
    assert torch.equal(recording.at(150.0), states[0])
    assert all(torch.equal(recording.at(100.0 - 10 * i), state) for i, state in enumerate(states))
    torch.testing.assert_close(recording.at(87.5), 0.75 * states[1] + 0.25 * states[2])


def test_a_run_that_begins_again_is_recorded_anew() -> None:
    recording, (first, second) = recorded(drawn(3, 0)), drawn(2, 1)
    recording(0, [second, first])
    assert torch.equal(recording.at(100.0), first)
    assert torch.equal(recording.at(90.0), second)


CALL = Sampling(num_inference_steps=6, guidance_scale=2.0, batch=2)
WEIGHTS = ((0.01, 0.02), (0.01, -0.02, 0.03), (0.02, 0.1, 0.05, -0.04), (0.01, 0.1, 0.05, -0.04))
TIMESTEPS = (833.0, 600.0, 333.0, 100.0)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_pipeline_takes_the_steps_as_corrected(kind: type) -> None:
    """The same as adding the correction by hand to what the user's own sampler returns."""
    pipe = tiny(scheduler=kind)
    probes, seen = make_probes(pipe, 2, 0, "test"), list[list[Tensor]]()

    def hear(step: int, states: list[Tensor]) -> tuple[float, ...]:
        seen.append(list(states))
        return WEIGHTS[step]

    with stepped(pipe, TIMESTEPS, CALL.steps, hear):  # type: ignore[arg-type]
        heard = sample(pipe, probes, CALL)
    with stepped(pipe, TIMESTEPS, CALL.steps, fixed(WEIGHTS)):
        found = sample(pipe, probes, CALL)
        again = sample(pipe, probes, CALL)  # a call begins anew
    assert torch.equal(heard, found)
    assert torch.equal(again, found)
    assert [len(states) for states in seen] == [2, 3, 4, 5]  # as far as the weights of a step may reach
    for step, (before, after) in enumerate(pairwise(seen)):
        assert torch.equal(after[1], corrected(before, WEIGHTS[step]))
        assert all(torch.equal(*pair) for pair in zip(after[2:], before[1:], strict=True))


def test_copies_of_a_sampler_do_not_share_states() -> None:
    pipe, numbers = tiny(), list[int]()
    with stepped(pipe, TIMESTEPS, CALL.steps, lambda step, states: numbers.append(step) or ()):  # type: ignore[func-returns-value]
        one, other = pipe.scheduler, deepcopy(pipe.scheduler)
        for scheduler in (one, other):
            scheduler.set_timesteps(CALL.steps)
        output, latents = drawn(2, 0)
        for scheduler, t in ((one, 0), (other, 0), (one, 1)):
            scheduler.step(output, int(TIMESTEPS[t]), latents)
        deepcopy(one).step(output, int(TIMESTEPS[2]), latents)  # one that has begun goes on where it was
        one.step(output, int(TIMESTEPS[2]), latents)
    assert numbers == [0, 0, 1, 2, 2]


def test_a_run_that_begins_late_is_refused() -> None:
    pipe, (output, latents) = tiny(), drawn(2, 0)
    with stepped(pipe, TIMESTEPS, CALL.steps, fixed(WEIGHTS)):
        pipe.scheduler.set_timesteps(CALL.steps)
        message = r"pipe: expected a run from timestep 833 on, found one that begins at 333\. Call a pipeline"
        with pytest.raises(DiffESError, match=message):
            pipe.scheduler.step(output, 333, latents)


def test_what_a_step_returns_keeps_its_kind() -> None:
    pipe, (output, latents) = tiny(), drawn(2, 0)
    with stepped(pipe, TIMESTEPS, CALL.steps, fixed(WEIGHTS)):
        pipe.scheduler.set_timesteps(CALL.steps)
        whole = pipe.scheduler.step(output, 833, latents, return_dict=False)
        pipe.scheduler.set_timesteps(CALL.steps)
        named = pipe.scheduler.step(model_output=output, timestep=833, sample=latents)
    assert torch.equal(whole[0], named.prev_sample)
    assert torch.equal(whole[1], named.pred_original_sample)
    plain = deepcopy(pipe.scheduler)
    plain.set_timesteps(CALL.steps)
    assert torch.equal(plain.step(output, 833, latents).pred_original_sample, whole[1])


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (DDIMScheduler, {}, True),
        (DPMSolverMultistepScheduler, {}, True),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, False),
        (EulerAncestralDiscreteScheduler, {}, False),
    ],
)
def test_samplers_that_add_noise_are_left_alone(kind: type, options: dict[str, str], expected: bool) -> None:
    assert is_deterministic(kind(**options)) is expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_on_the_bundled_model_half_of_the_steps_lead_nearer_with_corrections(kind: str) -> None:
    """Fitted on some noises, they are worth 3 dB and more on others."""
    pipe, call = (
        load("bundled", scheduler=kind, device="cpu"),
        Sampling(num_inference_steps=16, guidance_scale=2.0, batch=4),
    )
    path = trajectory(pipe.scheduler, trace(pipe, call).timesteps)
    fine, few = trailing(path, 48), trailing(path, 8)
    lessons, held_out = (make_probes(pipe, 4, 0, purpose) for purpose in ("lesson", "held-out"))
    recording = Recording(fine, path.end)
    with stepped(pipe, fine, call.steps, recording):
        sample(pipe, lessons, call)
    with stepped(pipe, few, call.steps, fitting(recording, few, path.end, 4)) as stepping:
        sample(pipe, lessons, call)
        fitted = stepping.corrections
    with stepped(pipe, fine, call.steps):
        goal = sample(pipe, held_out, call)
    results = []
    for corrections in ((), fitted):
        with stepped(pipe, few, call.steps, fixed(corrections)):
            results.append(float(metrics.snr_db(goal, sample(pipe, held_out, call)).mean()))
    assert results[1] > results[0] + 3
