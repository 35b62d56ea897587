"""A solver of one's own over any pipeline's denoiser calls, in the time of flow matching.

Whatever a denoiser was trained to predict, its sampler follows an ordinary differential equation. With a state
x = a x_0 + s n of signal a and noise s, the change of variables

    y = x / (a + s),    tau = s / (a + s),    dy / dtau = n - x_0

makes it that of a flow from noise, tau = 1, to images, tau = 0 (a change of scheduler: arXiv 2403.01329, section 2; a
flow is its own). Euler's step in these variables is DDIM's. They stay finite where a schedule leaves no signal, unlike
those of EDM, x / a and s / a.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from typing import Any, TypeAlias

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..pipelines.families import Pipeline
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.sampling import AnyPipeline
from ..trajectory.timesteps import Timesteps
from ..utils.errors import DiffESError
from ..utils.patching import exchanged
from .custom_timesteps import stepped
from .samplers import EXPLODING, Scheduler, end_of, is_deterministic, is_flow

Advance: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Gives the next state y of a run from those so far, y_0 ... y_i, and the velocities at them, the oldest first:
(N, ...) each, in float32."""


@dataclass(frozen=True)
class FlowTime:
    """Where the steps of a run stand: signal and noise of n timesteps and of the end, (n + 1,) in float64 each."""

    timesteps: Timesteps
    signal: Tensor
    noise: Tensor

    @property
    def tau(self) -> Tensor:
        """From noise, 1, to images, 0: (n + 1,)."""
        return self.noise / self.scale

    @property
    def scale(self) -> Tensor:
        """What a state x is y times: (n + 1,)."""
        return self.signal + self.noise


def check_first_order(pipe: AnyPipeline) -> None:
    """Whether a pipeline's sampler takes plain steps, Euler's or DDIM's, so that others can be put in their place.

    Raises:
        DiffESError: it does not.
    """
    if isinstance(pipe, OwnSampler):
        remedy = "Give a pipeline of diffusers: what this loop does with an output is not known."
        raise DiffESError("pipe", expected="a sampler of diffusers", found="a loop of the user's own", remedy=remedy)
    scheduler = pipe.components["scheduler"]
    config, name = scheduler.config, type(scheduler).__name__
    if type(scheduler) not in (DDIMScheduler, FlowMatchEulerDiscreteScheduler):
        remedy = "Give it one: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)."
        expected = "DDIMScheduler or FlowMatchEulerDiscreteScheduler, whose steps are plain"
        raise DiffESError("scheduler", expected=expected, found=name, remedy=remedy)
    if not is_deterministic(scheduler):
        raise DiffESError(name, expected="no stochastic_sampling", found="it", remedy="Switch it off.")
    for setting in ("clip_sample", "thresholding"):
        if config.get(setting):
            remedy = "Switch it off: it bends the path that solvers follow."
            raise DiffESError(name, expected=f"no {setting}", found="it", remedy=remedy)


def flow_time(scheduler: Scheduler, timesteps: Sequence[float], exact: Tensor | None = None) -> FlowTime:
    """Signal and noise of timesteps and of where the sampler ends, in the states that the sampler has.

    Args:
        scheduler: one of ``samplers.STEPPABLE``.
        timesteps: n, descending.
        exact: the same as a tensor that is differentiated by, (n,) in float64; between the timesteps of training the
            power of the signal is interpolated, linearly.
    """
    places = torch.tensor([float(t) for t in timesteps], dtype=torch.float64) if exact is None else exact
    if is_flow(scheduler):
        noise = torch.cat([places / scheduler.config.num_train_timesteps, places.new_zeros(1)])
        return FlowTime(tuple(map(float, timesteps)), 1 - noise, noise)
    table = scheduler.alphas_cumprod.cpu().double()
    low = places.detach().floor().long().clamp(0, len(table) - 2)
    powers = torch.lerp(table[low], table[low + 1], places - low)
    powers = torch.cat([powers, powers.new_tensor([1.0 if end_of(scheduler) < 0 else float(table[0])])])
    if type(scheduler) in EXPLODING:
        sigmas = ((1 - powers) / powers.clamp_min(2**-24)).sqrt()
        return FlowTime(tuple(map(float, timesteps)), torch.ones_like(powers), sigmas)
    return FlowTime(tuple(map(float, timesteps)), powers.sqrt(), (1 - powers).sqrt())


def velocity(scheduler: Scheduler, output: Tensor, state: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The velocity n - x_0 at a state x, by what the denoiser gives for it; in float32.

    Args:
        signal, noise: of the state's timestep.
    """
    output, state = output.float(), state.float()
    a, s = signal.to(output), noise.to(output)
    if is_flow(scheduler):
        return output
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return (a + s) * output + (s - a) * state
    if kind == "epsilon":
        return output - (state - s * output) / a
    return (state - a * output) / s - output


@dataclass
class Passed:
    """What the last batch has passed so far: the states y, the noise first, and the velocity at each that was left."""

    states: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)


@contextmanager
def solved(pipe: Pipeline, time: FlowTime, asked: int, advance: Advance) -> Iterator[Passed]:
    """With a solver in the place of a pipeline's own steps, on timesteps of one's own; the end restores everything.

    The pipeline is called as before. Its own scheduler's copy still counts its steps, and checks that all are taken in
    their order (:func:`custom_timesteps.stepped`).

    Args:
        time: of the timesteps that it takes, each with one call of the denoiser.
        asked: the user's own number of steps, which the pipeline goes on being called with.

    Raises:
        DiffESError: as :func:`check_first_order`, or timesteps that the scheduler cannot take.
    """
    check_first_order(pipe)
    with stepped(pipe, time.timesteps, asked):
        scheduler = pipe.scheduler
        own, passed = scheduler.step, Passed()

        @wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            given, number = signature(own).bind(*args, **kwargs).arguments, scheduler.chosen_run.steps
            result = own(*args, **kwargs)
            output, state = given["model_output"], given["sample"]
            if number == 0:
                passed.states, passed.velocities = [state.float() / time.scale[0].float().to(state.device)], []
            passed.velocities.append(velocity(scheduler, output, state, time.signal[number], time.noise[number]))
            passed.states.append(advance(passed.states, passed.velocities))
            moved = (passed.states[-1] * time.scale[number + 1].float().to(state.device)).to(output.dtype)
            if isinstance(result, tuple):
                return (moved, *result[1:])
            result.prev_sample = moved
            return result

        with exchanged(scheduler, "step", step):
            yield passed
