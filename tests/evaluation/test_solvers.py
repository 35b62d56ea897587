"""Diffusers' solvers as ways to sample: exactly so many calls, the user's scheduler afterwards, and exact where they
can be."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from diffusers import HeunDiscreteScheduler, IPNDMScheduler
from diffusers.schedulers import AysSchedules
from tests.helpers.own import own
from tests.helpers.pipelines import flux, made, sd3, stable_diffusion
from tests.helpers.tiny import CALL, calls_of, tiny
from torch import Tensor

from diff_es import DiffESError, Sampling
from diff_es.evaluation.rivals.dense import latents_of
from diff_es.evaluation.rivals.solvers import (
    FIRST_ORDER,
    FIRST_ORDER_FLOW,
    MULTISTEP,
    OTHER_SECOND_ORDER,
    SECOND_ORDER,
    Kind,
    Solver,
    Spacing,
    Trial,
    converged,
    kinds_for,
    rivals_for,
    solver,
    spaced,
)
from diff_es.pipelines.families import Pipeline
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.scoring.metrics import snr_db

KINDS = {kind.name: kind for kind in (FIRST_ORDER, *MULTISTEP)}
IPNDM_4 = KINDS["iPNDM 4"]
every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(scope="module")
def bundled() -> Pipeline:
    return load("bundled")


def ran(pipe: Pipeline, way: Solver) -> tuple[int, Tensor]:
    """Calls of the denoiser, heard and not traced, and final latents."""
    with calls_of(denoiser_of(pipe)) as calls:
        latents = latents_of(pipe, way, make_probes(pipe, 1, 0, "evaluation"))
    return calls[0], latents


@every
def test_exactly_so_many_calls(kind: Kind, bundled: Pipeline) -> None:
    pipe = tiny()
    before, config, ways = pipe.scheduler, dict(pipe.config), spaced(pipe, kind, CALL, 4)
    assert {Spacing.LEADING, Spacing.LINSPACE, Spacing.TRAILING} <= {way.spacing for way in ways}
    for way in ways:
        calls, latents = ran(pipe, way)
        assert (calls, way.steps) == (4, 4), way.name
        assert latents.isfinite().all(), way.name
    assert (pipe.scheduler, dict(pipe.config)) == (before, config)
    calls, latents = ran(bundled, solver(bundled, kind, Spacing.TRAILING, CALL, 5))
    assert (calls, bool(latents.isfinite().all())) == (5, True)


@every
def test_the_users_scheduler_is_back_after_an_error(kind: Kind) -> None:
    pipe = tiny()
    before, way = pipe.scheduler, solver(pipe, kind, Spacing.TRAILING, CALL, 4)
    with suppress(ZeroDivisionError), way.context(pipe):
        assert type(pipe.scheduler) is kind.scheduler
        _ = 1 / 0
    assert pipe.scheduler is before


def test_ddim_is_the_pipelines_own_to_the_bit(bundled: Pipeline) -> None:
    probes = make_probes(bundled, 2, 0, "evaluation")
    way = solver(bundled, FIRST_ORDER, Spacing.TRAILING, Sampling(20, 2.0), 4)
    assert torch.equal(latents_of(bundled, way, probes), sample(bundled, probes, Sampling(4, 2.0)))


def test_fine_solvers_agree(bundled: Pipeline) -> None:
    probes, asked = make_probes(bundled, 1, 0, "evaluation"), Sampling(20, 2.0)
    second, other = (
        latents_of(bundled, converged(bundled, asked, kind, 50), probes) for kind in (SECOND_ORDER, OTHER_SECOND_ORDER)
    )
    coarse = latents_of(bundled, solver(bundled, SECOND_ORDER, Spacing.TRAILING, asked, 10), probes)
    assert float(snr_db(second, other)) > 35 > 25 > float(snr_db(second, coarse))


@every
def test_exact_on_straight_trajectories(kind: Kind) -> None:
    """Where image and noise stay as predicted, every solver of every order and spacing leads along their mixtures."""
    image, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pipe = tiny(options={"prediction_type": "v_prediction"})
    table = pipe.scheduler.alphas_cumprod.double()
    for way in spaced(pipe, kind, CALL, 5):
        if kind is FIRST_ORDER and way.spacing is Spacing.LINSPACE:
            continue  # where diffusers' DDIM takes steps of 200 between timesteps that are 250 apart
        scheduler = way.scheduler
        scheduler.set_timesteps(5)
        if kind is FIRST_ORDER:
            alphas = [*table[scheduler.timesteps], torch.ones(()).double()]
        else:
            alphas = list(1 / (1 + scheduler.sigmas.double() ** 2))
        state = mixed(alphas[0], image, noise)
        for alpha, t in zip(alphas, scheduler.timesteps, strict=False):
            state = scheduler.step(alpha.sqrt() * noise - (1 - alpha).sqrt() * image, t, state).prev_sample
        repeats = len(alphas) > 1 and alphas[-1] == alphas[-2]  # DEIS by rules of noise: 0 / 0 in its last weight
        assert repeats or torch.allclose(state, mixed(alphas[-1], image, noise), atol=1e-4), way.name
        assert not repeats or kind.name == "DEIS 3"
        assert torch.isclose(alphas[-1], table[0] if kind.name == "DEIS 3" else torch.ones(()).double()), way.name


def mixed(alpha: Tensor, image: Tensor, noise: Tensor) -> Tensor:
    return alpha.sqrt() * image + (1 - alpha).sqrt() * noise


def test_ipndm_of_one_call_is_ddim(bundled: Pipeline) -> None:
    asked = Sampling(20, 2.0)
    ways = [solver(bundled, kind, Spacing.TRAILING, asked, 1) for kind in (FIRST_ORDER, IPNDM_4)]
    ddim, ipndm = (ran(bundled, way)[1] for way in ways)
    assert torch.allclose(ddim, ipndm, atol=1e-4)


def test_ipndm_has_the_arithmetic_of_diffusers_own() -> None:
    """On the same noise levels; its own timesteps are no other model's."""
    ours = solver(tiny(options={"prediction_type": "v_prediction"}), IPNDM_4, Spacing.TRAILING, CALL, 8).scheduler
    ours.set_timesteps(8)
    sigmas = ours.sigmas / (1 + ours.sigmas**2).sqrt()
    theirs = IPNDMScheduler(trained_betas=sigmas.tolist())
    theirs.set_timesteps(8)
    one = other = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t, their_t in zip(ours.timesteps, theirs.timesteps, strict=True):
        one = ours.step(torch.tanh(one).roll(1, -1), t, one).prev_sample
        other = theirs.step(torch.tanh(other).roll(1, -1), their_t, other).prev_sample
    assert torch.allclose(one, other, atol=1e-3 * float(other.abs().max()))


def test_the_spacing_is_the_best_on_other_noises() -> None:
    pipe = tiny()
    probes = make_probes(pipe, 3, 0, "fitting")
    trial = Trial(probes, latents_of(pipe, converged(pipe, CALL, steps=20), probes))
    snr = {
        way.name: float(snr_db(trial.goal, latents_of(pipe, way, probes)).mean())
        for way in spaced(pipe, SECOND_ORDER, CALL, 5)
    }
    chosen = rivals_for(pipe)[SECOND_ORDER.name](pipe, CALL, 5, trial)
    assert snr[chosen.name] == max(snr.values()) > min(snr.values())


def test_published_lists_of_the_models_that_have_them() -> None:
    pipe, asked = made(stable_diffusion), Sampling(5, 2.0, batch=1)
    ways = {way.spacing: way for way in spaced(pipe, SECOND_ORDER, asked, 10)}
    assert ways[Spacing.PUBLISHED].timesteps == tuple(AysSchedules["StableDiffusionTimesteps"])
    assert ran(pipe, ways[Spacing.PUBLISHED])[0] == 10
    with pytest.raises(DiffESError, match="a list was published"):
        solver(tiny(), SECOND_ORDER, Spacing.PUBLISHED, CALL, 10)  # of another noise schedule
    with pytest.raises(DiffESError, match="a list was published"):
        solver(pipe, IPNDM_4, Spacing.PUBLISHED, asked, 10)


def test_flow_matching() -> None:
    pipe, asked = made(sd3), Sampling(5, 2.0, batch=1)
    kinds = kinds_for(pipe)
    assert kinds == (FIRST_ORDER_FLOW, *MULTISTEP)
    for kind in kinds:
        assert ran(pipe, solver(pipe, kind, Spacing.FLOW, asked, 4))[0] == 4
    pipe = made(flux)  # which hands the noise levels over itself, but to a solver that makes its own
    (way,) = spaced(pipe, SECOND_ORDER, asked, 4)
    assert (way.spacing, ran(pipe, way)[0]) == (Spacing.FLOW, 4)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DiffESError, match="OwnSampler"):
        kinds_for(own())
    with pytest.raises(DiffESError, match="spacing: expected one that it has"):
        solver(tiny(), FIRST_ORDER, Spacing.KARRAS, CALL, 4)
    with pytest.raises(DiffESError, match="expected 4 calls of the denoiser, found 7"):
        solver(tiny(), Kind("Heun", HeunDiscreteScheduler), Spacing.LINSPACE, CALL, 4)
    with pytest.raises(DiffESError, match="expected a spacing with 2000 calls, found none"):
        spaced(tiny(), FIRST_ORDER, CALL, 2000)
