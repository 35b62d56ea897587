"""A scheduler that runs chosen timesteps in place of its own, all of them, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from fractions import Fraction
from functools import wraps
from inspect import BoundArguments, Parameter, signature
from itertools import pairwise
from threading import get_ident
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from ..trajectory.corrections import Correct, Corrections, corrected
from ..trajectory.timesteps import Timesteps, check_descending
from ..utils.calls import Kwargs
from ..utils.errors import DiffESError
from .arithmetic import differing
from .samplers import OTHERWISE, WHOLE, Scheduler, check_settings, end_of, is_flow, noise_of
from .whole import LEAVE, Whole


class Run(NamedTuple):
    """What the steps of a pipeline's call leave to those that follow."""

    thread: int | None = None  # which called ``set_timesteps``
    steps: int = 0  # so far, of those that call the denoiser
    corrections: Corrections = ()  # of all of them
    starts: Sequence[Tensor] = ()  # of the last ones, as many as corrections reach back


class Chosen:
    """Timesteps that a scheduler is made to run.

    Args:
        scheduler: the user's own, which stays as it is; ``samplers.check_scheduler`` accepts it.
        timesteps: strictly descending.
        asked: the number of steps that pipelines go on asking for.
        correct: what each step's result is corrected by; None: nothing.
        begin: called with whichever scheduler begins to run them; raises where it is not to.

    Raises:
        DiffESError: timesteps that the scheduler cannot take.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        timesteps: Sequence[float],
        asked: int,
        correct: Correct | None = None,
        begin: Callable[[Scheduler], None] = lambda scheduler: None,
    ) -> None:
        self._own, self._asked, self._correct, self._begin = scheduler, asked, correct, begin
        self._kind: Any = type(scheduler)
        self.timesteps, self._strides, self._active = tuple(map(float, timesteps)), dict[int, int](), False
        self._pristine = None if correct is None else deepcopy(scheduler)
        check_descending(self.timesteps)
        most, least, whole = len(noise_of(scheduler)) - 1, max(end_of(scheduler), 0), self._kind in WHOLE
        inside = self.timesteps[0] <= most and self.timesteps[-1] >= least
        if not inside or (whole and any(t % 1 for t in self.timesteps)):
            expected = f"{'integers' if whole else 'numbers'} from {most} to {least:g}"
            where, remedy = f"timesteps for {self._kind.__name__}", "Take them from `trajectory`."
            raise DiffESError(where, expected=expected, found=str(list(timesteps)), remedy=remedy)
        self._calls = [self.timesteps[0], *(t for t in self.timesteps[1:] for _ in range(scheduler.order))]

    def stand_in(self) -> Scheduler:
        """A copy of the scheduler, of the same class and settings, that runs the chosen timesteps.

        So does a copy of the copy; one that is made together with a whole pipeline is the user's own scheduler.
        """
        kind, stand_in, self._active = self._kind, deepcopy(self._own), True

        @wraps(kind.set_timesteps)  # pipelines look which arguments it takes
        def set_timesteps(scheduler: Scheduler, *args: Any, **kwargs: Any) -> None:
            if self._active:
                self._set(scheduler, signature(kind.set_timesteps).bind(scheduler, *args, **kwargs).arguments)
            else:
                kind.set_timesteps(scheduler, *args, **kwargs)

        @wraps(kind.step)
        def step(scheduler: Scheduler, *args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return kind.step(scheduler, *args, **kwargs)
            return self._step(scheduler, signature(kind.step).bind(scheduler, *args, **kwargs))

        def copied(scheduler: Scheduler, memo: dict[int, Any]) -> Scheduler:
            if not self._active or any(isinstance(part, DiffusionPipeline) for part in memo.values()):
                return deepcopy(self._own, memo)
            memo[id(scheduler)] = copy = kind.__new__(kind)
            vars(copy).update({name: deepcopy(value, memo) for name, value in vars(scheduler).items()})
            return copy

        stand_in.set_timesteps = MethodType(set_timesteps, stand_in)  # bound, so that a deep copy gets its own
        stand_in.step, stand_in.__deepcopy__ = MethodType(step, stand_in), MethodType(copied, stand_in)
        stand_in.chosen_run = Run()  # its own, which a copy of it takes along
        return stand_in

    def release(self, stand_in: Scheduler) -> None:
        """Make the stand-in, which other pipelines may hold, a copy of the user's own scheduler; copies of it act like
        it from now on."""
        self._active, own = False, vars(deepcopy(self._own))
        vars(stand_in).clear()
        vars(stand_in).update(own)

    def _set(self, scheduler: Scheduler, given: Kwargs) -> None:
        kind = self._kind
        self._begin(scheduler)
        self._check_arithmetic(scheduler)
        self._check_call(scheduler, given)
        if given.get("num_inference_steps") is not None:
            given["num_inference_steps"] = self._asked
        if given.get("sigmas") is not None:
            given["sigmas"] = _even(self._asked)
        kind.set_timesteps(**given)
        own, scheduler.chosen_run = _own(scheduler), Run(get_ident())
        if kind is DDIMScheduler:
            stride = scheduler.config.num_train_timesteps // self._asked
            self._strides.update(_strides(own, self.timesteps, stride))
        else:
            _exchange_sigmas(scheduler, self.timesteps)
        values = torch.tensor(self.timesteps).to(scheduler.timesteps)
        scheduler.timesteps = _repeated(scheduler, values).as_subclass(Whole)
        scheduler.num_inference_steps = len(self.timesteps)

    def _step(self, scheduler: Scheduler, call: BoundArguments) -> Any:
        given, own = call.arguments, scheduler.num_inference_steps
        _check_thread(scheduler.chosen_run)
        self._check_turn(scheduler.chosen_run.steps, float(given["timestep"]))
        if self._correct is not None:
            _check_arguments(call)
        if self._kind is DDIMScheduler:
            # it goes from t to t - trained // num_inference_steps: as a fraction, that makes any whole stride
            stride = self._strides[int(given["timestep"])]
            scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, stride)
        try:
            result = self._kind.step(*call.args, **call.kwargs)
        finally:
            scheduler.num_inference_steps = own
        run = scheduler.chosen_run
        if self._correct is None:
            scheduler.chosen_run = Run(run.thread, run.steps + 1)
            return result
        return self._corrected(scheduler, self._correct, given["sample"], result)

    def _corrected(self, scheduler: Scheduler, correct: Correct, start: Tensor, result: Any) -> Any:
        """What the step from ``start`` returned, with the correction."""
        run, whole = scheduler.chosen_run, isinstance(result, tuple)
        states = [result[0] if whole else result.prev_sample, start, *run.starts]
        weights = tuple(correct(run.steps, states))
        moved, reach = corrected(states, weights), max(len(weights) - 1, 0)
        corrections, starts = (*run.corrections, weights), [start, *run.starts][:reach]
        scheduler.chosen_run = Run(run.thread, run.steps + 1, corrections, starts)
        if whole:
            return (moved, *result[1:])
        result.prev_sample = moved
        return result

    def _check_turn(self, steps: int, timestep: float) -> None:
        """Whether a step is the next of the run."""
        nearest = min(self.timesteps, key=lambda own: abs(own - timestep))  # where it is rounded
        if steps < len(self._calls) and nearest == self._calls[steps]:
            return
        if steps == 0:
            expected, found = f"a run from timestep {self._calls[0]:g} on", f"one that begins at {timestep:g}"
            remedy = f"Call a pipeline that begins with noise, or {LEAVE}."
        else:
            expected = f"a step from {self._calls[steps]:g}" if steps < len(self._calls) else "no step more"
            found, remedy = f"one from {timestep:g}", f"Run the chosen steps in their order, each once, or {LEAVE}."
        raise DiffESError("pipe", expected=expected, found=found, remedy=remedy)

    def _check_arithmetic(self, scheduler: Scheduler) -> None:
        """Whether the stand-in is as it was made."""
        check_settings(scheduler)
        names = set[str]() if self._pristine is None else differing(scheduler, self._pristine)
        if names:
            remedy = f"To change it, {LEAVE}."
            expected, found = "one as when it was routed", f"another {', '.join(sorted(names))}"
            raise DiffESError("scheduler", expected=expected, found=found, remedy=remedy)

    def _check_call(self, scheduler: Scheduler, given: Kwargs) -> None:
        remedy = f"Call the pipeline with num_inference_steps={self._asked}."
        steps, sigmas = given.get("num_inference_steps"), given.get("sigmas")
        if given.get("timesteps") is not None:
            raise DiffESError("timesteps", expected="none: they are chosen already", found="a list", remedy=remedy)
        if sigmas is not None:
            # pipelines of flow matching always give some, which the scheduler shifts
            if not is_flow(scheduler) or not np.allclose(np.asarray(sigmas, dtype=float), _even(len(sigmas))):
                expected = "none: timesteps are chosen already"
                raise DiffESError("sigmas", expected=expected, found="a list", remedy=remedy)
            steps = len(sigmas) if steps is None else steps
        if steps not in (self._asked, len(self.timesteps)):
            expected = f"{self._asked}, for which {len(self.timesteps)} timesteps were chosen"
            raise DiffESError("num_inference_steps", expected=expected, found=str(steps), remedy=remedy)


def _check_thread(run: Run) -> None:
    """Whether a step belongs to the run under way: a sampler has one at a time."""
    if run.thread != get_ident():
        found = "a step before set_timesteps" if run.thread is None else "another that began in another thread"
        remedy = "Let calls wait for each other, as with a threading.Lock."
        raise DiffESError("pipe", expected="one call at a time", found=found, remedy=remedy)


def _check_arguments(call: BoundArguments) -> None:
    """Whether a step's own arguments, such as DDIM's ``eta``, are those that it is corrected for: the defaults."""
    for name, parameter in call.signature.parameters.items():
        value, usual = call.arguments.get(name), parameter.default
        if usual is Parameter.empty or name in ("generator", "return_dict") or value is None:
            continue
        if isinstance(value, Tensor) or value != usual:
            found = "a tensor" if isinstance(value, Tensor) else str(value)
            remedy = (
                "Leave it out; or compress with `corrections=0` (`--corrections 0`), which leaves steps as they are."
            )
            raise DiffESError(name, expected=f"{usual}, for which steps are corrected", found=found, remedy=remedy)


def _even(steps: int) -> Any:
    """The sigmas that pipelines of flow matching give."""
    return np.linspace(1.0, 1 / max(steps, 1), steps)


def _own(scheduler: Scheduler) -> list[float]:
    """The timesteps a scheduler has set, without the repetitions of one of second order."""
    own: list[float] = scheduler.timesteps[:: scheduler.order].tolist()
    if any(a <= b for a, b in pairwise(own)):
        remedy = f"Take fewer steps, or another spacing of them; or search levels alone ({OTHERWISE})."
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
    own = dict(zip(scheduler.timesteps.tolist(), scheduler.sigmas[:-1].tolist(), strict=True))
    table = noise_of(scheduler)
    sigmas = [own.get(t, float(np.interp(t, range(len(table)), table))) for t in timesteps]
    for t, sigma, after in zip(timesteps, sigmas, [*sigmas[1:], float(scheduler.sigmas[-1])], strict=True):
        if sigma <= after and t not in own:
            remedy = "Leave it out."
            raise DiffESError(f"timestep {t:g}", expected=f"sigma above {after:g}", found=f"{sigma:g}", remedy=remedy)
    chosen = _repeated(scheduler, torch.tensor(sigmas).to(scheduler.sigmas))
    scheduler.sigmas = torch.cat([chosen, scheduler.sigmas[-1:]])
