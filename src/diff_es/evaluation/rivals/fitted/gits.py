"""Geometry-inspired time scheduling (GITS, arXiv 2405.11326): where steps stand, by dynamic programming.

Of a few noises the finely stepped run is kept, with its direction at every step, and the steps of least cost are found
exactly (``trajectory.shortest``), where a coefficient weighs what later steps cost against the one before them.

What differs: distances are those of the flow's variables, not of EDM's, in which a flow's noise is infinitely far; and
the fine run stands where the trailing rule puts it, not the polynomial one. The authors choose the coefficient by hand,
and try those from 0.8 to 1.2 for Stable Diffusion; here each of these is tried with the solver itself, on the noises
that the costs are of, and the one that ends nearest is kept. Their first step without a call of the denoiser (AFS) is
left out: it is a saving of its own.
"""

from __future__ import annotations

from dataclasses import replace

from ....pipelines.families import Pipeline, Sampling
from ....trajectory.shortest import COEFFICIENTS, cheapest, missed
from ....trajectory.timesteps import Timesteps
from ....utils.errors import DiffESError
from ..dense import latents_of
from .adams_bashforth import rows
from .way import Fit, FittedWay, Stopwatch, decibel, fine_run, of_rows, path_of


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
    price, batch = missed(fine.time.tau.tolist(), fine.states, fine.velocities), replace(sampling, batch=len(probes))

    def way(timesteps: Timesteps) -> FittedWay:
        return of_rows(pipe, batch, f"gits-{order}", timesteps, lambda stand: rows(stand, order))

    places = [cheapest(price, calls, coefficient) for coefficient in COEFFICIENTS]
    candidates = [way(tuple(fine.time.timesteps[one] for one in found)) for found in dict.fromkeys(places)]
    best = max(candidates, key=lambda one: float(decibel(fine.latents, latents_of(pipe, one, probes))))
    return replace(best, sampling=sampling, fit_noises=fit.noises, fit_seconds=clock.seconds)
