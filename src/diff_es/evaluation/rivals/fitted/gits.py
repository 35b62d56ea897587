"""Geometry-inspired time scheduling (GITS, arXiv 2405.11326): where steps stand, by dynamic programming.

Of a few noises the finely stepped run is kept, with its direction at every step. The cost of a step from the i-th fine
point to the j-th is the distance that Euler's method, along the direction at i, ends from the run at j. The steps of
least total cost are found exactly, where a coefficient weighs what later steps cost against the one before them. They
serve any solver.

What differs: distances are those of the flow's variables, not of EDM's, in which a flow's noise is infinitely far; and
the fine run stands where the trailing rule puts it, not the polynomial one. The authors choose the coefficient by hand,
and try those from 0.8 to 1.2 for Stable Diffusion; here each of these is tried with the solver itself, on the noises
that the costs are of, and the one that ends nearest is kept. Their first step without a call of the denoiser (AFS) is
left out: it is a saving of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ....pipelines.families import Pipeline, Sampling
from ....trajectory.timesteps import Timesteps
from ....utils.errors import DiffESError
from ..dense import latents_of
from .adams_bashforth import rows
from .way import Fine, Fit, FittedWay, Stopwatch, decibel, fine_run, of_rows, path_of

COEFFICIENTS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)


def gits(pipe: Pipeline, sampling: Sampling, calls: int, fit: Fit, order: int = 2) -> FittedWay:
    """The steps that dynamic programming finds, and Adams-Bashforth's method on them.

    Args:
        order: of the method that runs on the steps; 1 is DDIM, and 3 is unstable at high guidance.

    Raises:
        DiffESError: a sampler whose steps others cannot be put in the place of, or more calls than fine steps.
    """
    clock, path = Stopwatch(), path_of(pipe, sampling)
    fine = fine_run(pipe, sampling, path, fit, probes := fit.probes(pipe, "fitting"))
    points = len(fine.velocities)
    if not 1 <= calls <= points:
        remedy = "Ask for fewer calls, or more fine steps."
        raise DiffESError("calls", expected=f"from 1 to {points}, the fine steps", found=str(calls), remedy=remedy)
    price, batch = costs(fine), replace(sampling, batch=len(probes))

    def way(timesteps: Timesteps) -> FittedWay:
        return of_rows(pipe, batch, f"gits-{order}", timesteps, lambda stand: rows(stand, order))

    places = [cheapest(price, calls, coefficient) for coefficient in COEFFICIENTS]
    candidates = [way(tuple(fine.time.timesteps[one] for one in found)) for found in dict.fromkeys(places)]
    best = max(candidates, key=lambda one: float(decibel(fine.latents, latents_of(pipe, one, probes))))
    return replace(best, sampling=sampling, fit_noises=fit.noises, fit_seconds=clock.seconds)


def costs(fine: Fine) -> NDArray[np.float64]:
    """How far Euler's method, from each fine point to each later one, ends from the run: (n + 1, n + 1), the mean over
    noises of the distance; infinite where there is no way."""
    tau, points = fine.time.tau.tolist(), len(fine.states)
    found = np.full((points, points), np.inf)
    for start, (state, velocity) in enumerate(zip(fine.states, fine.velocities, strict=False)):
        for end in range(start + 1, points):
            missed = state + (tau[end] - tau[start]) * velocity - fine.states[end]
            found[start, end] = float(torch.linalg.vector_norm(missed.flatten(1), dim=1).mean())
    return found


def cheapest(costs: NDArray[np.float64], steps: int, coefficient: float) -> tuple[int, ...]:
    """The points that so many steps from the first to the last one start from, at least cost.

    What follows a step counts ``coefficient`` times: c_1 + g (c_2 + g (c_3 + ...)) is the cost of steps c.

    Args:
        costs: (n, n), of a step from each point to each later one; infinite to others.
        steps: at most n - 1.
    """
    points = len(costs)
    rest = np.where(np.arange(points) == points - 1, 0.0, np.inf)  # of the way to the last point, in no step
    onward = list[NDArray[np.intp]]()
    for _ in range(steps):
        total = costs + coefficient * rest
        onward.append(total.argmin(axis=1))
        rest = total.min(axis=1)
    found = [0]
    for choice in reversed(onward[1:]):
        found.append(int(choice[found[-1]]))
    return tuple(found)
