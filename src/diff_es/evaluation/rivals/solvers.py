"""Other solvers as ways to sample: diffusers' own, each at exactly so many denoiser calls, spaced as it likes best.

A solver is made from the settings of the pipeline's own scheduler, ends where that ends, and takes its place for a
while. Which calls it makes is counted, not assumed: a spacing that cannot be made to take as many as asked for is left
out. Diffusers' DEIS alone always ends at the least noise of training, which is 40 dB below the image where beta begins
at 1e-4; and ``PNDMScheduler`` warms up by twelve Runge-Kutta calls, or by one (``skip_prk_steps``), for which
:class:`IPNDM` stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from inspect import signature
from typing import Any, TypeAlias

import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ...pipelines.families import Pipeline, Sampling
from ...pipelines.own_sampler import OwnSampler
from ...pipelines.probes import Probe
from ...pipelines.quiet import hushed
from ...pipelines.tracing import trace
from ...scoring.metrics import snr_db
from ...scoring.timing import Way
from ...solvers.ays import published
from ...solvers.custom_timesteps import stepped
from ...solvers.samplers import STEPPABLE, Scheduler, end_of, is_flow, trajectory
from ...utils.errors import DiffESError
from ...utils.patching import exchanged
from .dense import DenseWay, latents_of


class Spacing(StrEnum):
    """Where a solver's steps stand."""

    LEADING = "leading"  # the first three: arXiv 2305.08891, table 2
    LINSPACE = "linspace"
    TRAILING = "trailing"
    KARRAS = "karras"  # arXiv 2206.00364, equation 5
    LU = "lu"  # evenly in the logarithm of the signal-to-noise ratio (arXiv 2206.00927)
    EXPONENTIAL = "exponential"  # evenly in that of sigma
    FLOW = "flow"  # evenly in the time of flow matching, shifted as the pipeline's own scheduler does
    PUBLISHED = "published"  # Align Your Steps (arXiv 2404.14507), for the models that there is a list for


@dataclass(frozen=True)
class Kind:
    """A solver, by its class in diffusers and the settings that make it this one."""

    name: str
    scheduler: type[Scheduler]
    settings: Mapping[str, Any] = field(default_factory=dict)


class IPNDM(DPMSolverMultistepScheduler):
    """Improved PNDM of fourth order (arXiv 2204.13902, appendix; the multistep part of 2202.09778): DDIM along the
    noises predicted so far, combined as Adams and Bashforth do, by as many of them as there are.

    Diffusers' own ``IPNDMScheduler`` has the same arithmetic, but a noise schedule and timesteps of its own, which no
    other model knows. Here they are the pipeline's; its own warm-up is a first step of first order, then one of second.
    """

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.noises = list[Tensor]()  # predicted, the newest first

    def convert_model_output(self, model_output: Tensor, *args: Any, sample: Tensor, **kwargs: Any) -> Tensor:
        """The image that the combined noise points to; DPM-Solver++ of first order, which goes there, is DDIM."""
        image: Tensor = super().convert_model_output(model_output, *args, sample=sample, **kwargs)
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index])
        self.noises = [(sample - alpha * image) / sigma, *self.noises[:3]]
        weights = _ADAMS[len(self.noises) - 1]
        if len(weights) == 1:
            return image
        combined = torch.stack([weight * noise for weight, noise in zip(weights, self.noises, strict=True)]).sum(0)
        pointed: Tensor = (sample - sigma * combined) / alpha
        return pointed


_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of Adams and Bashforth, the newest slope first."""

_PLUS: Mapping[str, Any] = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
FIRST_ORDER = Kind("DDIM", DDIMScheduler)
FIRST_ORDER_FLOW = Kind("Euler", FlowMatchEulerDiscreteScheduler)
SECOND_ORDER = Kind("DPM-Solver++ 2M", DPMSolverMultistepScheduler, {**_PLUS, "solver_order": 2})
THIRD_ORDER = Kind("DPM-Solver++ 3M", DPMSolverMultistepScheduler, {**_PLUS, "solver_order": 3})
OTHER_SECOND_ORDER = Kind("UniPC 2", UniPCMultistepScheduler, {"solver_order": 2})
MULTISTEP = (
    SECOND_ORDER,
    THIRD_ORDER,
    OTHER_SECOND_ORDER,
    Kind("UniPC 3", UniPCMultistepScheduler, {"solver_order": 3}),
    Kind("DEIS 3", DEISMultistepScheduler, {"solver_order": 3}),
    Kind("iPNDM 4", IPNDM, {**_PLUS, "solver_order": 1}),
)


def kinds_for(pipe: Pipeline) -> tuple[Kind, ...]:
    """The solvers that there are for a pipeline's kind of model.

    Raises:
        DiffESError: a loop of the user's own, which has no scheduler to exchange.
    """
    if isinstance(pipe, OwnSampler):
        remedy = "Give the pipeline of diffusers, or judge the loop beside its own steps."
        raise DiffESError("pipe", expected="a pipeline with a scheduler", found="an OwnSampler", remedy=remedy)
    return (FIRST_ORDER_FLOW if is_flow(pipe.scheduler) else FIRST_ORDER, *MULTISTEP)


@dataclass(frozen=True)
class Solver(DenseWay):
    """A way to sample the dense model: another scheduler in place of the pipeline's own, and a call for each step."""

    scheduler: Scheduler
    spacing: Spacing
    timesteps: tuple[float, ...] | None = None  # in place of the scheduler's own

    @contextmanager
    def context(self, pipe: Pipeline) -> Iterator[None]:
        """With the solver's scheduler in the pipeline; the user's own is back afterwards."""
        with exchanged(pipe, "scheduler", deepcopy(self.scheduler)), self._stepped(pipe):
            yield

    def _stepped(self, pipe: Pipeline) -> AbstractContextManager[object]:
        return nullcontext() if self.timesteps is None else stepped(pipe, self.timesteps, self.steps)


def solver(pipe: Pipeline, kind: Kind, spacing: Spacing, sampling: Sampling, calls: int) -> Solver:
    """A solver that calls the denoiser at exactly ``calls`` timesteps, from the settings of the pipeline's scheduler.

    Raises:
        DiffESError: it has no such spacing, does not take so many calls, or does not fit the pipeline.
    """
    kinds_for(pipe)
    own, asked = pipe.scheduler, replace(sampling, num_inference_steps=calls)
    settings = _placing(own, kind, spacing)
    with hushed():  # of settings of the pipeline's own that it has no use for
        made = kind.scheduler.from_config(own.config, **_ending(own, kind), **settings, **kind.settings)
    found = Solver(f"{kind.name}, {spacing}", asked, made, spacing)
    if spacing is Spacing.PUBLISHED:
        found = replace(found, timesteps=_published(pipe, found))
    with found.context(pipe):
        traced = trace(pipe, asked)
    if (taken := len(traced.timesteps) // traced.calls) != calls:
        remedy = "Take another number of calls, or another spacing."
        raise DiffESError(found.name, expected=f"{calls} calls of the denoiser", found=str(taken), remedy=remedy)
    return found


def spaced(pipe: Pipeline, kind: Kind, sampling: Sampling, calls: int) -> tuple[Solver, ...]:
    """A solver in all spacings in which it takes so many calls.

    Raises:
        DiffESError: there is none.
    """
    found = list[Solver]()
    for spacing in Spacing:
        with suppress(DiffESError):
            found.append(solver(pipe, kind, spacing, sampling, calls))
    if not found:
        remedy = "Take another number of calls, or another solver."
        raise DiffESError(kind.name, expected=f"a spacing with {calls} calls", found="none", remedy=remedy)
    return tuple(found)


def _placing(own: Scheduler, kind: Kind, spacing: Spacing) -> dict[str, Any]:
    """Settings that say where steps stand; raises as :func:`solver` does."""
    euler, flow = kind.scheduler is FlowMatchEulerDiscreteScheduler, is_flow(own)
    taken = signature(kind.scheduler.__init__).parameters
    chosen = {} if euler else _CHOSEN.get(spacing, {})
    fits = spacing is Spacing.PUBLISHED or flow == (spacing is Spacing.FLOW)
    if not fits or chosen.keys() - taken.keys():
        expected, remedy = "one that it has, for such a noise schedule", "Take another spacing."
        raise DiffESError(f"{kind.name}, spacing", expected=expected, found=str(spacing), remedy=remedy)
    if euler:
        return {}
    settings: dict[str, Any] = {name: False for name in _SWITCHES if name in taken} | dict(chosen)
    if flow:
        shift = own.config.shift if isinstance(own, FlowMatchEulerDiscreteScheduler) else own.config.flow_shift
        settings |= {"prediction_type": "flow_prediction", "flow_shift": shift}
    return settings


_SWITCHES = ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
_CHOSEN: Mapping[Spacing, Mapping[str, Any]] = {
    **{one: {"timestep_spacing": str(one)} for one in (Spacing.LEADING, Spacing.LINSPACE, Spacing.TRAILING)},
    Spacing.KARRAS: {"use_karras_sigmas": True},
    Spacing.LU: {"use_lu_lambdas": True},
    Spacing.EXPONENTIAL: {"use_exponential_sigmas": True},
    Spacing.FLOW: {"use_flow_sigmas": True},
}
"""How diffusers' classes are asked for them."""


def _ending(own: Scheduler, kind: Kind) -> dict[str, Any]:
    """Settings with which a solver ends where the pipeline's own does, and clips as little."""
    ends_clean = end_of(own) < 0 or is_flow(own)
    if kind.scheduler is DDIMScheduler:
        return {"set_alpha_to_one": ends_clean, "clip_sample": own.config.get("clip_sample", False)}
    if "final_sigmas_type" in signature(kind.scheduler.__init__).parameters:
        return {"final_sigmas_type": "zero" if ends_clean else "sigma_min"}
    return {}


def _published(pipe: Pipeline, found: Solver) -> tuple[float, ...]:
    """Of the pipeline's kind of model; raises as :func:`solver` does."""
    timesteps = None
    if type(found.scheduler) in STEPPABLE:
        with found.context(pipe):
            path = trajectory(pipe.scheduler, trace(pipe, found.sampling).timesteps)
            timesteps = published(pipe, path, found.steps)
    if timesteps is None:
        expected, remedy = "a model and a solver that a list was published for", "Take another spacing."
        raise DiffESError(found.name, expected=expected, found="another", remedy=remedy)
    return timesteps


@dataclass(frozen=True)
class Trial:
    """What a rival is chosen by: noises that nothing is judged on, and where the converged trajectory leads."""

    probes: tuple[Probe, ...]
    goal: Tensor  # (N, ...): final latents


Rival: TypeAlias = Callable[[Pipeline, Sampling, int, Trial], Way]
"""Makes a way to sample that calls the denoiser so many times, from what it may be chosen by."""


def converged(pipe: Pipeline, sampling: Sampling, kind: Kind = SECOND_ORDER, steps: int = 250) -> Solver:
    """A solver so fine that nothing in a comparison of few steps tells it from the exact trajectory."""
    return solver(pipe, kind, Spacing.FLOW if is_flow(pipe.scheduler) else Spacing.TRAILING, sampling, steps)


def trial_on(pipe: Pipeline, sampling: Sampling, probes: Sequence[Probe]) -> Trial:
    """These noises, with the end of their converged trajectory."""
    return Trial(tuple(probes), latents_of(pipe, converged(pipe, sampling), probes))


def preferred(kind: Kind, pipe: Pipeline, sampling: Sampling, calls: int, trial: Trial) -> Solver:
    """A solver in the spacing that it likes best: of the highest mean SNR on the noises of ``trial``; raises as
    :func:`spaced` does."""

    def closeness(way: Solver) -> float:
        snr = snr_db(trial.goal, latents_of(pipe, way, trial.probes)).mean()
        return float(snr.nan_to_num(-torch.inf))

    return max(spaced(pipe, kind, sampling, calls), key=closeness)


def rivals_for(pipe: Pipeline) -> dict[str, Rival]:
    """By name, the solvers that there are for a pipeline's kind of model; raises as :func:`kinds_for` does."""
    return {kind.name: partial(preferred, kind) for kind in kinds_for(pipe)}
