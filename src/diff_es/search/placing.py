"""Where the steps of a schedule lie, and their levels: a local search within a budget.

A child has one or two timesteps moved between their neighbours, or a few levels switched. A timestep that goes into
another stage runs at its levels from then on, and levels are repaired where that breaks the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from diff_es.search.ask import Scored, Search
from diff_es.search.candidate import Candidate
from diff_es.search.evolve import ATTEMPTS, usual_switches
from diff_es.search.space import Space


@dataclass(frozen=True)
class Placing:
    """Settings of the search. ValueError where one is out of range."""

    offspring: int = 8  # lambda
    generations: int = 20  # in all, the starts included
    survivors: int = 3  # mu
    spread: float = 0.3  # standard deviation of a move, relative to the distance of the neighbours
    whole: bool = True  # timesteps are integers; else numbers of float32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("offspring", "generations", "survivors"):
            if getattr(self, name) < 1:
                raise ValueError(f"Placing.{name}: expected 1 or more, found {getattr(self, name)}")
        if not self.spread > 0:
            raise ValueError(f"Placing.spread: expected a number above 0, found {self.spread}")


def placing_search(
    space: Space, boundaries: Sequence[float], end: float, settings: Placing, starts: Sequence[Candidate]
) -> Search:
    """(mu + lambda) over timesteps and levels; the first timestep of all, where the noise begins, stays.

    Args:
        space: what costs what, and the budget; numbers of steps that it does not offer are fine.
        boundaries: of the stages, descending: the first timestep of each stage but the first.
        end: the timestep that the last step leads to.
        starts: schedules with their timesteps.

    ValueError where a start has other numbers of steps than its timesteps fall into, or breaks the budget.
    """
    for i, start in enumerate(starts):
        counts = _counts(start.timesteps, boundaries)
        if counts != list(start.steps):
            raise ValueError(f"placing_search: starts[{i}]: expected steps {counts} by its timesteps, found {start}")
        if not space.taking(counts).feasible(start.at(())):
            raise ValueError(f"placing_search: starts[{i}]: expected a cost of {space.budget} or less, found {start}")

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Candidate, ...]:
        if generation >= settings.generations:
            return ()
        if generation == 0:
            return tuple(dict.fromkeys(starts))
        known = [scored.candidate for scored in ranking]
        alive = [scored.candidate for scored in ranking if scored.score > -np.inf] or known
        parents, taken, cohort = alive[: settings.survivors], set(known), list[Candidate]()
        for index in range(settings.offspring):
            rng = np.random.default_rng([settings.seed, crc32(b"placing"), generation, index])
            for _ in range(ATTEMPTS):
                parent = parents[rng.integers(len(parents))]
                own = space.taking(parent.steps)
                if own.genes and rng.random() < 0.5:
                    switched = own.mutate(parent.at(()), rng, usual_switches(own.genes))
                    child = switched.at(parent.timesteps)
                else:
                    child = moved(space, parent, boundaries, end, settings, rng)
                if child not in taken:
                    taken.add(child)
                    cohort.append(child)
                    break
        return tuple(cohort)

    return Search(propose)


def moved(
    space: Space,
    schedule: Candidate,
    boundaries: Sequence[float],
    end: float,
    settings: Placing,
    rng: np.random.Generator,
) -> Candidate:
    """One or two timesteps moved, and levels repaired where steps have changed their stage; the schedule itself where
    none can be moved or paid for."""
    timesteps = list(schedule.timesteps)
    for _ in range(int(rng.integers(1, 3))):
        if len(timesteps) < 2:
            break
        i = int(rng.integers(1, len(timesteps)))
        above, below = timesteps[i - 1], timesteps[i + 1] if i + 1 < len(timesteps) else end
        wanted = timesteps[i] + rng.normal() * settings.spread * (above - below) / 2
        wanted = float(round(wanted) if settings.whole else np.float32(wanted))
        if above > wanted > below and wanted >= 0:
            timesteps[i] = wanted
    counts = _counts(timesteps, boundaries)
    there = Candidate.of(schedule.levels, counts)
    if there.stages != schedule.stages:
        if not space.pays(counts):
            return schedule
        there = space.taking(counts).repair(there, rng)
    return there.at(timesteps)


def _stage(timestep: float, boundaries: Sequence[float]) -> int:
    return sum(timestep <= boundary for boundary in boundaries)


def _counts(timesteps: Sequence[float], boundaries: Sequence[float]) -> list[int]:
    found = [_stage(t, boundaries) for t in timesteps]
    return [found.count(stage) for stage in range(len(boundaries) + 1)]
