"""Laws of chosen timesteps: a call runs all of them in their order, or is refused before an image is made; and nothing
that other pipelines were given keeps them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from threading import Thread
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from tests.helpers.pipelines import CASES, made, randomise
from tests.helpers.tiny import calls_of, images, joint, settings, tiny
from torch import Tensor

from diff_es import DiffESError
from diff_es.compression.survey import survey
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.pruning.budget import Budget
from diff_es.solvers.custom_timesteps import stepped, stepping_of
from diff_es.solvers.samplers import STEPPABLE, check_scheduler
from diff_es.trajectory.corrections import fixed
from diff_es.utils.progress import Reporter

TIMESTEPS = (801.0, 401.0, 201.0)
START = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 8:] = 1


def call(pipe: Any, **given: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    usual = {"num_inference_steps": 5, "generator": torch.Generator().manual_seed(1), "output_type": "pt"}
    result: Tensor = pipe(prompt="a fox", **{**usual, **given}).images
    return result


def received(pipe: Any, **given: Any) -> list[float]:
    timesteps = list[float]()
    handle = on_timestep(pipe.unet, timesteps.append)
    try:
        call(pipe, **given)
    finally:
        handle.remove()
    return timesteps


@contextmanager
def refused(pipe: Any, message: str) -> Any:
    """Before the denoiser has run."""
    with calls_of(pipe.unet.conv_in) as calls, pytest.raises(DiffESError, match=message):
        yield
    assert calls == [0]


class Twins:
    """Other pipelines with the parts of one, as users make them."""

    @staticmethod
    def image(pipe: Any) -> Any:
        return StableDiffusionImg2ImgPipeline.from_pipe(pipe)

    @staticmethod
    def inpainting(pipe: Any) -> Any:
        return StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)

    @staticmethod
    def control(pipe: Any) -> Any:
        controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4)).eval()
        randomise(controlnet, torch.Generator().manual_seed(2))
        return StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=controlnet)


@pytest.mark.parametrize("corrections", [(), ((0.01, 0.02),) * 3], ids=["bare", "corrected"])
@pytest.mark.parametrize(
    ("twin", "given"),
    [
        (Twins.image, {"image": START}),
        (Twins.inpainting, {"image": START, "mask_image": MASK, "height": 16, "width": 16}),
    ],
    ids=["image to image", "inpainting"],
)
def test_a_strength_is_refused_while_steps_are_chosen_and_right_afterwards(
    twin: Callable[[Any], Any], given: dict[str, Any], corrections: Any
) -> None:
    pipe = made(CASES["SD"].make)
    own, strengths = twin(pipe), (0.3, 0.7)
    want = [call(own, **given, strength=strength) for strength in strengths]
    with stepped(pipe, TIMESTEPS, 5, fixed(corrections)):
        inside = twin(pipe)
        for strength in (0.25, *strengths, 0.99):  # at the first nothing would be left of three steps
            message = r"pipe: expected one that takes all of the chosen steps.*strength.*--levers prune"
            with refused(pipe, message):
                call(inside, **given, strength=strength)
        for strength, image in zip(strengths, want, strict=True):  # one with the user's own scheduler goes on working
            assert torch.equal(call(own, **given, strength=strength), image)
    for strength, image in zip(strengths, want, strict=True):
        assert torch.equal(call(inside, **given, strength=strength), image)


def test_a_twin_that_begins_with_noise_runs_all_of_the_chosen_steps() -> None:
    pipe = made(CASES["SD"].make)
    with stepped(pipe, TIMESTEPS, 5):
        want = call(pipe)
        twin = StableDiffusionPipeline.from_pipe(pipe)
        assert torch.equal(call(twin), want)
        assert received(Twins.control(pipe), image=START) == list(TIMESTEPS)


def test_a_stand_in_that_a_twin_still_holds_is_the_users_own_scheduler() -> None:
    pipe = made(CASES["SD"].make)
    scheduler, want = pipe.scheduler, call(pipe)
    with stepped(pipe, TIMESTEPS, 5, fixed(((0.01,),) * 3)):
        assert not torch.equal(call(pipe), want)
        twin, copy = StableDiffusionPipeline.from_pipe(pipe), deepcopy(pipe.scheduler)
    assert twin.scheduler is not scheduler
    assert vars(twin.scheduler).keys() == vars(scheduler).keys()
    assert torch.equal(call(twin), want)
    assert torch.equal(twin.scheduler.timesteps, scheduler.timesteps)
    with stepped(twin, TIMESTEPS, 5):
        assert received(twin) == list(TIMESTEPS)
        assert torch.equal(call(pipe), want)
    twin.scheduler = copy
    assert torch.equal(call(twin), want)


def test_a_copy_of_the_whole_pipeline_has_the_users_own_scheduler() -> None:
    pipe = tiny()
    want = images(pipe)
    with stepped(pipe, (999, 500, 3), 6):
        copy = deepcopy(pipe)
        assert torch.equal(images(copy), want)
        assert not torch.equal(images(pipe), want)
    assert torch.equal(images(copy), want)


@pytest.mark.parametrize("timesteps", [TIMESTEPS, (801.0, 601.0)], ids=["beyond the end", "within it"])
def test_a_run_that_ends_early_is_refused(timesteps: tuple[float, ...]) -> None:
    """The refiner begins at the user's own noise level, which the base then does not end at."""
    pipe = made(CASES["SDXL"].make)
    want = call(pipe, denoising_end=0.5)
    with stepped(pipe, timesteps, 5):
        for other in (pipe, StableDiffusionXLPipeline.from_pipe(pipe)):
            with refused(pipe, r"takes all of the chosen steps, from noise on, found one that takes.*denoising_end"):
                call(other, denoising_end=0.5)
        refiner = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
        with refused(pipe, "takes all of the chosen steps"):
            call(refiner, image=START, denoising_start=0.5)
        assert received(pipe) == list(timesteps)
    assert torch.equal(call(pipe, denoising_end=0.5), want)


def test_a_list_of_sigmas_is_refused_as_one_of_timesteps_is() -> None:
    pipe = made(CASES["SD"].make)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    for given in (
        {"sigmas": [10.0, 5.0, 2.0, 1.0, 0.4]},
        {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]},
        {"timesteps": [901, 1]},
    ):
        with stepped(pipe, TIMESTEPS, 5), refused(pipe, rf"{next(iter(given))}: expected none.*num_inference_steps=5"):
            call(pipe, num_inference_steps=None, **given)


def test_pipelines_of_flow_matching_give_sigmas_of_their_own() -> None:
    case = CASES["FLUX"]
    pipe = made(case.make)
    timesteps = (1000.0, 500.0, 125.0)

    def run(**given: Any) -> Tensor:
        return call(pipe, height=16, width=16, **given)

    with stepped(pipe, timesteps, 5):
        want = run()
        assert torch.equal(run(sigmas=np.linspace(1, 0.2, 5)), want)
        assert torch.equal(run(num_inference_steps=3), want)
        for sigmas in ([1.0, 0.9, 0.5, 0.3, 0.1], [1.0, 0.5], []):
            with pytest.raises(DiffESError, match=r"(sigmas: expected none|num_inference_steps: expected 5)"):
                run(sigmas=sigmas)


def test_a_scheduler_put_in_place_inside_is_refused() -> None:
    pipe = made(CASES["SD"].make)
    sharing, other = (
        StableDiffusionPipeline.from_pipe(pipe),
        DPMSolverMultistepScheduler.from_config(pipe.scheduler.config),
    )
    want = call(sharing)
    with stepped(pipe, TIMESTEPS, 5) as stepping:
        assert torch.equal(call(sharing), want)  # not stepped
        pipe.scheduler = other
        message = r"pipe\.scheduler: expected the one that runs the chosen steps, found another DPMSolverMultistep"
        with refused(pipe, message):
            call(pipe)
        assert stepping_of(pipe) is stepping
    assert pipe.scheduler is other
    assert stepping_of(pipe) is None
    assert len(received(pipe)) == 5
    with stepped(pipe, TIMESTEPS, 5):  # as the remedy says
        assert received(pipe) == list(TIMESTEPS)
    assert not pipe.unet._forward_pre_hooks


def test_a_call_from_another_thread_meanwhile_is_right_and_the_first_is_refused() -> None:
    pipe, found = made(CASES["SD"].make), list[Tensor]()

    def meanwhile(_: Any, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        thread = Thread(target=lambda: found.append(call(pipe)))
        thread.start()
        thread.join()
        return given

    with stepped(pipe, TIMESTEPS, 5, fixed(((0.01, 0.02),) * 3)):
        want = call(pipe)
        message = r"pipe: expected one call at a time, found another that began in another thread.*threading\.Lock"
        with pytest.raises(DiffESError, match=message):
            call(pipe, callback_on_step_end=meanwhile)
        assert torch.equal(found[0], want)
        assert torch.equal(call(pipe), want)


def test_steps_by_hand_are_the_chosen_ones_each_once() -> None:
    pipe, x = tiny(), torch.ones(1, 4, 8, 8)
    with stepped(pipe, (999, 500, 3), 6):
        scheduler = pipe.scheduler
        with pytest.raises(DiffESError, match="a step before set_timesteps"):
            scheduler.step(x, 999, x)
        for given in ({}, {"num_inference_steps": None}, {"num_inference_steps": 4}, {"num_inference_steps": "6"}):
            with pytest.raises((DiffESError, TypeError), match="num_inference_steps"):
                scheduler.set_timesteps(**given)
        for order, message in (
            ((999, 3), "a step from 500, found one from 3"),
            ((999, 999), "a step from 500, found one from 999"),
            ((999, 500, 3, 3), "no step more, found one from 3"),
            ((500,), "a run from timestep 999 on, found one that begins at 500"),
        ):
            scheduler.set_timesteps(6)
            for t in order[:-1]:
                scheduler.step(x, t, x)
            with pytest.raises(DiffESError, match=message):
                scheduler.step(x, order[-1], x)


def test_only_a_loop_over_all_of_the_timesteps_runs() -> None:
    pipe = tiny()
    with stepped(pipe, (999, 500, 3), 6):
        pipe.scheduler.set_timesteps(6)
        whole = pipe.scheduler.timesteps
    assert [type(t) for t in whole] == [Tensor] * 3
    assert whole.to(torch.float32).tolist() == [int(t) for t in deepcopy(whole)] == [999, 500, 3]
    assert type(whole[1]) is type(whole[:1].repeat(2)) is type(whole == 3) is Tensor  # what pipelines compute with
    for part in (whole[1:], whole[:2], whole[:3].to("cpu"), whole[whole > 400], whole[::2].clone()):
        with pytest.raises(DiffESError, match=re.escape(f"found one that takes {part.tolist()}")):
            next(iter(part))
    with pytest.raises(DiffESError, match=r"found one that takes \[\]"):
        whole[3:]


def test_the_remedy_keeps_a_scheduler_that_takes_no_timesteps() -> None:
    pipe = tiny(scheduler=LCMScheduler)
    message = r"scheduler: expected .*found LCMScheduler\. Search levels alone \(levers=Levers\.PRUNE, `--levers prune`"
    with pytest.raises(DiffESError, match=message):
        survey(pipe, joint(), Reporter(quiet=True), Budget.of(0.7))
    assert survey(pipe, settings(), Reporter(quiet=True), Budget.of(0.7)).path is None


def test_every_scheduler_of_diffusers_is_taken_or_refused_with_the_remedy() -> None:
    kinds = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    others = [kind for kind in kinds if issubclass(kind, SchedulerMixin) and kind not in STEPPABLE]
    assert len(others) > 20
    for kind in (*others, type("Mine", (DDIMScheduler,), {})):
        with pytest.raises(DiffESError, match=rf"found {kind.__name__}\. Search levels alone .*--levers prune"):
            check_scheduler(kind.__new__(kind))
    for kind in STEPPABLE:
        check_scheduler(kind())
