"""Laws of stepping: the user's own timesteps change nothing, other lists are run exactly, and nothing stays behind."""

from __future__ import annotations

import inspect
import math
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import AysSchedules
from tests.helpers.tiny import images, tiny
from torch import Tensor

from diff_es import DiffESError
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.scoring import metrics
from diff_es.solvers.ays import Ays, ays
from diff_es.solvers.custom_timesteps import Stepping, stepped, stepping_of
from diff_es.solvers.samplers import STEPPABLE, trajectory
from diff_es.trajectory.timesteps import exponential, karras, placed, trailing

DPM, UNIPC, EULER = DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

SAMPLERS: dict[str, tuple[type, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DDIM trailing v": (DDIMScheduler, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    "DDIM linspace x": (DDIMScheduler, {"timestep_spacing": "linspace", "prediction_type": "sample"}),
    "DDIM as Stable Diffusion": (DDIMScheduler, {"set_alpha_to_one": False, "steps_offset": 1}),
    "DDIM thresholding": (DDIMScheduler, {"thresholding": True, "sample_max_value": 1.5}),
    "DDIM zero SNR": (
        DDIMScheduler,
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "DPM 1": (DPM, {"solver_order": 1}),
    "DPM 2": (DPM, {}),
    "DPM 2 leading": (DPM, {"timestep_spacing": "leading", "steps_offset": 1, "final_sigmas_type": "sigma_min"}),
    "DPM 2 heun to the end": (DPM, {"solver_type": "heun", "lower_order_final": False, "euler_at_final": True}),
    "DPM 3 trailing": (DPM, {"solver_order": 3, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    "DPM sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "DPM karras": (DPM, {"use_karras_sigmas": True}),
    "DPM flow": (DPM, FLOW),
    "UniPC": (UNIPC, {}),
    "UniPC 3": (UNIPC, {"solver_order": 3, "timestep_spacing": "trailing"}),
    "UniPC flow": (UNIPC, FLOW),
    "Euler": (EULER, {}),
    "Euler leading": (EULER, {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "v_prediction"}),
    "Euler karras": (EULER, {"use_karras_sigmas": True}),
    "Euler ancestral": (EulerAncestralDiscreteScheduler, {}),
    "Heun": (HeunDiscreteScheduler, {}),
}


def even(scheduler: Any, steps: int) -> tuple[float, ...]:
    """The timesteps that a scheduler itself gives for a number of steps."""
    copy = deepcopy(scheduler)
    copy.set_timesteps(steps)
    return tuple(float(t) for t in dict.fromkeys(copy.timesteps.tolist()))


every_sampler = pytest.mark.parametrize(("kind", "options"), SAMPLERS.values(), ids=SAMPLERS)


def shown(pipe: Any, steps: int) -> Tensor:
    torch.manual_seed(0)  # for samplers that add noise
    return images(pipe, steps=steps)


def heard(pipe: Any, steps: int) -> tuple[Tensor, list[float]]:
    timesteps = list[float]()
    handle = on_timestep(pipe.transformer, timesteps.append)
    try:
        return shown(pipe, steps), timesteps
    finally:
        handle.remove()


@every_sampler
@pytest.mark.parametrize("steps", [6, 7])
def test_the_users_own_timesteps_change_no_bit(kind, options, steps):
    pipe = tiny(scheduler=kind, options=options)
    plain, own = heard(pipe, steps)
    with stepped(pipe, trajectory(pipe.scheduler, own).timesteps, steps):
        chosen, received = heard(pipe, steps)
    assert torch.equal(plain, chosen)
    assert received == own


@pytest.mark.parametrize("kind", [DDIMScheduler, DPM, EULER])
def test_the_users_own_timesteps_change_no_bit_in_bfloat16(kind):
    pipe = tiny(scheduler=kind, dtype=torch.bfloat16)
    plain = shown(pipe, 6)
    with stepped(pipe, even(pipe.scheduler, 6), 6):
        assert torch.equal(plain, shown(pipe, 6))


def test_clipping_and_eta_are_ddims_own():
    pipe = tiny(options={"beta_schedule": "scaled_linear"})
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=True, clip_sample_range=0.5)
    own = even(pipe.scheduler, 6)
    latents, output = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    plain = deepcopy(pipe.scheduler)
    plain.set_timesteps(6)
    with stepped(pipe, own, 6):
        assert "eta" in inspect.signature(pipe.scheduler.step).parameters
        pipe.scheduler.set_timesteps(6)
        for t in plain.timesteps:
            results = [
                scheduler.step(output, t, latents, eta=0.7, generator=torch.Generator().manual_seed(2)).prev_sample
                for scheduler in (plain, pipe.scheduler)
            ]
            assert torch.equal(*results)
            latents = results[0]


@every_sampler
def test_the_denoiser_receives_the_list(kind, options):
    pipe = tiny(scheduler=kind, options=options)
    path = trajectory(pipe.scheduler, even(pipe.scheduler, 6))
    chosen = placed(path, path.stages(3), [3, 2, 5])
    with stepped(pipe, chosen, 6):
        result, received = heard(pipe, 6)
        same, again = heard(pipe, len(chosen))  # the other number that is understood
    repeats = pipe.scheduler.order
    assert received == again == [chosen[0], *(t for t in chosen[1:] for _ in range(repeats))]
    assert torch.equal(result, same)


@pytest.mark.parametrize(
    "name", ["DPM 1", "DPM 2", "DPM 2 leading", "DPM 3 trailing", "Euler", "Euler leading", "Heun"]
)
def test_a_list_runs_as_the_scheduler_runs_it_itself(name):
    """Where a scheduler takes a list in its own ``set_timesteps``, ours is the same to the bit."""
    kind, options = SAMPLERS[name]
    pipe = tiny(scheduler=kind, options=options)
    path = trajectory(pipe.scheduler, even(pipe.scheduler, 6))
    chosen = placed(path, path.stages(3), [3, 0, 5])
    with stepped(pipe, chosen, 6):
        ours = follow(pipe, 6)
    assert torch.equal(ours, follow(pipe, None, timesteps=chosen))


def follow(pipe: Any, steps: int | None, **options: Any) -> Tensor:
    """The end of a trajectory under an analytic denoiser that asks for every argument."""
    scheduler, generator = deepcopy(pipe.scheduler), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps, **options)
    x = torch.randn(2, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t) * 2 + t / 1000).roll(1, -1)
        x = scheduler.step(output, t, x).prev_sample
    return x


@pytest.mark.parametrize("name", ["DDIM", "DDIM trailing v", "DDIM linspace x"])
def test_ddim_on_a_list_is_dpm_solver_of_order_one(name):
    kind, options = SAMPLERS[name]
    pipe = tiny(scheduler=kind, options=options)
    path = trajectory(pipe.scheduler, even(pipe.scheduler, 10))
    chosen = placed(path, path.stages(5), [4, 3, 0, 1, 5])
    solver = DPM.from_config(pipe.scheduler.config, solver_order=1, final_sigmas_type="zero")
    with stepped(pipe, chosen, 10):
        ours = follow(pipe, 10)
    pipe.scheduler = solver
    torch.testing.assert_close(ours, follow(pipe, None, timesteps=chosen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["DDIM", "DDIM trailing v", "DPM 2", "DPM 3 trailing", "UniPC 3", "Euler", "Heun"])
def test_the_timesteps_of_more_steps_give_what_more_steps_give(name):
    kind, options = SAMPLERS[name]
    pipe = tiny(scheduler=kind, options=options)
    with stepped(pipe, even(pipe.scheduler, 20), 5):
        chosen = shown(pipe, 5)
    assert torch.equal(shown(pipe, 20), chosen)


def gaussian(name: str, counts: list[int]) -> float:
    """The sampler's relative error where the answer is known: Gaussian data of spread 1/2, and its exact denoiser."""
    kind, options = SAMPLERS[name]
    pipe = tiny(scheduler=kind, options={**options, "trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()})
    path = trajectory(pipe.scheduler, even(pipe.scheduler, 20))
    with stepped(pipe, placed(path, path.stages(10), counts), 20):
        scheduler = pipe.scheduler
        scheduler.set_timesteps(20)
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64) * scheduler.init_noise_sigma  # the noise scaled as pipelines do
        for t in scheduler.timesteps:
            sigma = path.sigma([float(t)])[0]
            alpha = (1 + sigma**2) ** -0.5
            share = alpha * sigma / (alpha**2 / 4 + (alpha * sigma) ** 2)
            share *= {"epsilon": 1, "v_prediction": 0.75 * alpha}[scheduler.config.prediction_type]
            x = scheduler.step(share * scheduler.scale_model_input(x, t), t, x).prev_sample
    most = path.sigma(path.timesteps[:1])[0]
    exact = 0.5 * (1 + most**2) ** 0.5 / (0.25 + most**2) ** 0.5  # of noise of variance 1 at the first timestep
    in_signal = scheduler.init_noise_sigma / (1 + most**2) ** 0.5 if scheduler.init_noise_sigma > 1 else 1
    return abs(float(x / in_signal) / exact - 1)


@pytest.mark.parametrize(
    ("name", "least"),
    [("DDIM", 0.04), ("DDIM trailing v", 0.04), ("DPM 2", 0.002), ("UniPC", 0.002), ("Euler", 0.04), ("Heun", 0.01)],
)
def test_finer_lists_converge_to_the_exact_solution(name, least):
    errors = [gaussian(name, [n * m for m in (3, 1, 2, 2, 1, 0, 1, 2, 3, 4)]) for n in (1, 2, 4)]
    assert all(fine < coarse / 1.6 for coarse, fine in pairwise(errors))
    assert errors[-1] < least


@pytest.mark.parametrize("name", ["DDIM", "DPM 2", "DPM karras", "UniPC", "Euler", "Heun"])
def test_what_a_call_receives_depends_on_the_stages_before_alone(name):
    kind, options = SAMPLERS[name]
    pipe = tiny(scheduler=kind, options=options)
    path = trajectory(pipe.scheduler, even(pipe.scheduler, 6))
    none, some, more = (latents_of(pipe, placed(path, path.stages(3), [3, 1, last])) for last in (0, 2, 5))
    known = len(none)
    assert known == 4 * pipe.scheduler.order - (pipe.scheduler.order - 1)
    assert all(map(torch.equal, none, some[:known]))
    known += pipe.scheduler.order
    assert all(map(torch.equal, some[:known], more))
    assert not torch.equal(some[known], more[known])


def latents_of(pipe: Any, chosen: tuple[float, ...]) -> list[Tensor]:
    received = list[Tensor]()
    handle = pipe.transformer.register_forward_pre_hook(lambda module, args: received.append(args[0].clone()))
    with stepped(pipe, chosen, 6):
        shown(pipe, 6)
    handle.remove()
    return received


class FlowPipeline(DiffusionPipeline):
    """As pipelines of flow matching sample: sigmas of their own, shifted by the scheduler, in any dtype."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps: int, **shift: float) -> Tensor:
        assert "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters
        sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, device="cpu", **shift)
        self.scheduler.set_begin_index(0)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            velocity = self.transformer(x, timestep=t[None], class_labels=torch.tensor([1])).sample
            (x,) = self.scheduler.step(velocity, t, x, return_dict=False)
        return x


def flow(**options: Any) -> FlowPipeline:
    return FlowPipeline(tiny().transformer, FlowMatchEulerDiscreteScheduler(**options))


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        ({}, {}),
        ({"shift": 3.0}, {}),
        ({"shift_terminal": 0.1}, {}),
        ({"use_karras_sigmas": True}, {}),
        ({"use_dynamic_shifting": True}, {"mu": 1.15}),
    ],
    ids=str,
)
def test_flow_matching_is_shifted_once(options, shift):
    pipe, own = flow(**options), list[float]()
    handle = on_timestep(pipe.transformer, own.append)
    plain = pipe(6, **shift)
    path = trajectory(pipe.scheduler, own)
    assert path.end == 0
    own.clear()
    with stepped(pipe, path.timesteps, 6):
        assert torch.equal(plain, pipe(6, **shift))
    assert tuple(own) == path.timesteps
    own.clear()
    chosen = placed(path, path.stages(3), [3, 0, 4])
    with stepped(pipe, chosen, 6):
        pipe(6, **shift)
        np.testing.assert_allclose(pipe.scheduler.sigmas.tolist(), [*(t / 1000 for t in chosen), 0], rtol=1e-6)
    handle.remove()
    assert tuple(own) == chosen


def test_everything_comes_back():
    pipe = tiny()
    plain = shown(pipe, 6)
    pipe.scheduler.set_timesteps(4)
    scheduler, config, state = pipe.scheduler, dict(pipe.config), dict(vars(pipe.scheduler))
    with stepped(pipe, (999, 500, 3), 6) as stepping:
        assert stepping_of(pipe) is stepping
        assert not torch.equal(shown(pipe, 6), plain)
    with pytest.raises(KeyboardInterrupt), stepped(pipe, (999, 500, 3), 6):
        raise KeyboardInterrupt
    assert pipe.scheduler is scheduler
    assert stepping_of(pipe) is None
    assert dict(pipe.config) == config
    assert vars(scheduler).keys() == state.keys()
    assert all(value is state[key] for key, value in vars(scheduler).items())
    assert torch.equal(shown(pipe, 6), plain)


def test_the_place_is_taken_by_the_same_class_and_settings():
    pipe = tiny()
    before = pipe.scheduler.to_json_string()
    with stepped(pipe, (999, 500, 3), 6):
        shown(pipe, 6)
        assert type(pipe.scheduler) is DDIMScheduler
        assert pipe.scheduler.to_json_string() == before
        copy = deepcopy(pipe.scheduler)
        pipe.scheduler.set_timesteps(6)
        copy.timesteps = None
        copy.set_timesteps(6)
    assert copy.timesteps.tolist() == [999, 500, 3]


def test_a_scheduler_that_the_user_puts_in_stays():
    pipe = tiny()
    stepping = Stepping(pipe, (999, 500, 3), 6)
    stepping.attach()
    pipe.scheduler = mine = DPM()
    stepping.detach()
    assert pipe.scheduler is mine


def test_another_denoiser_is_refused_and_leaves_no_trace():
    pipe, other = tiny(), tiny(seed=1)
    own, stepping = pipe.transformer, Stepping(pipe, (999, 500, 3), 6)
    scheduler = pipe.scheduler
    stepping.attach()
    pipe.transformer = torch.compile(own, backend="eager")
    assert heard(pipe, 6)[1] == [999, 500, 3]
    for another in (other.transformer, None):
        pipe.transformer = another
        with pytest.raises(DiffESError, match=r"expected the denoiser that the chosen steps are for, found another"):
            pipe.scheduler.set_timesteps(6)
    stepping.detach()
    assert pipe.scheduler is scheduler
    assert stepping_of(pipe) is None
    assert not own._forward_pre_hooks


def test_attached_by_hand():
    pipe, other = tiny(), tiny()
    scheduler, stepping = pipe.scheduler, Stepping(pipe, (999, 500, 3), 6)
    stepping.attach()
    with pytest.raises(DiffESError, match=r"remove\(pipe\)"), stepped(pipe, (999, 2), 6):
        pass
    with stepped(other, (999, 2), 6):
        assert heard(other, 6)[1] == [999, 2]
        assert heard(pipe, 6)[1] == [999, 500, 3]
    for _ in range(2):
        stepping.detach()
        assert pipe.scheduler is scheduler


@pytest.mark.parametrize("steps", [1, 5, 7, 50])
def test_another_number_of_steps_is_refused(steps):
    pipe = tiny()
    message = f"expected 6, for which 3 timesteps were chosen, found {steps}.*num_inference_steps=6"
    with stepped(pipe, (999, 500, 3), 6), pytest.raises(DiffESError, match=message):
        shown(pipe, steps)
    assert heard(pipe, 4)[1] == [750, 500, 250, 0]


def test_a_list_by_the_caller_is_refused():
    pipe = tiny(scheduler=EULER)
    with stepped(pipe, (999, 500, 3), 6), pytest.raises(DiffESError, match="chosen already"):
        pipe.scheduler.set_timesteps(timesteps=[999, 5, 1])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PNDMScheduler, {}, "found PNDMScheduler"),
        (DDPMScheduler, {}, "found DDPMScheduler"),
        (DEISMultistepScheduler, {}, "found DEISMultistepScheduler"),
        (EULER, {"interpolation_type": "log_linear"}, "another interpolation_type, found log_linear"),
        (EULER, {"timestep_type": "continuous"}, "another timestep_type, found continuous"),
        (UNIPC, {"solver_p": DPM()}, "no solver_p, found DPMSolver"),
    ],
)
def test_samplers_that_cannot_are_refused_by_name(kind, options, message):
    pipe = tiny(scheduler=kind, options=options)
    for act in (lambda: Stepping(pipe, (999, 3), 6), lambda: trajectory(pipe.scheduler, (999, 3))):
        with pytest.raises(DiffESError, match=message):
            act()


def test_inverted_flow_matching_is_refused():
    with pytest.raises(DiffESError, match="another invert_sigmas"):
        Stepping(flow(invert_sigmas=True), (999, 3), 6)


def test_all_that_is_promised_is_tested():
    assert {kind for kind, _ in SAMPLERS.values()} | {FlowMatchEulerDiscreteScheduler} == set(STEPPABLE)


@pytest.mark.parametrize(
    ("kind", "timesteps", "message"),
    [
        (DDIMScheduler, (), "strictly descending"),
        (DDIMScheduler, (3, 999), "strictly descending"),
        (DDIMScheduler, (999, 3, 3), "strictly descending"),
        (DDIMScheduler, (999, 2.5), "integers from 999 to 0"),
        (DDIMScheduler, (1000, 3), "integers from 999 to 0"),
        (DDIMScheduler, (999, -1), "integers from 999 to 0"),
        (EULER, (999.5, 3), "numbers from 999 to 0"),
        (EULER, (999, math.nan), "EulerDiscreteScheduler"),
    ],
)
def test_timesteps_that_cannot_be_run_are_refused(kind, timesteps, message):
    with pytest.raises(DiffESError, match=message):
        Stepping(tiny(scheduler=kind), timesteps, 6)


def test_a_timestep_at_the_last_noise_is_refused():
    pipe = tiny(scheduler=DPM, options={"final_sigmas_type": "sigma_min"})
    with stepped(pipe, (999, 500, 0), 6), pytest.raises(DiffESError, match="timestep 0: expected sigma above"):
        shown(pipe, 6)


def test_own_timesteps_that_repeat_are_refused():
    pipe = tiny(scheduler=DPM, options={"use_karras_sigmas": True})
    with (
        stepped(pipe, (999, 500, 3), 300),
        pytest.raises(DiffESError, match=r"own timesteps of DPMSolver.*fewer steps"),
    ):
        shown(pipe, 300)


@pytest.mark.parametrize(("place", "setting"), [(karras, "use_karras_sigmas"), (exponential, "use_exponential_sigmas")])
def test_placements_by_noise_are_diffusers_own(place, setting):
    plain, other = EULER(**SD), EULER(**SD, **{setting: True})
    path = trajectory(plain, even(plain, 20))
    other.set_timesteps(12)
    np.testing.assert_allclose(path.sigma(place(path, 12)), other.sigmas[:-1], rtol=1e-4)


@pytest.mark.parametrize("model", Ays)
def test_align_your_steps(model):
    path = trajectory(DPM(**SD), even(DPM(**SD), 20))
    assert list(ays(path, model, 10)) == AysSchedules[f"{model.value}Timesteps"]
    published = AysSchedules[f"{model.value}Sigmas"][:-1]
    np.testing.assert_allclose(path.sigma(ays(path, model, 19)[::2]), published, rtol=0.03)
    assert ays(trajectory(EULER(**SD), [500.0, 3.0]), model, 7)[0] == 999
    between = np.sqrt(np.multiply(published[1:], published[:-1]))
    np.testing.assert_allclose(path.sigma(ays(path, model, 19)[1::2]), between, rtol=0.03)


def test_align_your_steps_is_for_its_own_noise():
    path = trajectory(DDIMScheduler(), even(DDIMScheduler(), 20))
    with pytest.raises(DiffESError, match=r"up to sigma 14\.615, found up to 157"):
        ays(path, Ays.STABLE_DIFFUSION, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "least"), [(None, 35), ("DPMSolverMultistepScheduler", 35)])
def test_the_bundled_model_converges(scheduler, least):
    pipe = load("bundled", scheduler=scheduler, device="cpu")
    probes, path = make_probes(pipe, 1, 0, "stepping"), trajectory(pipe.scheduler, even(pipe.scheduler, 20))
    reference = sample(pipe, probes, Sampling(100, 2.0, 1))
    found = []
    for share in (1, 2, 4):
        with stepped(pipe, placed(path, path.stages(10), [2 * share] * 10), 20):
            found.append(float(metrics.snr_db(reference, sample(pipe, probes, Sampling(20, 2.0, 1))).mean()))
    assert denoiser_of(pipe).device.type == "cpu"
    assert found == sorted(found)
    assert found[-1] > least
    assert trailing(path, 100) == even(pipe.scheduler, 100)
