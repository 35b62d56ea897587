"""Our own corrected steps (``trajectory.corrections``) as a linear multistep solver, for others to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.sampling import sample
from ....solvers.custom_timesteps import stepped
from ....solvers.flow_time import FlowTime, flow_time
from ....trajectory.corrections import DIRECTIONS, Corrections, Recording, directions, fitting
from ....trajectory.timesteps import Timesteps, trailing
from .way import Fit, FittedWay, Multistep, Place, Stopwatch, fine_steps, path_of


def corrected(pipe: Pipeline, sampling: Sampling, calls: int, fit: Fit, place: Place = trailing) -> FittedWay:
    """Steps placed by rule, with corrections fitted to the finely stepped run, as a search fits them.

    Raises:
        DiffESError: a sampler whose steps others cannot be put in the place of, or more calls than it has timesteps.
    """
    clock, path = Stopwatch(), path_of(pipe, sampling)
    timesteps, fine, probes = place(path, calls), fine_steps(path, fit), fit.probes(pipe, "fitting")
    goal, batch = Recording(fine, path.end), replace(sampling, batch=len(probes))
    with stepped(pipe, fine, sampling.steps, goal):
        sample(pipe, probes, batch)
    with stepped(pipe, timesteps, sampling.steps, fitting(goal, timesteps, path.end, DIRECTIONS)) as run:
        sample(pipe, probes, batch)
        found = run.corrections
    way = of_corrections(pipe, sampling, timesteps, found)
    return replace(way, fit_noises=fit.noises, fit_seconds=clock.seconds)


def of_corrections(pipe: Pipeline, sampling: Sampling, timesteps: Timesteps, corrections: Corrections) -> FittedWay:
    """The same trajectory, to rounding, as steps to these timesteps with these corrections have."""
    stand = flow_time(pipe.scheduler, timesteps)
    return FittedWay("corrected", sampling, stand, as_multistep(stand, corrections))


def as_multistep(stand: FlowTime, corrections: Sequence[Sequence[float]]) -> Multistep:
    """Steps of Euler's method with corrections, in terms of the velocities.

    Every state is followed as a sum of the noise y_0 and of all velocities, in float64.
    """
    steps, scale, lengths = len(corrections), stand.scale, stand.tau.diff()
    parts = torch.eye(steps + 1, dtype=torch.float64)  # the noise and each velocity
    states, keeps, weights = [scale[0] * parts[0]], list[Tensor](), list[Tensor]()  # x, the newest first
    for step, correction in enumerate(corrections):
        start = states[0] / scale[step]
        plain = scale[step + 1] * (start + lengths[step] * parts[step + 1])
        along = directions([plain, *states], len(correction))
        moved = plain + sum((w * one for w, one in zip(correction, along, strict=True)), torch.zeros_like(plain))
        states.insert(0, moved)
        end = moved / scale[step + 1]
        keeps.append(end[0] / start[0])
        weights.append((end - keeps[-1] * start)[1:])
    return Multistep(torch.stack(keeps), torch.stack(weights))
