"""Where the steps of a trajectory stand: by numbers of steps in each stage, or by rule over the whole.

Timesteps are those of ``scheduler.timesteps``, descending from noise to image; in flow matching they are sigma times
the number of training steps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import DiffESError
from .stages import Stages

Timesteps: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Trajectory:
    """The timesteps of the user's own setting, as float32 has them, and what may stand in their place.

    Raises:
        DiffESError: timesteps that do not descend, or of which float32 makes one.
    """

    timesteps: Timesteps
    end: float  # where the sampler ends, as a timestep: -1 without noise, 0 at the least noise of training
    whole: bool  # only integers will do
    noise: tuple[float, ...]  # sigma, the ratio of noise to signal, of timesteps 0, 1, ...; in flow matching t / T;
    # empty where it is not known

    def __post_init__(self) -> None:
        # samplers hold them in float32: 0.6 of another precision would lie on the wrong side of a boundary at 0.6
        held = tuple(float(np.float32(t)) for t in self.timesteps)
        check_descending(held)
        object.__setattr__(self, "timesteps", held)

    def stages(self, count: int) -> Stages:
        """``Stages.split`` with each boundary at the first timestep of the stage behind it, so that all that
        :func:`placed` puts into a stage belongs to it; raises as ``Stages.split`` does."""
        split = Stages.split(self.timesteps, count)
        return Stages(tuple(next(t for t in self.timesteps if t <= boundary) for boundary in split.boundaries))

    def room(self, stages: Stages) -> tuple[int, ...]:
        """The most timesteps that :func:`placed` finds room for in each stage: few in one that begins close to the end,
        where they are integers or the sampler ends below 0, and none but its own in one that begins at it."""
        own = _own(self, stages)
        spans = [(first - end, end) for (first, *_), end in zip(own, _ends(self, own), strict=True)]
        return tuple(math.floor(span) if self.whole or end < 0 or span <= 0 else sys.maxsize for span, end in spans)

    @property
    def lowest(self) -> int:
        """The last integer timestep before the end."""
        return math.floor(self.end) + 1

    @property
    def most_steps(self) -> int:
        """The most steps that can be placed on it."""
        if not self.whole and self.end >= 0:
            return sys.maxsize
        return math.floor(self.timesteps[0]) - self.lowest + 1

    def sigma(self, timesteps: Sequence[float]) -> NDArray[np.float64]:
        """Sigma of N timesteps, (N,)."""
        return np.asarray(np.interp(timesteps, range(len(self.noise)), self.noise))


def check_descending(timesteps: Sequence[float]) -> None:
    """Whether timesteps run from noise to image.

    Raises:
        DiffESError: there are none, or they do not descend strictly.
    """
    if not timesteps or any(a <= b for a, b in pairwise(timesteps)):
        found = str(list(timesteps)[:8])
        remedy = "Name every timestep once, from noise to image, as far apart as float32 can tell."
        raise DiffESError("timesteps", expected="strictly descending ones", found=found, remedy=remedy)


def placed(path: Trajectory, stages: Stages, counts: Sequence[int]) -> Timesteps:
    """Timesteps with ``counts[s]`` of them in stage s, where they depend on ``counts[s]`` alone.

    They are spread evenly from the stage's first user timestep towards that of the next stage, or towards the end of
    the sampler. As many as the user's own are the user's own; none leaves the stage to its neighbours.

    Args:
        path: the user's own trajectory.
        stages: from ``path.stages``.
        counts: one for each stage; the first stage keeps at least one.

    Raises:
        DiffESError: counts that do not fit the stages, or more than a stage can hold.
    """
    if len(counts) != len(stages) or min(counts) < 0 or counts[0] < 1:
        expected = f"{len(stages)} numbers from 0 up, of which the first is at least 1"
        remedy = "Give every stage a number of steps; the first step is where the noise is scaled for."
        raise DiffESError("steps of the stages", expected=expected, found=str(list(counts)), remedy=remedy)
    own = _own(path, stages)
    if not all(own):
        remedy = "Take the stages of this trajectory: `path.stages(count)`."
        raise DiffESError("stages", expected="user timesteps in each", found=str(list(map(len, own))), remedy=remedy)
    ends = _ends(path, own)
    return tuple(t for s, n in enumerate(counts) for t in _spread(path, stages, s, own[s], ends[s], n))


def _own(path: Trajectory, stages: Stages) -> list[list[float]]:
    """The user's own timesteps in each stage."""
    return [[t for t in path.timesteps if stages.index(t) == s] for s in range(len(stages))]


def _ends(path: Trajectory, own: Sequence[Sequence[float]]) -> list[float]:
    """Where each stage ends: with the first timestep of the next one, or with the sampler."""
    return [*(first for first, *_ in own[1:]), path.end]


def _spread(path: Trajectory, stages: Stages, stage: int, own: list[float], end: float, count: int) -> list[float]:
    if count == len(own):
        return own
    first = own[0]
    even = [first - k * (first - end) / count for k in range(count)]
    spread = [float(math.floor(t + 0.5)) for t in even] if path.whole else [float(np.float32(t)) for t in even]
    if any(a <= b for a, b in pairwise([*spread, end])) or min(spread, default=0) < 0:
        expected = f"at most {math.floor(first - end)} timesteps from {first:g} to above {end:g}"
        remedy = "Ask for fewer steps in this stage."
        raise DiffESError(f"steps of stage {stage}", expected=expected, found=str(count), remedy=remedy)
    if any(stages.index(t) != stage for t in spread):
        expected, found = f"a boundary at {end!r}, where the next stage begins", f"one at {stages.boundaries[stage]!r}"
        raise DiffESError(f"stage {stage}", expected=expected, found=found, remedy="Take `path.stages(count)`.")
    return spread


def step_choices(own: Sequence[int], fine: int, room: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """How many steps each stage may take, for its own number: all small numbers and some up to ``fine`` times its own,
    as far as there is room; none but in the first stage, which begins with the noise."""
    numbers = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128]
    found = list[tuple[int, ...]]()
    for stage, (steps, fits) in enumerate(zip(own, room, strict=True)):
        most = min(fine * steps, fits)
        taken = {steps, *(n for n in (2 * steps, most, *numbers) if n <= most)}
        found.append(tuple(sorted(taken - {0} if stage == 0 else taken)))
    return tuple(found)


def by_hand(path: Trajectory, steps: int) -> tuple[Timesteps, ...]:
    """So many steps by the rules that people use, those of noise where it is known."""
    rules = (trailing, karras, exponential, quadratic) if path.noise else (trailing, quadratic)
    return tuple(rule(path, steps) for rule in rules)


def trailing(path: Trajectory, steps: int) -> Timesteps:
    """Evenly from the user's first timestep to the end (arXiv 2305.08891, table 2).

    Raises:
        DiffESError: no step, or more than there are timesteps.
    """
    return _powers(path, steps, 1)


def quadratic(path: Trajectory, steps: int) -> Timesteps:
    """Denser towards the image, by squares (arXiv 2010.02502, appendix D.2); raises as :func:`trailing` does."""
    return _powers(path, steps, 2)


def karras(path: Trajectory, steps: int, rho: float = 7.0) -> Timesteps:
    """Evenly in sigma^(1/rho), from the user's first timestep to the least noise (arXiv 2206.00364, equation 5).

    Raises:
        DiffESError: no step, or more than there are timesteps.
    """
    first, last = path.sigma([path.timesteps[0], path.lowest]) ** (1 / rho)
    return at_sigmas(path, np.linspace(first, last, max(steps, 0)) ** rho)


def exponential(path: Trajectory, steps: int) -> Timesteps:
    """Evenly in the logarithm of sigma, to the least noise; raises as :func:`karras` does."""
    first, last = path.sigma([path.timesteps[0], path.lowest])
    return at_sigmas(path, np.geomspace(first, last, max(steps, 0)))


def at_sigmas(path: Trajectory, sigmas: NDArray[np.float64]) -> Timesteps:
    """The timesteps of descending sigmas; raises as :func:`karras` does."""
    return _settled(path, np.interp(sigmas, path.noise, range(len(path.noise))).tolist())


def _powers(path: Trajectory, steps: int, power: int) -> Timesteps:
    length = path.timesteps[0] - path.end
    return _settled(path, [path.end + length * ((steps - k) / steps) ** power for k in range(steps)])


def _settled(path: Trajectory, wanted: Sequence[float]) -> Timesteps:
    """The nearest timesteps that the sampler can take."""
    if not 1 <= len(wanted) <= path.most_steps:
        remedy = "Ask for another number of steps."
        raise DiffESError(
            "steps", expected=f"a number from 1 to {path.most_steps}", found=str(len(wanted)), remedy=remedy
        )
    if path.end < 0 or path.whole:  # no timestep below 0, and no two the same
        wanted = [max(t, path.lowest + left) for left, t in zip(reversed(range(len(wanted))), wanted, strict=True)]
    if not path.whole:
        return tuple(float(np.float32(t)) for t in wanted)
    settled = list[float]()
    for t in wanted:
        settled.append(float(min([math.floor(t + 0.5), *(s - 1 for s in settled[-1:])])))
    return tuple(settled)
