"""What each choice of a stage costs in closeness with all else at its best, and what follows if errors add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .baselines import mosaic
from .fitness import Fitness
from .journal import Journal
from .placement import exponential, karras, quadratic, trailing
from .progress import Reporter
from .rng import derive_seed
from .search import Levels, Space, branches, knapsack_best, prunings
from .study import Study


@dataclass(frozen=True)
class Sensitivity:
    """Errors that a choice adds where everything else is dense and, if steps are a choice, finely stepped.

    One table serves all budgets. Errors are of the measure's own kind, 0 being exact (``Measure.error``).
    """

    levels: tuple[tuple[tuple[float, ...], ...], ...]  # [stage][unit][level]
    steps: tuple[Mapping[int, float], ...] | None  # [stage]: by number of steps

    def best(self, space: Space) -> Levels:
        """The schedule of least total error within the budget, were errors to add up; exact (search/knapsack.py)."""
        if self.steps is None:
            stages = prunings(space, self.levels)
        else:
            steps = self.steps
            stages = branches(space, lambda stage, count: (steps[stage][count], self.levels[stage]))
        return knapsack_best(stages, space.budget).levels


def judged(fitness: Fitness, journal: Journal, levels: Levels, *, heat: bool) -> float:
    """The score of a candidate, in the first heat or on all probes, from the journal where it is known."""
    if heat:
        if levels not in journal.heats:
            journal.add(levels, fitness.first(levels), heat=True)
        return journal.heats[levels]
    if levels not in journal.scores:
        score = fitness.second(levels, journal.heats[levels]) if levels in journal.heats else fitness(levels)
        journal.add(levels, score)
    return journal.scores[levels]


def sensitivity(ready: Study, fitness: Fitness, journal: Journal, reporter: Reporter) -> Sensitivity:
    """Measure the table by short runs: the prefix before a changed stage is known. Where there are heats, on the
    probes of the first."""
    base, heat, error = ready.finest, ready.settings.heat > 0, ready.settings.measure.error
    alone = [levels for stage in tried(ready) for levels in stage]
    with reporter.task("measure sensitivity", len(alone) + 1) as task:
        least = error(judged(fitness, journal, base, heat=heat)) if ready.path is not None else 0.0
        task.advance()
        errors = {base: 0.0}
        for levels in alone:
            errors[levels] = max(error(judged(fitness, journal, levels, heat=heat)) - least, 0.0)
            task.advance()
    choices, stages = ready.costs.choices, range(len(ready.stages))
    by_level = tuple(
        tuple(
            tuple(errors[_leveled(ready, stage, unit, level)] for level in range(len(options)))
            for unit, options in enumerate(ready.costs.options)
        )
        for stage in stages
    )
    if choices is None:
        return Sensitivity(by_level, None)
    return Sensitivity(by_level, tuple({n: errors[_stepped(ready, s, n)] for n in choices[s]} for s in stages))


def tried(ready: Study) -> list[list[Levels]]:
    """The schedules that change one choice of one stage, by stage."""
    choices, found = ready.costs.choices, list[list[Levels]]()
    for stage in range(len(ready.stages)):
        found.append([_stepped(ready, stage, n) for n in choices[stage][:-1]] if choices else [])
        for unit, options in enumerate(ready.costs.options):
            found[-1] += [_leveled(ready, stage, unit, level) for level in range(1, len(options))]
    return found


def _stepped(ready: Study, stage: int, count: int) -> Levels:
    row = (count, *(0 for _ in ready.costs.options))
    return _with(ready.finest, stage, row)


def _leveled(ready: Study, stage: int, unit: int, level: int) -> Levels:
    row, front = list(ready.finest[stage]), 0 if ready.path is None else 1
    row[front + unit] = level
    return _with(ready.finest, stage, row)


def _with(levels: Levels, stage: int, row: Sequence[int]) -> Levels:
    return (*levels[:stage], tuple(row), *levels[stage + 1 :])


def starts(ready: Study, spaces: Sequence[Space], table: Sensitivity) -> tuple[Levels, ...]:
    """First candidates for every budget, each filled up to it: the knapsack of the sensitivities first, then uniform,
    ramps and the middle-protecting shape of MosaicDiff, or fewer steps, evenly and by the rules that people use."""
    rng, found = np.random.default_rng(derive_seed(ready.settings.seed, "starts")), list[Levels]()
    for space in spaces:
        found.append(space.repair(table.best(space), rng))
    for space in spaces:
        found += space.starts(rng)
        if ready.path is None:
            found.append(space.repair(mosaic(space, ready.statistics.change), rng))
        found += (space.repair(levels, rng) for levels in by_hand(ready, space.budget))
    return tuple(found)


def by_hand(ready: Study, budget: int) -> tuple[Levels, ...]:
    """The dense model with as many steps as the budget holds, where rules of hand put them, to the nearest choice."""
    path, choices = ready.path, ready.costs.choices
    if path is None or choices is None:
        return ()
    dense, found = ready.own[0][1:], list[Levels]()
    total = max(1, budget // ready.costs.call(dense))
    for rule in (trailing, karras, exponential, quadratic):
        counts = ready.stages.steps(rule(path, total))
        found.append(
            tuple(
                (min(allowed, key=lambda n, c=count: (abs(n - c), n)), *dense)  # type: ignore[misc]
                for allowed, count in zip(choices, counts, strict=True)
            )
        )
    return tuple(found)
