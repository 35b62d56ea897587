"""PCA-based adaptive search (PAS, arXiv 2411.06503): a step's direction, corrected in a few principal directions.

A trajectory lies, nearly, in a space of few dimensions, which its own noise and the directions taken so far span. Of
these each sample has its own orthonormal basis: the step's direction, and principal components of all so far. In it the
step is given coordinates, a few numbers that all samples share, fitted to the finely stepped run, one step after the
other, each from where the corrected ones before it have led. Only steps that gain by it are
corrected (section 3).

What differs: the variables are the flow's, not EDM's. Coordinates are relative to the length of the step's own
direction, of which the paper's first one is a mean; so the step as it was is among what is fitted. They are solved by
least squares, where the paper descends by gradient on this or other losses. A step gains if the mean square of what it
misses falls by more than a share, not by an absolute amount. The sign of a component is by the paper's rule the side on
which the trajectory has gone so far; of the first step, which is nowhere yet, the side of the noise.

Our own corrections (``trajectory.corrections``) are along states, the same few numbers for all, without a basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.sampling import sample
from ....solvers.flow_time import FlowTime, flow_time, solved
from ....trajectory.timesteps import trailing
from .adams_bashforth import rows
from .way import Fine, Fit, FittedWay, Multistep, Place, Stopwatch, fine_run, path_of

COMPONENTS, WORTH_IT = 4, 0.01
"""Directions of a basis, as in the paper, and the share of the missing power that a corrected step has to win back."""

Coordinates: TypeAlias = tuple[tuple[float, ...], ...]
"""Of each step, relative to the length of its direction; of one that is not corrected, none."""


def pas(pipe: Pipeline, sampling: Sampling, calls: int, fit: Fit, order: int = 1, place: Place = trailing) -> FittedWay:
    """Corrected steps, placed by rule.

    Args:
        order: of Adams-Bashforth's method, whose steps are corrected; 1 is DDIM.

    Raises:
        DiffESError: a sampler whose steps others cannot be put in the place of, or more calls than it has timesteps.
    """
    clock, path = Stopwatch(), path_of(pipe, sampling)
    stand = flow_time(pipe.scheduler, place(path, calls))
    method, probes = rows(stand, order), fit.probes(pipe, "fitting")
    fitting = Fitting(method, stand, fine_run(pipe, sampling, path, fit, probes))
    with solved(pipe, stand, sampling.steps, fitting):
        sample(pipe, probes, replace(sampling, batch=len(probes)))
    corrected = Corrected(method, stand, tuple(fitting.found))
    return FittedWay(f"pas-{order}", sampling, stand, corrected, fit.noises, clock.seconds)


@dataclass(frozen=True)
class Corrected:
    """A solver whose steps go along corrected directions."""

    method: Multistep
    stand: FlowTime
    coordinates: Coordinates

    def __call__(self, states: Sequence[Tensor], velocities: Sequence[Tensor]) -> Tensor:
        coordinates = self.coordinates[len(velocities) - 1]
        if not coordinates:
            return self.method(states, velocities)
        axes = basis(taken(self.method, self.stand, states, velocities), states, COMPONENTS)
        return moved(states[-1], axes, coordinates, float(self.stand.tau.diff()[len(velocities) - 1]))


@dataclass(frozen=True)
class Fitting:
    """The same while its coordinates are fitted, to the runs of the same noises."""

    method: Multistep
    stand: FlowTime
    goal: Fine
    found: list[tuple[float, ...]] = field(default_factory=list)

    def __call__(self, states: Sequence[Tensor], velocities: Sequence[Tensor]) -> Tensor:
        step = len(velocities) - 1
        length, goal = float(self.stand.tau.diff()[step]), self.goal.at(float(self.stand.tau[step + 1]))
        axes = basis(taken(self.method, self.stand, states, velocities), states, COMPONENTS)
        coordinates = fitted(axes, (goal - states[-1]) / length)
        plain, corrected = self.method(states, velocities), moved(states[-1], axes, coordinates, length)
        before, after = (float((one - goal).square().mean()) for one in (plain, corrected))
        worth_it = after < (1 - WORTH_IT) * before
        self.found.append(coordinates if worth_it else ())
        return corrected if worth_it else plain


def taken(method: Multistep, stand: FlowTime, states: Sequence[Tensor], velocities: Sequence[Tensor]) -> list[Tensor]:
    """The directions of the steps so far, as they were taken, and last that of the method's next."""
    lengths = stand.tau.diff().tolist()
    onward = [*states, method(states, velocities)]
    return [(new - old) / length for old, new, length in zip(onward, onward[1:], lengths, strict=False)]


def basis(directions: Sequence[Tensor], states: Sequence[Tensor], count: int) -> Tensor:
    """Of each sample, axes that its trajectory spans: (N, count, D) in float64, orthogonal.

    The first is the last direction, and all are as long as that; the others are the principal components of the noise
    and all directions, about their mean, without what the axes before them hold. Where there is no further component,
    an axis is 0.

    Args:
        directions: of the steps so far, (N, ...) each.
        states: as many, the first of them the noise.
    """
    noise, newest = (one.flatten(1).double() for one in (states[0], states[-1]))
    seen = torch.stack([noise, *(one.flatten(1).double() for one in directions)], 1)
    own = seen[:, -1]
    length: Tensor = own.norm(dim=1, keepdim=True)
    centred = seen - seen.mean(1, keepdim=True)
    shares = torch.linalg.eigh(centred @ centred.mT).eigenvectors.flip(-1)[..., : count - 1]
    side = newest - noise if len(states) > 1 else noise
    axes = [own / length]
    for component in (shares.mT @ centred).unbind(1):
        size = component.norm(dim=1, keepdim=True)
        for axis in (*axes, *axes):  # twice, for the digits that the first time leaves
            component = component - (component * axis).sum(1, keepdim=True) * axis
        left = component.norm(dim=1, keepdim=True)
        unit = torch.where(left > 1e-6 * size, component / left, torch.zeros_like(component))
        axes.append(torch.where((unit * side).sum(1, keepdim=True) < 0, -unit, unit))
    while len(axes) < count:
        axes.append(torch.zeros_like(own))
    return torch.stack(axes, 1) * length[:, None]


def fitted(axes: Tensor, wanted: Tensor) -> tuple[float, ...]:
    """The coordinates that come nearest to directions, by least squares over all samples.

    Args:
        axes: (N, K, D), of :func:`basis`.
        wanted: (N, ...), the directions that lead to the goal.
    """
    flat = wanted.flatten(1).double()
    gram, seen = (axes @ axes.mT).sum(0), (axes @ flat[..., None]).sum(0)
    return tuple(torch.linalg.lstsq(gram, seen, driver="gelsd").solution[:, 0].tolist())


def moved(state: Tensor, axes: Tensor, coordinates: Sequence[float], length: float) -> Tensor:
    """Where a step of a length of time along these coordinates leads."""
    along = torch.tensor(coordinates, dtype=axes.dtype, device=axes.device) @ axes
    return state + length * along.to(state.dtype).view_as(state)
