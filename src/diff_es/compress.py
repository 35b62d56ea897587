"""The method on one page: calibrate, rank, search, re-rank the finalists.

``compress`` is the whole of it; ``evolve`` is the part of a budget, for those who want several of one calibration.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artefact import Compressed, fingerprint
from .baselines import mosaic
from .fitness import Fitness
from .journal import Journal
from .layers import Plan
from .loading import origin_of
from .pipeline import AnyPipeline
from .placements import Compact, Placement
from .progress import Reporter
from .rng import derive_seed
from .schedule import Schedule
from .search import Evolution, Generation, Levels, Search, Space, evolutionary_search, knapsack
from .settings import Settings, describe
from .study import Study, Survey, as_measured, identity, study, survey


@dataclass(frozen=True)
class Found:
    """What a search came back with: the winner on held-out probes, and how it got there."""

    levels: Levels
    score: float  # on the search's probes
    held_out: float  # on probes the search never saw
    finalists: tuple[tuple[Levels, float, float], ...]  # (levels, search score, held-out score), best held-out first
    history: tuple[Generation, ...]
    evaluations: int  # candidates run in all, those of the sensitivity table included


def answer(levels: Levels, fitness: Fitness, journal: Journal) -> float:
    """The score of a candidate, from the journal where it is known; what is new is written down."""
    if levels not in journal.scores:
        journal.add(levels, fitness(levels))
    return journal.scores[levels]


def run_search(search: Search, fitness: Fitness, journal: Journal, reporter: Reporter, title: str, total: int) -> None:
    """Answer every question of a search, from the journal where it knows, and write down what is new."""
    with reporter.task(title, total) as task:
        while not search.done:
            for levels in search.ask():
                search.tell({levels: answer(levels, fitness, journal)})
                task.advance(f"best {search.ranking()[0].score:.2f}")


def select(ready: Study, search: Search, extra: Sequence[Levels], before: Set[Levels], reporter: Reporter) -> Found:
    """Judge the best candidates of a finished search again, on probes it never saw.

    Args:
        extra: candidates that are judged in any case.
        before: candidates run before the search.
    """
    scores = dict(search.ranking())
    best = list(dict.fromkeys([*list(scores)[: ready.settings.finalists], *extra]))
    judge = ready.fitness("held-out", ready.settings.held_out)
    finalists = []
    with reporter.task("judge finalists", len(best)) as task:
        for levels in best:
            finalists.append((levels, scores[levels], judge(levels)))
            task.advance()
    finalists.sort(key=lambda entry: (-entry[2], entry[0]))
    levels, score, held_out = finalists[0]
    return Found(levels, score, held_out, tuple(finalists), search.history, len(scores.keys() | before))


def single(ready: Study, stage: int, level: int) -> Levels:
    """The schedule that prunes one stage and leaves all else dense."""
    return tuple((level if s == stage else 0,) for s in range(len(ready.stages)))


def sensitivity(ready: Study, fitness: Fitness, journal: Journal, reporter: Reporter) -> list[list[float]]:
    """The error of every [stage][level] with all else dense; short runs, since the dense prefix is known."""
    stages, levels, table = len(ready.stages), range(1, ready.library.deepest + 1), list[list[float]]()
    with reporter.task("measure sensitivity", stages * len(levels)) as task:
        for stage in range(stages):
            table.append([0.0])
            for level in levels:
                score = answer(single(ready, stage, level), fitness, journal)
                table[-1].append(ready.settings.measure.error(score))
                task.advance()
    return table


def starts(ready: Study, space: Space, table: list[list[float]]) -> tuple[Levels, ...]:
    """The first candidates: the knapsack of the sensitivities, uniform, ramps and the middle-protecting shape of
    MosaicDiff, each filled up to the budget; the knapsack comes first."""
    rng = np.random.default_rng(derive_seed(ready.settings.seed, "starts"))
    additive = space.repair(knapsack(space, [[row] for row in table]), rng)
    return (additive, *space.starts(rng), space.repair(mosaic(space, ready.statistics.change), rng))


def evolve(
    ready: Study, macs: float, fitness: Fitness, table: list[list[float]], journal: Journal, reporter: Reporter
) -> Found:
    """The paper's evolutionary search for the best schedule of at most ``macs`` of the dense compute.

    Args:
        fitness: on the search's probes.
        table: the sensitivities; one table serves all budgets.
    """
    settings, space = ready.settings, ready.costs.space(macs)
    first = starts(ready, space, table)
    evolution = Evolution(
        population=settings.population,
        generations=settings.generations,
        survivors=settings.survivors,
        crossover=settings.crossover,
        switches=settings.switches,
        seed=derive_seed(settings.seed, "evolution") % 2**32,
    )
    search = evolutionary_search(space, evolution, first)
    run_search(search, fitness, journal, reporter, "search", settings.population * settings.generations)
    alone = {single(ready, stage, level) for stage, row in enumerate(table) for level in range(1, len(row))}
    return select(ready, search, first[:1], alone, reporter)


def compacted(ready: Study, levels: Levels, placement: Compact, reporter: Reporter) -> tuple[tuple[Plan, ...], float]:
    """A schedule's plans with low-rank corrections, and their score on the held-out probes."""
    made, plans = dict[tuple[int, int], Plan](), list[Plan]()
    with reporter.task("factor corrections", len(levels)) as task:
        for stage, (level,) in enumerate(levels):
            plan = ready.library.plan(stage, level)
            key = (id(plan), level)  # stages may share a plan
            if key not in made:
                made[key] = ready.library.compacted(stage, level, placement.tolerance)
            plans.append(made[key])
            task.advance()
    judge = ready.fitness("held-out", ready.settings.held_out)
    return tuple(plans), judge.of_plans(plans)


def finish(
    ready: Study,
    macs: float,
    found: Found,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
) -> Compressed:
    """The found schedule with its plans, ready to run and to save."""
    levels, settings = found.levels, ready.settings
    plans = tuple(ready.library.plan(stage, row[0]) for stage, row in enumerate(levels))
    extra: dict[str, Any] = {}
    if isinstance(placement, Compact):
        plans, score = compacted(ready, levels, placement, reporter or Reporter(quiet=True))
        extra["compact_held_out_score"] = score
    about: dict[str, Any] = {
        "budget": macs,
        "macs_ratio": ready.costs.ratio(levels),
        "score": found.score,
        "held_out_score": found.held_out,
        "finalists": [list(entry) for entry in found.finalists],
        "history": [asdict(generation) for generation in found.history],
        "evaluations": found.evaluations,
        "steps": list(ready.costs.steps),
        "timesteps": list(ready.trace.timesteps),
        "macs_by_level": list(ready.costs.macs),
        "settings": describe(settings),
        "origin": origin_of(ready.pipe),
        **extra,
    }
    base = fingerprint(ready.pipe.transformer)
    return Compressed(Schedule(ready.stages, levels), plans, settings.sampling, base, about, placement)


def compress(
    pipe: AnyPipeline,
    macs: float = 0.7,
    settings: Settings | None = None,
    *,
    placement: Placement | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Compressed:
    """Make a pipeline faster: calibrate it on its own trajectories, rank, and search a schedule within the budget.

    Args:
        pipe: a ``DiTPipeline`` with the scheduler you sample with; it is left as it was.
        macs: the share of the dense trajectory's multiply-accumulates that may be spent, in (0, 1].
        settings: everything else that the result depends on; give at least your own steps and guidance.
        placement: where the weights of the stages wait when the result runs; None leaves it to the memory that is free
            then. ``Compact`` factors the corrections, and measures what that costs.
        journal: a file to which every evaluation is appended, so that a stopped search can be resumed.
        resume: go on with an existing journal, to the result that an uninterrupted run gives.
        reporter: shows progress; default silent.
        changes: single settings by name, such as ``steps=20, guidance=2.0, generations=50``.

    Raises:
        UnsupportedModel: a pipeline that Diff-ES cannot drive.
        BudgetOutOfReach: before any search; says what is attainable.
        DiffESError: bad settings, or a journal of other settings.
    """
    reporter = reporter or Reporter(quiet=True)
    settings = (settings or Settings()).changed(**changes)
    if resume and journal is not None:
        settings = as_measured(settings, Path(journal))
    surveyed = survey(pipe, settings, reporter)
    surveyed.costs.space(macs)  # an impossible budget is refused before anything runs
    log = open_journal(surveyed, macs, journal, resume=resume)
    ready = study(surveyed, reporter)
    fitness = ready.fitness("search", ready.settings.probes)
    table = sensitivity(ready, fitness, log, reporter)
    return finish(ready, macs, evolve(ready, macs, fitness, table, log, reporter), placement, reporter)


def open_journal(surveyed: Survey, macs: float, path: str | Path | None, *, resume: bool) -> Journal:
    """The journal of one search, bound to everything that its scores and its course depend on."""
    facts = {**describe(surveyed.settings), "macs": macs, **identity(surveyed.pipe)}
    return Journal(Path(path) if path is not None else None, facts, resume=resume)


def found_again(fast: Compressed) -> Found:
    """What the search came back with, from a result that was saved."""
    finalists = tuple((_levels(rows), score, held_out) for rows, score, held_out in fast.about["finalists"])
    history = tuple(Generation(**generation) for generation in fast.about["history"])
    about = fast.about
    scores = (about["score"], about["held_out_score"])
    return Found(fast.schedule.levels, *scores, finalists, history, about["evaluations"])


def _levels(rows: Sequence[Sequence[int]]) -> Levels:
    return tuple(tuple(row) for row in rows)
