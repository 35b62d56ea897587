"""Where steps stand for which a finely stepped run is nearly straight, by dynamic programming (GITS, arXiv 2405.11326).

The cost of a step from the i-th fine point to the j-th is the distance at which Euler's method, along the direction
that the run has at i, ends from the run at j. Steps of least total cost are found exactly, and serve any solver.

Steps that are corrected (``corrections``) need not be straight: theirs is what no correction makes up for, the residual
of the run at j regressed on the run at i, its direction there, and the run where the step before began. So a cost
belongs to two steps, and its squares add up; whatever the sampler, what it steps along is among these directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COEFFICIENTS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
"""How much what follows a step counts against it: those that the authors try for Stable Diffusion."""

_RIDGE, _REACH = 1e-9, 4
"""Of the regressions, relative to the diagonal; how many times the mean length a corrected step may have."""


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


@dataclass(frozen=True)
class Bends:
    """A finely stepped run of n steps by what places of steps are chosen from."""

    tau: NDArray[np.float64]  # (n + 1,), descending
    missed: NDArray[np.float64]  # as :func:`missed` gives it
    products: NDArray[np.float64]  # (n + 1, n + 1): inner products of the first state and the n increments after it

    @classmethod
    def of(cls, tau: Sequence[float], states: Sequence[Tensor]) -> Bends:
        """Of n + 1 points, descending, and the run's states there, (N, ...) each; products are means over noises."""
        moves = zip(pairwise(states), pairwise(tau), strict=True)
        still = torch.zeros_like(states[0])  # where a sampler's last timestep is where it ends
        along = [still if start == end else (after - before) / (end - start) for (before, after), (start, end) in moves]
        products = np.zeros((len(tau), len(tau)))
        for noise in range(len(states[0])):
            rows = np.stack([one[noise].flatten().double().numpy() for one in states])
            rows[1:] -= rows[:-1].copy()
            products += rows @ rows.T
        return cls(np.asarray(tau), missed(tau, states, along), products / len(states[0]))

    def __len__(self) -> int:
        """Of the run's points, its end among them."""
        return len(self.tau)

    def left(self, directions: int, reach: int) -> NDArray[np.float64]:
        """What a step misses that is corrected along so many directions: (n, reach, reach), the mean of the squared
        distance over noises, by the point that it starts from, the length of the step before less one, and its own less
        one; infinite where there is no way. The first step has none before, and stands where that is of length one."""
        points = len(self) - 1
        states = np.tri(points + 1)  # each as a sum of the first state and of increments
        reached, found = states @ self.products, np.full((points, reach, reach), np.inf)

        def along(rows: NDArray[np.float64], start: int, before: Sequence[int]) -> NDArray[np.float64]:
            parts = rows[start], rows[start + 1] - rows[start], rows[start] - rows[before]
            return np.stack(np.broadcast_arrays(*parts), axis=1)[:, :directions]

        for start in range(points):
            ends = range(start + 1, min(start + reach, points) + 1)
            before = list(range(start - 1, start - 1 - reach, -1)[:start]) or [0]  # a way of no length
            length, move = self.tau[start + 1] - self.tau[start], states[start + 1] - states[start]
            share = (self.tau[ends] - self.tau[start]) / length if length else np.zeros(len(ends))
            error = states[ends] - states[start] - share[:, None] * move
            seen, taken = error @ self.products, along(states, start, before)
            gram, known = along(reached, start, before) @ taken.mT, taken @ seen.T
            gram += np.eye(gram.shape[1]) * (_RIDGE * gram + np.finfo(float).tiny)
            rest = (error * seen).sum(1) - (known * np.linalg.solve(gram, known)).sum(1)
            found[start, : len(before), : len(ends)] = np.maximum(rest, 0)
        return found

    def nearest(self, steps: int, directions: int) -> tuple[tuple[int, ...], ...]:
        """The points that so many corrected steps start from, at least cost, for every other of the coefficients.

        Args:
            steps: at most n, each of which takes up to a few times the mean length.
            directions: the most that a step is corrected along, at least one.
        """
        reach = min(len(self) - 1, _REACH * -(-(len(self) - 1) // steps))
        costs = self.left(directions, reach)
        return tuple(dict.fromkeys(cheapest_pairs(costs, steps, one) for one in COEFFICIENTS[::2]))


def cheapest_pairs(costs: NDArray[np.float64], steps: int, coefficient: float) -> tuple[int, ...]:
    """As :func:`cheapest`, of costs that depend on the step before.

    Args:
        costs: (n, reach, reach), as :meth:`Bends.left` gives them.
        steps: at most n, and so many that they come to the end.
    """
    points, reach, _ = costs.shape
    rest = np.full((points + 1, reach), np.inf)  # of the way to the last point, by where it starts and the step before
    rest[points] = 0.0
    onward = list[NDArray[np.intp]]()
    for _ in range(steps):
        total = np.full(costs.shape, np.inf)
        for length in range(reach):
            after = coefficient * rest[length + 1 :, length]
            total[: points - length, :, length] = costs[: points - length, :, length] + after[:, None]
        onward.append(total.argmin(axis=2))
        rest = np.vstack([total.min(axis=2), np.full(reach, np.inf)])
    found, before = [0], 0
    for choice in reversed(onward[1:]):
        before = int(choice[found[-1], before])
        found.append(found[-1] + before + 1)
    return tuple(found)
