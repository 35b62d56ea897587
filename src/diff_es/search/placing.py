"""Where the steps of a schedule lie: a local search over timesteps at constant cost.

A candidate is a schedule with one more row, its timesteps: `((n, level, ...), ..., (t, t, ...))`. A timestep moves
between its neighbours, within its stage or into one of the same levels, so the cost never changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from diff_es.search.ask import Scored, Search
from diff_es.search.evolve import ATTEMPTS
from diff_es.search.space import Levels


@dataclass(frozen=True)
class Placing:
    """Settings of the search. ValueError where one is out of range."""

    offspring: int = 8  # lambda
    generations: int = 20  # in all, the starts included
    survivors: int = 3  # mu
    spread: float = 0.3  # standard deviation of a move, relative to the distance of the neighbours
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("offspring", "generations", "survivors"):
            if getattr(self, name) < 1:
                raise ValueError(f"Placing.{name}: expected 1 or more, found {getattr(self, name)}")
        if not self.spread > 0:
            raise ValueError(f"Placing.spread: expected a number above 0, found {self.spread}")


def placing_search(boundaries: Sequence[float], end: float, settings: Placing, starts: Sequence[Levels]) -> Search:
    """(mu + lambda) over timesteps; the first one of all, where the noise begins, stays.

    Args:
        boundaries: of the stages, descending: the first timestep of each stage but the first.
        end: the timestep that the last step leads to.
        starts: schedules with their timesteps.

    ValueError where a start has other numbers of steps than its timesteps fall into.
    """
    for i, start in enumerate(starts):
        counts = _counts(start[-1], boundaries)
        if counts != [row[0] for row in start[:-1]]:
            raise ValueError(f"placing_search: starts[{i}]: expected steps {counts} by its timesteps, found {start}")

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Levels, ...]:
        if generation >= settings.generations:
            return ()
        if generation == 0:
            return tuple(dict.fromkeys(starts))
        alive = [c.levels for c in ranking if c.score > -np.inf] or [c.levels for c in ranking]
        parents, taken, cohort = alive[: settings.survivors], {c.levels for c in ranking}, list[Levels]()
        for index in range(settings.offspring):
            rng = np.random.default_rng([settings.seed, crc32(b"placing"), generation, index])
            for _ in range(ATTEMPTS):
                child = moved(parents[rng.integers(len(parents))], boundaries, end, settings.spread, rng)
                if child not in taken:
                    taken.add(child)
                    cohort.append(child)
                    break
        return tuple(cohort)

    return Search(propose)


def moved(schedule: Levels, boundaries: Sequence[float], end: float, spread: float, rng: np.random.Generator) -> Levels:
    """One or two timesteps moved; the schedule itself where none can."""
    rows, timesteps = schedule[:-1], list(schedule[-1])
    for _ in range(int(rng.integers(1, 3))):
        if len(timesteps) < 2:
            break
        i = int(rng.integers(1, len(timesteps)))
        above, below = timesteps[i - 1], timesteps[i + 1] if i + 1 < len(timesteps) else end
        wanted = round(timesteps[i] + rng.normal() * spread * (above - below) / 2)
        there, here = _stage(wanted, boundaries), _stage(timesteps[i], boundaries)
        if above > wanted > max(below, -1) and rows[there][1:] == rows[here][1:]:
            timesteps[i] = wanted
    counts = _counts(timesteps, boundaries)
    return (*((n, *row[1:]) for n, row in zip(counts, rows, strict=True)), tuple(timesteps))


def _stage(timestep: float, boundaries: Sequence[float]) -> int:
    return sum(timestep <= boundary for boundary in boundaries)


def _counts(timesteps: Sequence[float], boundaries: Sequence[float]) -> list[int]:
    found = [_stage(t, boundaries) for t in timesteps]
    return [found.count(stage) for stage in range(len(boundaries) + 1)]
