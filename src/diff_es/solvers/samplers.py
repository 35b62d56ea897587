"""What is known of diffusers' schedulers: which run chosen timesteps, where they end, and what noise a timestep has."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from ..trajectory.timesteps import Trajectory
from ..utils.errors import DiffESError

Scheduler: TypeAlias = SchedulerMixin

STEPPABLE = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
WHOLE = (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
"""Those whose timesteps are integers."""
EXPLODING = (EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler)
"""Those whose states are signal of weight 1 and as much noise as the timestep has; others keep their sum's power, or,
in flow matching, the sum of their weights."""
OTHERWISE = "levers=Levers.PRUNE, `--levers prune`"
"""How a search is asked for that leaves a sampler's steps alone."""
_REFUSED: dict[type, dict[str, Any]] = {  # settings under which timesteps do not descend, or do not tell the noise
    EulerDiscreteScheduler: {"interpolation_type": "log_linear", "timestep_type": "continuous"},
    FlowMatchEulerDiscreteScheduler: {"invert_sigmas": True},
}
_REMEDY = f"Search levels alone ({OTHERWISE}), which keeps it; or give pipe.scheduler another with `from_config`."


def trajectory(scheduler: Scheduler, timesteps: Iterable[float]) -> Trajectory:
    """The user's own trajectory: what ``scheduler`` or ``pipeline.trace`` gives for the user's number of steps.

    A timestep that a sampler of second order repeats counts once.

    Raises:
        DiffESError: a scheduler that takes no other timesteps, or timesteps that do not descend.
    """
    check_scheduler(scheduler)
    whole, noise = type(scheduler) in WHOLE, tuple(noise_of(scheduler).tolist())
    return Trajectory(tuple(float(t) for t in dict.fromkeys(timesteps)), end_of(scheduler), whole, noise)


def check_scheduler(scheduler: Scheduler) -> None:
    """Whether a scheduler can run other timesteps than its own.

    Raises:
        DiffESError: it cannot; the message says why.
    """
    name = type(scheduler).__name__
    if type(scheduler) not in STEPPABLE:
        expected = "one that can take other timesteps: " + ", ".join(kind.__name__ for kind in STEPPABLE)
        raise DiffESError("scheduler", expected=expected, found=name, remedy=_REMEDY)
    check_settings(scheduler)
    replaced = [method for method in ("set_timesteps", "step") if method in vars(scheduler)]
    if replaced:
        raise DiffESError(name, expected=f"its own {replaced[0]}", found="one that was put in place", remedy=_REMEDY)


def check_calls(scheduler: Scheduler) -> None:
    """Whether a scheduler calls the denoiser once a step.

    Raises:
        DiffESError: it does not.
    """
    if scheduler.order != 1:
        remedy = "Search levels alone (--levers prune), or sample with a scheduler that calls the denoiser once."
        found = f"{type(scheduler).__name__}, which calls it {scheduler.order} times"
        raise DiffESError("scheduler", expected="one denoiser call a step", found=found, remedy=remedy)


def takes_timesteps(scheduler: Scheduler) -> bool:
    """Whether a scheduler can run other timesteps than its own, and calls the denoiser once at each."""
    try:
        check_calls(scheduler)
        check_scheduler(scheduler)
    except DiffESError:
        return False
    return True


def repeats(scheduler: Scheduler, steps: int) -> bool:
    """Whether a timestep comes twice in so many steps, as it may where they are rounded; in flow matching none is."""
    if is_flow(scheduler):
        return False
    tried = deepcopy(scheduler)
    try:
        tried.set_timesteps(steps)
    except ValueError:  # more than it has: a run of the pipeline says so
        return False
    return any(a == b for a, b in pairwise(tried.timesteps.tolist()))


def check_settings(scheduler: Scheduler) -> None:
    """Whether a scheduler of ``STEPPABLE`` has settings under which timesteps can be exchanged; raises as
    :func:`check_scheduler` does."""
    name = type(scheduler).__name__
    for setting, value in _REFUSED.get(type(scheduler), {}).items():
        if getattr(scheduler.config, setting) == value:
            raise DiffESError(name, expected=f"another {setting}", found=f"{value}", remedy=_REMEDY)
    if isinstance(scheduler, UniPCMultistepScheduler) and scheduler.solver_p is not None:
        raise DiffESError(name, expected="no solver_p", found=type(scheduler.solver_p).__name__, remedy=_REMEDY)


def is_deterministic(scheduler: Scheduler) -> bool:
    """Whether a sampler adds no noise on the way; DDIM adds none unless a pipeline is called with an ``eta``."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        return not scheduler.config.algorithm_type.startswith("sde")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return not scheduler.config.stochastic_sampling
    return not isinstance(scheduler, EulerAncestralDiscreteScheduler | LCMScheduler | TCDScheduler)


def is_flow(scheduler: Scheduler) -> bool:
    """Whether timesteps are sigmas times the number of training steps."""
    kind = type(scheduler)
    chosen = kind in (DPMSolverMultistepScheduler, UniPCMultistepScheduler) and scheduler.config.use_flow_sigmas
    return kind is FlowMatchEulerDiscreteScheduler or bool(chosen)


def end_of(scheduler: Scheduler) -> float:
    """Where a sampler ends, as a timestep: after timestep 0, or at it."""
    kind, choices = type(scheduler), (DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler)
    if kind is DDIMScheduler:
        return -1.0 if scheduler.config.set_alpha_to_one else 0.0
    return 0.0 if is_flow(scheduler) or (kind in choices and scheduler.config.final_sigmas_type != "zero") else -1.0


def noise_of(scheduler: Scheduler) -> Any:
    """Sigma by timestep, (T,), or (T + 1,) in flow matching."""
    trained = scheduler.config.num_train_timesteps
    if is_flow(scheduler):
        return np.arange(trained + 1) / trained
    alphas = scheduler.alphas_cumprod.cpu().clamp_min(2**-24)  # as diffusers does where no signal is left
    return np.array(((1 - alphas) / alphas) ** 0.5)
