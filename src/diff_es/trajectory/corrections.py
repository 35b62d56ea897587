"""Steps that are corrected by the states before them, so that large ones end where small ones would.

A sampler's step from x_i leads to x^, which is off by what the trajectory bends on the way. That error lies, for the
most part, in directions that the sampler has seen: with the states so far,

    x_{i+1} = x^ + w_0 x_i + w_1 (x^ - x_i) + w_2 (x_i - x_{i-1}) + w_3 (x_{i-1} - x_{i-2}) + ...

The weights of every step are fitted by ridge regression to the states of a finely stepped run, one step after the
other, each from where the corrected steps before it have led; every noise counts alike, however far it went astray. It
is the compensation of a projection's weights (``pruning``), for steps: what is left out is made up for by what stays.
Multistep samplers (DPM-Solver++, arXiv 2211.01095) derive such weights from the noise schedule alone; fitted ones know
the model, its guidance and its pruning as well. A correction costs a few sums of latents and no call of the denoiser.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Corrections: TypeAlias = tuple[tuple[float, ...], ...]
"""The weights w of every step; of a step that is not corrected, none."""

Correct: TypeAlias = Callable[[int, Sequence[Tensor]], Sequence[float]]
"""Gives the weights of a step, for its number and the states so far, the newest, its own result, first."""

DIRECTIONS = 6
"""The most along which a step is corrected, by default."""

_RIDGE = 1e-6


def directions(states: Sequence[Tensor], count: int) -> list[Tensor]:
    """What a step may be corrected along, at most ``count``: where it started, its increment, and those before it.

    Args:
        states: at least two, the newest first: the step's result, where it started, and the states before.
    """
    found = [states[1]]
    found += [new - old for new, old in pairwise(states)]
    return found[:count]


def corrected(states: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The result of a step, ``states[0]``, with its correction, summed in float32; without weights, itself."""
    if not weights:
        return states[0]
    used = states[: max(len(weights), 2)]
    shares = [1.0, *[0.0] * (len(used) - 1)]  # of the states
    for weight, direction in zip(weights, _mixed(len(used), len(weights)).tolist(), strict=True):
        shares = [share + weight * part for share, part in zip(shares, direction, strict=True)]
    total = shares[0] * used[0].float()
    for state, share in zip(used[1:], shares[1:], strict=True):
        total.add_(state, alpha=share)
    return total.to(used[0].dtype)


@cache
def _mixed(states: int, count: int) -> Tensor:
    """The :func:`directions` as sums of that many states: [direction, state]."""
    return torch.stack(directions(list(torch.eye(states, dtype=torch.float64)), count))


def fixed(corrections: Corrections) -> Correct | None:
    """Corrections that were fitted before; None where there are none."""
    return (lambda step, states: corrections[step]) if corrections else None


class Recording:
    """Writes down the states of a run that it leaves as it is, and gives those in between.

    Args:
        timesteps: of the run, descending.
        end: the timestep that the last step leads to.
    """

    def __init__(self, timesteps: Sequence[float], end: float) -> None:
        self._times, self._states = (*timesteps, end), list[Tensor]()
        self._ascending = [-timestep for timestep in self._times]

    def __call__(self, step: int, states: Sequence[Tensor]) -> Sequence[float]:
        if step == 0:
            self._states = [states[1].cpu()]
        self._states.append(states[0].cpu())
        return ()

    @property
    def timesteps(self) -> Sequence[float]:
        """Of the run."""
        return self._times[:-1]

    @property
    def states(self) -> Sequence[Tensor]:
        """The noise and what each step has led to, on the CPU."""
        return self._states

    def at(self, timestep: float) -> Tensor:
        """The state at a timestep, on the CPU, between two of the run's own by linear interpolation; before the first,
        the noise."""
        if timestep >= self._times[0]:
            return self._states[0]
        after = bisect_left(self._ascending, -timestep)
        if self._times[after] == timestep:
            return self._states[after]
        early, late = self._times[after - 1], self._times[after]
        return torch.lerp(self._states[after - 1], self._states[after], (early - timestep) / (early - late))


def fitted(goal: Tensor, states: Sequence[Tensor], count: int) -> tuple[float, ...]:
    """The weights that bring a step's result nearest to ``goal``; none where a state is not finite.

    Args:
        goal: (N, ...), on the CPU.
        states: as :func:`directions` takes them, (N, ...) each.
        count: the most directions.
    """
    exact = torch.stack((goal, *(state.cpu() for state in states[: count + 1]))).double()
    along = (_differences(len(exact) - 1, count) @ exact.flatten(1)).numpy().reshape(-1, len(goal), exact[0, 0].numel())
    with np.errstate(all="ignore"):
        grams = along.transpose(1, 0, 2) @ along.transpose(1, 2, 0)  # of each noise, what is missing first
        # closeness is judged in dB, so that a noise which went far astray must not outweigh the others
        missing = grams[:, 0, 0]
        gram = (grams / np.maximum(missing, 1e-6 * missing.max() or 1.0)[:, None, None]).sum(0)
    if not np.isfinite(gram).all():
        return ()
    gram, seen = gram[1:, 1:], gram[0, 1:]
    gram.flat[:: len(gram) + 1] += _RIDGE * gram.diagonal() + np.finfo(float).tiny  # a direction may be nothing
    return tuple(np.linalg.solve(gram, seen).tolist())


@cache
def _differences(states: int, count: int) -> Tensor:
    """What makes of a goal and that many states what is missing and the :func:`directions`."""
    goal, newest, *_ = torch.eye(states + 1, dtype=torch.float64)
    return torch.vstack([goal - newest, torch.nn.functional.pad(_mixed(states, count), (1, 0))])


def fitting(goal: Recording, timesteps: Sequence[float], end: float, count: int) -> Correct:
    """Fits the corrections of a run while it goes on, for the noises that it runs on.

    Args:
        goal: the finely stepped run of the same noises.
        timesteps: of the run that is corrected, descending, within those of ``goal``.
        end: the timestep that the last step leads to.
        count: the most directions of a step's correction.
    """
    following = (*timesteps[1:], end)
    return lambda step, states: fitted(goal.at(following[step]), states, count)
