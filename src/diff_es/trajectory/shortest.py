"""Where steps stand for which a finely stepped run is nearly straight, by dynamic programming (GITS, arXiv 2405.11326).

The cost of a step from the i-th fine point to the j-th is the distance at which Euler's method, along the direction
that the run has at i, ends from the run at j. Steps of least total cost are found exactly, and serve any solver.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COEFFICIENTS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
"""How much what follows a step counts against it: those that the authors try for Stable Diffusion."""


def missed(tau: Sequence[float], states: Sequence[Tensor], velocities: Sequence[Tensor]) -> NDArray[np.float64]:
    """How far Euler's method, from each fine point to each later one, ends from the run: (n + 1, n + 1), the mean over
    noises of the distance; infinite where there is no way.

    Args:
        tau: of n + 1 fine points, descending.
        states: n + 1, (N, ...) each.
        velocities: n, likewise: where the run goes from each point but the last, by tau.
    """
    points = len(states)
    found = np.full((points, points), np.inf)
    for start, (state, velocity) in enumerate(zip(states, velocities, strict=False)):
        for end in range(start + 1, points):
            error = state + (tau[end] - tau[start]) * velocity - states[end]
            found[start, end] = float(torch.linalg.vector_norm(error.flatten(1), dim=1).mean())
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
