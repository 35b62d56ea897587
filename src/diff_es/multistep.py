"""Steps that are corrected by the states before them, so that large ones end where small ones would.

A sampler's step from x_i leads to x^, which is off by what the trajectory bends on the way. That error lies, for the
most part, in directions that the sampler has seen: with the states so far,

    x_{i+1} = x^ + w_0 x_i + w_1 (x^ - x_i) + w_2 (x_i - x_{i-1}) + w_3 (x_{i-1} - x_{i-2}) + ...

The weights of every step are fitted by ridge regression to the states of a finely stepped run, one step after the
other, each from where the corrected steps before it have led; every noise counts alike, however far it went astray. It
is the compensation of a projection's weights (``obs``), for steps: what is left out is made up for by what stays.
Multistep samplers (DPM-Solver++, arXiv 2211.01095) derive such weights from the noise schedule alone; fitted ones know
the model, its guidance and its pruning as well. A correction costs a few sums of latents and no call of the denoiser.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State = TypeVar("State", Tensor, NDArray[Any])

Corrections: TypeAlias = tuple[tuple[float, ...], ...]
"""The weights w of every step; of a step that is not corrected, none."""

Correct: TypeAlias = Callable[[int, Sequence[Tensor]], Sequence[float]]
"""Gives the weights of a step, for its number and the states so far, the newest, its own result, first."""

Fits: TypeAlias = dict[float, tuple[float, ...]]
"""The weights of one step by the timestep that it leads to."""

_RIDGE = 1e-6


def directions(states: Sequence[State], count: int) -> list[State]:
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
    exact = [state.float() for state in states]
    total = exact[0]
    for weight, direction in zip(weights, directions(exact, len(weights)), strict=True):
        total = total + weight * direction
    return total.to(states[0].dtype)


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
    exact = [state.cpu().double().flatten(1).numpy() for state in states]
    if not all(np.isfinite(state).all() for state in exact):  # which LAPACK would not bear
        return ()
    missing = goal.double().flatten(1).numpy() - exact[0]
    # closeness is judged in dB, so that a noise which went far astray must not outweigh the others
    distance = np.linalg.norm(missing, axis=1)
    alike = np.maximum(distance, 1e-3 * distance.max() or 1.0)[:, None]
    along = np.stack([(direction / alike).ravel() for direction in directions(exact, count)])
    gram, seen = along @ along.T, along @ (missing / alike).ravel()
    gram[np.diag_indices_from(gram)] *= 1 + _RIDGE
    return tuple(np.linalg.lstsq(gram, seen, rcond=None)[0].tolist())


class Fitting:
    """Fits the corrections of a run while it goes on, for the noises that it runs on.

    Args:
        goal: the finely stepped run of the same noises.
        timesteps: of the run that is corrected, descending, within those of ``goal``.
        end: the timestep that the last step leads to.
        count: the most directions of a step's correction.
        held: gives where the fits of the step under way are kept, by the timestep that it leads to; what is there
            already is taken.
    """

    def __init__(
        self,
        goal: Recording,
        timesteps: Sequence[float],
        end: float,
        count: int,
        held: Callable[[], Fits] = dict,
    ) -> None:
        self._goal, self._next, self._count, self._held = goal, (*timesteps[1:], end), count, held
        self._weights = list[tuple[float, ...]]()

    def __call__(self, step: int, states: Sequence[Tensor]) -> Sequence[float]:
        fits, after = self._held(), self._next[step]
        if after not in fits:
            fits[after] = fitted(self._goal.at(after), states, self._count)
        self._weights[step:] = [fits[after]]
        return fits[after]

    @property
    def corrections(self) -> Corrections:
        """Of all steps so far."""
        return tuple(self._weights)
