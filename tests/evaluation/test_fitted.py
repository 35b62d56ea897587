"""Laws of the fitted solvers: each is exactly what its paper says where that can be worked out, never worse on what it
is fitted to, spends its calls of the denoiser, and gives the user's scheduler back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from tests.helpers.pipelines import made, sd3, stable_diffusion
from tests.helpers.tiny import CALL, tiny
from torch import Tensor

from diff_es import DiffESError, Sampling
from diff_es.evaluation.rivals.dense import latents_of
from diff_es.evaluation.rivals.fitted import (
    Descent,
    Fit,
    FittedWay,
    adams_bashforth,
    by_gradient,
    corrected,
    descended,
    gits,
    pas,
)
from diff_es.evaluation.rivals.fitted.adams_bashforth import rows
from diff_es.evaluation.rivals.fitted.corrected import of_corrections
from diff_es.evaluation.rivals.fitted.gradient import Variables, differentiable, frozen
from diff_es.evaluation.rivals.fitted.pas import basis, fitted, moved
from diff_es.evaluation.rivals.fitted.way import decibel, fine_run, path_of
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.scoring.timing import Way, once
from diff_es.solvers.custom_timesteps import stepped
from diff_es.solvers.flow_time import FlowTime
from diff_es.trajectory.corrections import fixed
from diff_es.trajectory.shortest import cheapest, missed
from diff_es.trajectory.timesteps import trailing

FIT, CALLS = Fit(noises=2, fine=8), 3
LITTLE = Descent(iterations=1, rate=0.02, every=1)
PIPES: dict[str, Callable[[], Any]] = {
    "DiT": tiny,
    "U-Net": lambda: made(stable_diffusion),
    "flow": lambda: made(sd3),
}
MAKERS: dict[str, Callable[..., FittedWay]] = {
    "adams-bashforth": adams_bashforth,
    "gits": gits,
    "pas": pas,
    "corrected": corrected,
    "gradient": partial(by_gradient, descent=LITTLE, start=adams_bashforth),
}


@pytest.fixture(scope="module", params=PIPES)
def pipe(request: pytest.FixtureRequest) -> Any:
    """Of each kind; nobody changes it."""
    return PIPES[request.param]()


def stand(tau: Sequence[float]) -> FlowTime:
    """A flow's own time, from these places to 0."""
    noise = torch.tensor([*tau, 0.0], dtype=torch.float64)
    return FlowTime(tuple(1000 * t for t in tau), 1 - noise, noise)


def uneven(steps: int) -> FlowTime:
    return stand([((steps - k) / steps) ** 1.5 for k in range(steps)])


def test_adams_bashforth_is_exact_where_the_velocity_is_a_quadratic_of_time():
    time = uneven(7)
    solver, tau = rows(time, 3), time.tau
    velocity, integral = 2 - 3 * tau + 5 * tau**2, 2 * tau - 1.5 * tau**2 + 5 / 3 * tau**3
    for step in range(2, 7):  # those before have seen fewer velocities
        end = solver([integral[: step + 1]] * (step + 1), list(velocity[: step + 1]))
        assert float(end[step]) == pytest.approx(float(integral[step + 1]), abs=1e-13)
    cubic, quartic = 4 * tau**3, tau**4
    assert abs(float(solver([quartic[6]] * 7, list(cubic[:7])) - quartic[7])) > 1e-6


def test_adams_bashforth_is_of_third_order():
    def error(steps: int) -> float:
        time = uneven(steps)
        exact, solver = torch.exp(-2 * time.tau), rows(time, 3)
        states, velocities = list(exact[:3]), list(-2 * exact[:2])
        for step in range(2, steps):
            velocities.append(-2 * states[step])
            states.append(solver(states, velocities))
        return abs(float(states[-1] - exact[-1]))

    orders = [math.log2(error(steps) / error(2 * steps)) for steps in (40, 80)]
    assert orders == pytest.approx([3, 3], abs=0.25)
    assert abs(orders[1] - 3) < abs(orders[0] - 3) + 0.02


def test_of_first_order_it_is_the_samplers_own_step(pipe: Any) -> None:
    probes, way = FIT.probes(pipe, "test"), adams_bashforth(pipe, CALL, CALLS, FIT, order=1)
    with stepped(pipe, trailing(path_of(pipe, CALL), CALLS), CALL.steps):
        own_latents = sample(pipe, probes, CALL)
    torch.testing.assert_close(latents_of(pipe, way, probes), own_latents, rtol=1e-4, atol=1e-4)


def test_dynamic_programming_finds_what_trying_all_finds():
    rng, points = np.random.default_rng(0), 8
    table = np.where(np.triu(np.ones((points, points)), 1) > 0, rng.random((points, points)), np.inf)
    for coefficient in (0.8, 1.0, 1.15):
        for steps in range(1, points):

            def cost(inner: tuple[int, ...], coefficient: float = coefficient) -> float:
                total = 0.0
                for start, end in reversed(list(pairwise((0, *inner, points - 1)))):
                    total = table[start, end] + coefficient * total
                return total

            best = min(combinations(range(1, points - 1), steps - 1), key=cost)
            assert cheapest(table, steps, coefficient) == (0, *best)


def test_the_cost_of_a_fine_step_is_none_and_as_many_calls_are_the_fine_run():
    pipe = tiny()
    fine = fine_run(pipe, CALL, path_of(pipe, CALL), FIT, FIT.probes(pipe, "fitting"))
    table = missed(fine.time.tau.tolist(), fine.states, fine.velocities)
    assert float(table.diagonal(1).max()) < 1e-5 < float(table.diagonal(2).min())
    assert gits(pipe, CALL, FIT.fine, FIT, order=1).time.timesteps == fine.time.timesteps


def test_with_all_components_pas_is_least_squares_on_all_that_was_seen():
    generator = torch.Generator().manual_seed(0)
    seen = [torch.randn(1, 2, 4, 4, generator=generator) for _ in range(5)]  # the noise and four directions
    state, goal = torch.randn(2, 1, 2, 4, 4, generator=generator)
    axes = basis(seen[1:], [seen[0], seen[0], state], count=5)
    found = moved(state, axes, fitted(axes, (goal - state) / -0.3), -0.3)
    spanned = torch.stack([one.flatten() for one in seen], 1).double()
    wanted = (goal - state).flatten().double()
    best = spanned @ torch.linalg.lstsq(spanned, wanted).solution
    torch.testing.assert_close((found - state).flatten().double(), best, rtol=1e-4, atol=1e-5)
    gram = axes[0] @ axes[0].T
    torch.testing.assert_close(gram, torch.eye(5, dtype=torch.float64) * gram[0, 0])


def test_what_pas_fits_is_never_worse_than_the_step_it_corrects():
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 4, 9):  # of nine there are fewer components than that
        seen = [torch.randn(6, 8, generator=generator) for _ in range(4)]
        wanted = seen[-1] + 0.5 * torch.randn(6, 8, generator=generator)
        axes = basis(seen[1:], [seen[0], *seen[:1], seen[1]], count)
        plain, best = (
            moved(torch.zeros(6, 8), axes, one, 1.0) for one in ([1.0] + [0.0] * (count - 1), fitted(axes, wanted))
        )
        torch.testing.assert_close(plain, seen[-1])
        assert float((best - wanted).square().sum()) <= float((plain - wanted).square().sum()) * (1 + 1e-6)


def test_pas_ends_nearer_to_what_it_was_fitted_to():
    pipe = tiny()
    probes = FIT.probes(pipe, "fitting")
    goal = fine_run(pipe, CALL, path_of(pipe, CALL), FIT, probes).latents
    ways = pas(pipe, CALL, CALLS, FIT), adams_bashforth(pipe, CALL, CALLS, FIT, order=1)
    near, far = (float(decibel(goal, latents_of(pipe, one, probes))) for one in ways)
    assert near > far


def test_corrected_steps_are_a_multistep_solver(pipe: Any) -> None:
    probes, timesteps = FIT.probes(pipe, "test"), trailing(path_of(pipe, CALL), 4)
    corrections = ((), (0.01, 0.1), (0.02, -0.1, 0.05), (0.0, 0.1, -0.05, 0.02))
    with stepped(pipe, timesteps, CALL.steps, fixed(corrections)):
        latents = sample(pipe, probes, CALL)
    way = of_corrections(pipe, CALL, timesteps, corrections)
    torch.testing.assert_close(latents_of(pipe, way, probes), latents, rtol=1e-4, atol=1e-4)


def test_a_gradient_begins_at_its_start_to_the_bit(pipe: Any) -> None:
    start = corrected(pipe, CALL, CALLS, FIT)
    probes, first = FIT.probes(pipe, "test"), Variables.at(start).placed(pipe, path_of(pipe, CALL))
    assert first.time.timesteps == start.time.timesteps
    latents = latents_of(pipe, start, probes)
    assert torch.equal(latents_of(pipe, first.way(CALL), probes), latents)
    # attention that keeps gradients may round otherwise
    torch.testing.assert_close(differentiable(pipe, CALL, probes, first).detach(), latents, rtol=1e-4, atol=1e-4)


def test_a_gradient_is_never_worse_than_its_start():
    pipe = tiny()
    start, probes = corrected(pipe, CALL, CALLS, FIT), FIT.probes(pipe, "validation")
    goal = fine_run(pipe, CALL, path_of(pipe, CALL), FIT, probes).latents

    def near(way: FittedWay) -> float:
        return float(decibel(goal, latents_of(pipe, way, probes)))

    descents = [Descent(4, rate, every=1) for rate in (3e-3, 100.0)]
    careful, wild = (descended(pipe, start, FIT, descent) for descent in descents)
    assert near(careful) > near(start) == near(wild)  # nothing that the wild one came by was better
    assert wild.time.timesteps == start.time.timesteps


def test_the_gradient_is_that_of_finite_differences():
    pipe = made(sd3)  # whose timesteps are not rounded
    path, probes = path_of(pipe, CALL), FIT.probes(pipe, "fitting")
    goal = fine_run(pipe, CALL, path, FIT, probes).latents
    variables = Variables.at(adams_bashforth(pipe, CALL, 3, FIT))

    def loss() -> Tensor:
        return -decibel(goal, differentiable(pipe, CALL, probes, variables.placed(pipe, path)))

    with frozen(denoiser_of(pipe)):
        loss().backward()
    for variable, place in ((variables.lengths, (1,)), (variables.keeps, (2,)), (variables.weights, (2, 0))):
        assert variable.grad is not None
        values = list[float]()
        for shift in (0.001, -0.002):
            variable.data[place] += shift
            values.append(float(loss().detach()))
        variable.data[place] += 0.001
        assert float(variable.grad[place]) == pytest.approx((values[0] - values[1]) / 0.002, rel=0.01, abs=2e-3)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_each_spends_its_calls_and_gives_the_scheduler_back(pipe: Any, make: Callable[..., FittedWay]) -> None:
    scheduler, settings = pipe.scheduler, dict(pipe.scheduler.config)
    made_here = make(pipe, CALL, CALLS, FIT)
    way: Way = made_here
    probes, called = FIT.probes(pipe, "test"), list[int]()
    denoiser = denoiser_of(pipe)
    handle = denoiser.register_forward_pre_hook(lambda *_: called.append(1))
    with way.context(pipe):
        latents = sample(pipe, probes, way.sampling)
    handle.remove()
    assert len(called) == CALLS == way.steps
    assert latents.isfinite().all()
    assert pipe.scheduler is scheduler
    assert dict(scheduler.config) == settings
    assert "step" not in vars(scheduler)
    assert all(parameter.requires_grad for parameter in denoiser.parameters())
    assert way.of_batch(1).sampling == replace(CALL, batch=1)
    assert once(pipe, way).pipeline > 0
    assert (made_here.fit_noises == 0) == (make is adams_bashforth)
    assert (made_here.fit_seconds == 0) == (make is adams_bashforth)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_seed_gives_the_same_solver_and_another_another(make: Callable[..., FittedWay]) -> None:
    pipe, probes = tiny(), FIT.probes(tiny(), "test")
    first, again, other = (
        latents_of(pipe, make(pipe, CALL, CALLS, fit), probes) for fit in (FIT, FIT, replace(FIT, seed=1))
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (make in (adams_bashforth, gits))  # GITS finds the same steps


def test_what_takes_no_plain_steps_is_refused() -> None:
    pipe = tiny(scheduler=DPMSolverMultistepScheduler)
    with pytest.raises(DiffESError, match=r"scheduler: expected DDIMScheduler or .*DDIMScheduler.from_config"):
        adams_bashforth(pipe, CALL, CALLS, FIT)
    clipped = tiny()
    clipped.scheduler = DDIMScheduler(clip_sample=True)
    with pytest.raises(DiffESError, match="expected no clip_sample"):
        gits(clipped, CALL, CALLS, FIT)
    with pytest.raises(DiffESError, match=r"calls: expected from 1 to 8, the fine steps, found 9"):
        gits(tiny(), CALL, 9, FIT)
    with pytest.raises(DiffESError, match=r"start: expected a linear multistep solver, found pas-1"):
        by_gradient(tiny(), Sampling(6, 2.0), CALLS, FIT, LITTLE, pas)
