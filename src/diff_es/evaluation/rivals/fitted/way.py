"""What fitted solvers share: what they are fitted to, the rows of a linear multistep solver, and the way to sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.probes import Probe, make_probes
from ....pipelines.sampling import AnyPipeline, sample
from ....pipelines.tracing import trace
from ....solvers.custom_timesteps import own_path
from ....solvers.flow_time import Advance, FlowTime, check_first_order, flow_time, solved
from ....trajectory.timesteps import Timesteps, Trajectory, trailing
from ....utils.arguments import checked
from ....utils.limits import Count, Seed, Steps
from ..dense import DenseWay


@checked("")
@dataclass(frozen=True)
class Fit:
    """What a solver is fitted to: the dense model's finely stepped runs of some noises.

    Args:
        noises: that it is fitted on; as many others choose among fits by gradient.
        seed: of the noises.
        fine: steps of the run that it is brought near to, placed by the trailing rule.
    """

    noises: Count = 16
    seed: Seed = 0
    fine: Steps = 80

    def probes(self, pipe: Pipeline, purpose: str) -> tuple[Probe, ...]:
        """The noises of a purpose, with their classes or prompts."""
        return make_probes(pipe, self.noises, self.seed, f"fitted solver, {purpose}")


@dataclass(frozen=True)
class FittedWay(DenseWay):
    """A way to sample with a solver of its own, as ``scoring.timing.Way`` has it, and what it took to make it."""

    time: FlowTime
    advance: Advance = field(repr=False)
    fit_noises: int = 0
    fit_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Sampler steps that it takes, with a call of the denoiser each."""
        return len(self.time.timesteps)

    @contextmanager
    def context(self, pipe: Pipeline) -> Iterator[None]:
        """With the solver in the place of the pipeline's own; raises as ``flow_time.solved`` does."""
        with solved(pipe, self.time, self.sampling.steps, self.advance):
            yield


@dataclass(frozen=True)
class Multistep:
    """A linear multistep solver: y_{i+1} = k_i y_i + sum over j <= i of c_ij u_j, of all velocities u so far.

    Args:
        keeps: k, (n,).
        weights: c, (n, n), lower triangular.
    """

    keeps: Tensor
    weights: Tensor

    def __call__(self, states: Sequence[Tensor], velocities: Sequence[Tensor]) -> Tensor:
        """The next state; weights of 0 cost nothing, unless a gradient is asked of them."""
        step = len(velocities) - 1
        keep, row = self.keeps[step], self.weights[step, : step + 1]
        fixed = not row.requires_grad
        moved = (float(keep) if fixed else keep) * states[-1]
        for weight, seen in zip(row.tolist() if fixed else row, velocities, strict=True):
            if not fixed or weight:
                moved = moved + weight * seen
        return moved


Place: TypeAlias = Callable[[Trajectory, int], Timesteps]
"""A rule that places so many steps on a trajectory (``trajectory.timesteps``)."""


def path_of(pipe: AnyPipeline, sampling: Sampling) -> Trajectory:
    """The user's own trajectory.

    Raises:
        DiffESError: a sampler whose steps others cannot be put in the place of.
    """
    check_first_order(pipe)
    found = trace(pipe, replace(sampling, batch=1))
    return own_path(pipe, found.timesteps, found.calls)


def of_rows(
    pipe: Pipeline, sampling: Sampling, name: str, timesteps: Timesteps, rows: Callable[[FlowTime], Multistep]
) -> FittedWay:
    """A way by a linear multistep solver whose rows follow from where its steps stand."""
    stand = flow_time(pipe.scheduler, timesteps)
    return FittedWay(name, sampling, stand, rows(stand))


@dataclass(frozen=True)
class Fine:
    """The finely stepped runs of some noises: states y and velocities, (N, ...) each, and final latents."""

    time: FlowTime
    states: Sequence[Tensor]  # one more than steps
    velocities: Sequence[Tensor]
    latents: Tensor  # as the decoder receives them

    def at(self, tau: float) -> Tensor:
        """The state at a time of the flow, between two steps by linear interpolation: of Euler's method, its own."""
        times = self.time.tau.tolist()
        after = next((k for k, one in enumerate(times) if one <= tau), len(times) - 1)
        if after == 0 or times[after] >= tau:
            return self.states[after]
        share = (times[after - 1] - tau) / (times[after - 1] - times[after])
        return torch.lerp(self.states[after - 1], self.states[after], share)


def fine_steps(path: Trajectory, fit: Fit) -> Timesteps:
    """Where the finely stepped run stands: as many steps as the trajectory has room for, if it has less than asked."""
    return trailing(path, min(fit.fine, path.most_steps))


def fine_run(pipe: Pipeline, sampling: Sampling, path: Trajectory, fit: Fit, probes: Sequence[Probe]) -> Fine:
    """The finely stepped runs of some noises, by Euler's method in the flow's time, in one batch."""
    stand = flow_time(pipe.scheduler, fine_steps(path, fit))
    lengths: list[float] = stand.tau.diff().tolist()

    def euler(states: Sequence[Tensor], velocities: Sequence[Tensor]) -> Tensor:
        return torch.add(states[-1], velocities[-1], alpha=lengths[len(velocities) - 1])

    with solved(pipe, stand, sampling.steps, euler) as passed:
        latents = sample(pipe, probes, replace(sampling, batch=len(probes)))
    return Fine(stand, passed.states, passed.velocities, latents)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


def misses(goal: Tensor, latents: Tensor) -> Tensor:
    """What is missing of each noise's goal, relative to its power: (N,)."""
    error = (latents.float() - goal.float()).flatten(1).square().sum(1)
    power: Tensor = goal.float().flatten(1).square().sum(1)
    return error / power.clamp_min(torch.finfo(power.dtype).tiny)


def decibel(goal: Tensor, latents: Tensor) -> Tensor:
    """The mean SNR in dB, which is differentiated; latents that meet their goal exactly count as 140 dB."""
    return -10 * torch.log10(misses(goal, latents) + 1e-14).mean()
