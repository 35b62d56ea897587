"""Any pipeline on timesteps of one's own choice.

Most pipelines take a number of steps and no timesteps, so a list is put in place behind the scheduler's
``set_timesteps``: a copy of the user's scheduler asks the original how it would step, then exchanges the timesteps and
their noise. Where two neighbours of the list are neighbours of the user's own trajectory, the step between them is the
user's own, to the bit.

A call of the denoiser depends on the timesteps up to its own alone, except under samplers of third order, which lower
their order when few steps are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from inspect import signature
from itertools import pairwise
from types import MethodType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from .errors import DiffESError
from .multistep import Correct, Corrections, corrected
from .pipeline import AnyPipeline
from .trajectory import Timesteps, Trajectory, check_descending

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
_WHOLE = (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
_REFUSED: dict[type, dict[str, Any]] = {  # settings under which timesteps do not descend, or do not tell the noise
    EulerDiscreteScheduler: {"interpolation_type": "log_linear", "timestep_type": "continuous"},
    FlowMatchEulerDiscreteScheduler: {"invert_sigmas": True},
}


def trajectory(scheduler: Scheduler, timesteps: Iterable[float]) -> Trajectory:
    """The user's own trajectory: what ``scheduler`` or ``pipeline.trace`` gives for the user's number of steps.

    A timestep that a sampler of second order repeats counts once.

    Raises:
        DiffESError: a scheduler that takes no other timesteps, or timesteps that do not descend.
    """
    check_scheduler(scheduler)
    whole, noise = type(scheduler) in _WHOLE, tuple(_noise(scheduler).tolist())
    return Trajectory(tuple(float(t) for t in dict.fromkeys(timesteps)), _end(scheduler), whole, noise)


def check_scheduler(scheduler: Scheduler) -> None:
    """Whether a scheduler can run other timesteps than its own.

    Raises:
        DiffESError: it cannot; the message says why.
    """
    name, remedy = type(scheduler).__name__, "Give pipe.scheduler another class or setting, with `from_config`."
    if type(scheduler) not in STEPPABLE:
        expected = "one that can take other timesteps: " + ", ".join(kind.__name__ for kind in STEPPABLE)
        raise DiffESError("scheduler", expected=expected, found=name, remedy=remedy)
    for setting, value in _REFUSED.get(type(scheduler), {}).items():
        if scheduler.config[setting] == value:
            raise DiffESError(name, expected=f"another {setting}", found=f"{value}", remedy=remedy)
    if isinstance(scheduler, UniPCMultistepScheduler) and scheduler.solver_p is not None:
        raise DiffESError(name, expected="no solver_p", found=type(scheduler.solver_p).__name__, remedy=remedy)


def is_deterministic(scheduler: Scheduler) -> bool:
    """Whether a sampler adds no noise on the way; DDIM adds none unless a pipeline is called with an ``eta``."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        return not scheduler.config.algorithm_type.startswith("sde")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return not scheduler.config.stochastic_sampling
    return not isinstance(scheduler, EulerAncestralDiscreteScheduler)


def _is_flow(scheduler: Scheduler) -> bool:
    kind = type(scheduler)
    chosen = kind in (DPMSolverMultistepScheduler, UniPCMultistepScheduler) and scheduler.config.use_flow_sigmas
    return kind is FlowMatchEulerDiscreteScheduler or bool(chosen)


def _end(scheduler: Scheduler) -> float:
    """Where a sampler ends, as a timestep: after timestep 0, or at it."""
    kind, choices = type(scheduler), (DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler)
    if kind is DDIMScheduler:
        return -1.0 if scheduler.config.set_alpha_to_one else 0.0
    return 0.0 if _is_flow(scheduler) or (kind in choices and scheduler.config.final_sigmas_type != "zero") else -1.0


def _noise(scheduler: Scheduler) -> Any:
    """Sigma by timestep, (T,), or (T + 1,) in flow matching."""
    trained = scheduler.config.num_train_timesteps
    if _is_flow(scheduler):
        return np.arange(trained + 1) / trained
    alphas = scheduler.alphas_cumprod.clamp_min(2**-24)  # as diffusers does where no signal is left
    return np.array(((1 - alphas) / alphas) ** 0.5)


class Stepping:
    """A pipeline that runs the given timesteps when it is called as before, from :meth:`attach` to :meth:`detach`.

    The user's scheduler is left alone: a copy of it takes its place in the pipeline.

    Args:
        pipe: any pipeline with one of the schedulers of ``STEPPABLE``.
        timesteps: strictly descending, as in ``scheduler.timesteps``.
        asked: the user's own number of steps, which the pipeline goes on being called with. The number of
            ``timesteps`` is understood too, any other is refused with a :class:`DiffESError` when the pipeline is
            called.
        correct: what each step's result is corrected by (``multistep``), of samplers that call the denoiser once a
            step; None: nothing.

    Raises:
        DiffESError: a scheduler that takes no other timesteps, or timesteps that it cannot take.
    """

    def __init__(
        self, pipe: AnyPipeline, timesteps: Sequence[float], asked: int, correct: Correct | None = None
    ) -> None:
        check_scheduler(pipe.scheduler)
        self._pipe, self._timesteps, self._asked = pipe, tuple(map(float, timesteps)), asked
        self._correct = correct
        check_descending(self._timesteps)
        kind, most, least = type(pipe.scheduler), len(_noise(pipe.scheduler)) - 1, max(_end(pipe.scheduler), 0)
        inside = self._timesteps[0] <= most and self._timesteps[-1] >= least
        if not inside or (kind in _WHOLE and any(t % 1 for t in self._timesteps)):
            expected = f"{'integers' if kind in _WHOLE else 'numbers'} from {most} to {least:g}"
            where, remedy = f"timesteps for {kind.__name__}", "Take them from `trajectory`."
            raise DiffESError(where, expected=expected, found=str(list(timesteps)), remedy=remedy)

    @property
    def corrections(self) -> Corrections:
        """Of the steps of the pipeline's last call, so far."""
        found: Corrections = self._pipe.scheduler.corrected_run.corrections
        return found

    def attach(self) -> None:
        """Run these timesteps from now on.

        Raises:
            DiffESError: the pipeline runs chosen timesteps already.
        """
        if stepping_of(self._pipe) is not None:
            remedy = "Leave the other `stepped` context, or call `remove(pipe)`, first."
            found = "one that runs chosen timesteps already"
            raise DiffESError("pipe", expected="a pipeline with its own scheduler", found=found, remedy=remedy)
        self._before = self._pipe.scheduler
        self._pipe.scheduler = stand_in = self._stand_in()
        _STEPPED[stand_in] = ref(self)

    def detach(self) -> None:
        """Give the pipeline its own scheduler back; a second time, or where the user has exchanged it, do nothing."""
        if stepping_of(self._pipe) is self:
            self._pipe.scheduler = self._before

    def _stand_in(self) -> Scheduler:
        """A copy, of the same class and settings, whose ``set_timesteps`` gives the chosen timesteps."""
        kind, copy, strides = type(self._before), deepcopy(self._before), dict[int, int]()

        @wraps(kind.set_timesteps)  # pipelines look which arguments it takes
        def set_timesteps(scheduler: Scheduler, *args: Any, **kwargs: Any) -> None:
            given = signature(kind.set_timesteps).bind(scheduler, *args, **kwargs).arguments
            self._check_call(given)
            scheduler.corrected_run = _Run()  # its own, which a copy of it takes along
            if given.get("num_inference_steps") is not None:
                given["num_inference_steps"] = self._asked
            kind.set_timesteps(**given)
            own = _own(scheduler)
            if kind is DDIMScheduler:
                stride = scheduler.config.num_train_timesteps // self._asked
                strides.update(_strides(own, self._timesteps, stride))
            else:
                _exchange_sigmas(scheduler, self._timesteps)
            scheduler.timesteps = _repeated(scheduler, torch.tensor(self._timesteps).to(scheduler.timesteps))
            scheduler.num_inference_steps = len(self._timesteps)

        @wraps(kind.step)
        def step(
            scheduler: Scheduler, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            own = scheduler.num_inference_steps
            if kind is DDIMScheduler:
                # it goes from t to t - trained // num_inference_steps: as a fraction, that makes any whole stride
                stride = strides[int(timestep)]
                scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, stride)
            try:
                result = kind.step(scheduler, model_output, timestep, sample, *args, **kwargs)
            finally:
                scheduler.num_inference_steps = own
            return result if self._correct is None else self._corrected(scheduler, timestep, sample, result)

        copy.set_timesteps = MethodType(set_timesteps, copy)  # bound, so that a deep copy of the copy gets its own
        if kind is DDIMScheduler or self._correct is not None:
            copy.step = MethodType(step, copy)
        return copy

    def _corrected(self, scheduler: Scheduler, timestep: Any, start: Tensor, result: Any) -> Any:
        """What the step from ``start`` at a timestep returned, with the correction."""
        assert self._correct is not None
        run, whole = scheduler.corrected_run, isinstance(result, tuple)
        if not run.corrections:
            self._check_start(float(timestep))
        states = [result[0] if whole else result.prev_sample, start, *run.starts]
        weights = tuple(self._correct(len(run.corrections), states))
        moved = corrected(states, weights)
        scheduler.corrected_run = _Run((*run.corrections, weights), [start, *run.starts][: max(len(weights) - 1, 0)])
        if whole:
            return (moved, *result[1:])
        result.prev_sample = moved
        return result

    def _check_start(self, timestep: float) -> None:
        """Corrections belong to the steps from the first one on."""
        if min(self._timesteps, key=lambda own: abs(own - timestep)) != self._timesteps[0]:
            remedy = "Call a pipeline that begins with noise, or leave the routed context first."
            expected, found = f"a run from timestep {self._timesteps[0]:g} on", f"one that begins at {timestep:g}"
            raise DiffESError("pipe", expected=expected, found=found, remedy=remedy)

    def _check_call(self, given: dict[str, Any]) -> None:
        remedy = f"Call the pipeline with num_inference_steps={self._asked}."
        if given.get("timesteps") is not None:
            raise DiffESError("timesteps", expected="none: they are chosen already", found="a list", remedy=remedy)
        steps = given.get("num_inference_steps")
        steps = len(given["sigmas"]) if steps is None else steps
        if steps not in (self._asked, len(self._timesteps)):
            expected = f"{self._asked}, for which {len(self._timesteps)} timesteps were chosen"
            raise DiffESError("num_inference_steps", expected=expected, found=str(steps), remedy=remedy)


@dataclass(frozen=True)
class _Run:
    """What the corrected steps of a pipeline's call leave to those that follow."""

    corrections: Corrections = ()  # of all of them
    starts: Sequence[Tensor] = ()  # of the last ones, as many as corrections reach back


_STEPPED: WeakKeyDictionary[Scheduler, ref[Stepping]] = WeakKeyDictionary()


def stepping_of(pipe: AnyPipeline | nn.Module) -> Stepping | None:
    """The stepping attached to a pipeline, if any; a denoiser by itself takes no steps."""
    if isinstance(pipe, nn.Module):
        return None
    held = _STEPPED.get(pipe.scheduler)
    return None if held is None else held()


@contextmanager
def stepped(
    pipe: AnyPipeline, timesteps: Sequence[float], asked: int, correct: Correct | None = None
) -> Iterator[Stepping]:
    """Run chosen timesteps inside a ``with`` block, as :class:`Stepping` does; its end restores everything."""
    stepping = Stepping(pipe, timesteps, asked, correct)
    stepping.attach()
    try:
        yield stepping
    finally:
        stepping.detach()


def _own(scheduler: Scheduler) -> list[float]:
    """The timesteps a scheduler has set, without the repetitions of one of second order."""
    own: list[float] = scheduler.timesteps[:: scheduler.order].tolist()
    if any(a <= b for a, b in pairwise(own)):
        remedy = "Take fewer steps, or another spacing of them."
        where = f"own timesteps of {type(scheduler).__name__}"
        raise DiffESError(where, expected="strictly descending ones", found=str(own[-8:]), remedy=remedy)
    return own


def _repeated(scheduler: Scheduler, values: Tensor) -> Tensor:
    """All but the first as often as a step of the scheduler calls the denoiser."""
    return torch.cat([values[:1], values[1:].repeat_interleave(scheduler.order)])


def _strides(own: list[float], timesteps: Timesteps, stride: int) -> dict[int, int]:
    """How far DDIM goes from each timestep: to the next, at last beyond 0, and between the user's own as the user's."""
    following, strides = dict(pairwise([*map(int, own), -1])), dict[int, int]()
    for t, after in pairwise([*map(int, timesteps), -1]):
        strides[t] = stride if following.get(t) == after else t - after
    return strides


def _exchange_sigmas(scheduler: Scheduler, timesteps: Timesteps) -> None:
    """The noise of the timesteps: the user's own where they are the user's own, else that of training."""
    own, table = dict(zip(scheduler.timesteps.tolist(), scheduler.sigmas[:-1].tolist(), strict=True)), _noise(scheduler)
    sigmas = [own.get(t, float(np.interp(t, range(len(table)), table))) for t in timesteps]
    for t, sigma, after in zip(timesteps, sigmas, [*sigmas[1:], float(scheduler.sigmas[-1])], strict=True):
        if sigma <= after and t not in own:
            remedy = "Leave it out."
            raise DiffESError(f"timestep {t:g}", expected=f"sigma above {after:g}", found=f"{sigma:g}", remedy=remedy)
    chosen = _repeated(scheduler, torch.tensor(sigmas).to(scheduler.sigmas))
    scheduler.sigmas = torch.cat([chosen, scheduler.sigmas[-1:]])
