"""Stages of a trajectory, and the schedule that gives each its pruning level.

A trajectory is the sampler's run from noise to image; stage 0 is the noisiest and runs first. A stage's boundaries are
kept in the timesteps that the denoiser receives, so that a schedule carries over to another number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..utils.errors import DiffESError


@dataclass(frozen=True)
class Stages:
    """S contiguous intervals of the trajectory.

    ``boundaries`` holds the S - 1 timesteps between neighbours, descending: stage s covers the timesteps t with
    ``boundaries[s - 1] >= t > boundaries[s]``.
    """

    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        if any(a <= b for a, b in pairwise(self.boundaries)):
            raise DiffESError(
                "stage boundaries",
                expected="strictly descending timesteps",
                found=str(self.boundaries),
                remedy="Give each boundary once, from noise to image, in what the denoiser receives as its timestep "
                "(0 to 1000, 0 to 1, or sigmas); where a sampler repeats timesteps, use fewer stages.",
            )

    @classmethod
    def split(cls, timesteps: Sequence[float], count: int) -> Stages:
        """Cut the T timesteps of a trajectory into ``count`` stages: stage s holds steps floor(sT/S) to
        floor((s+1)T/S) - 1 (docs/method.md, "Stages").

        Raises:
            DiffESError: more stages than steps, or no stage at all.
        """
        distinct = list(dict.fromkeys(timesteps))  # a sampler of second order calls the denoiser twice at a timestep
        steps = len(distinct)
        if not 1 <= count <= steps:
            raise DiffESError(
                "stages",
                expected=f"a number from 1 to the {steps} timesteps of one trajectory",
                found=str(count),
                remedy=f"Ask for at most {steps} stages, or for more sampler steps: an empty stage saves nothing.",
            )
        if any(a <= b for a, b in pairwise(distinct)):
            remedy = (
                "Use a sampler that runs from noise to image; where a denoiser's own time rises to the image, wrap it "
                "in a module that takes the time left, such as 1 - t."
            )
            raise DiffESError("timesteps", expected="descending ones", found=str(distinct[:8]), remedy=remedy)
        firsts = [s * steps // count for s in range(1, count)]
        return cls(tuple((distinct[i - 1] + distinct[i]) / 2 for i in firsts))

    def __len__(self) -> int:
        return len(self.boundaries) + 1

    def index(self, timestep: float) -> int:
        """The stage of a timestep, from 0 (noisiest) to S - 1."""
        return sum(timestep <= boundary for boundary in self.boundaries)

    def steps(self, timesteps: Sequence[float]) -> tuple[int, ...]:
        """How many of these timesteps each stage holds."""
        indices = [self.index(t) for t in timesteps]
        return tuple(indices.count(s) for s in range(len(self)))


@dataclass(frozen=True)
class Schedule:
    """The pruning level of every unit in every stage: ``levels[stage][unit]``, 0 being dense."""

    stages: Stages
    levels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        units, flat = {len(row) for row in self.levels}, [level for row in self.levels for level in row]
        if len(self.levels) != len(self.stages) or len(units) != 1 or min(flat, default=-1) < 0:
            raise DiffESError(
                "schedule",
                expected=f"one row of levels from 0 up for each of {len(self.stages)} stages, all of one length",
                found=str(self.levels),
                remedy="Give every stage the same units.",
            )

    def to_json(self) -> dict[str, object]:
        return {"boundaries": list(self.stages.boundaries), "levels": [list(row) for row in self.levels]}
