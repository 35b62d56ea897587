"""The method on one page: calibrate, rank, search, re-rank the finalists.

``compress`` is the whole of it; ``evolve`` is the part of the budgets, for those who want several of one calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .artefact import Compressed, fingerprint
from .benchmark import Runner, measure
from .budget import Budget
from .compaction import Compaction
from .fitness import Fitness
from .journal import Journal
from .layers import Plan
from .loading import origin_of
from .pipeline import AnyPipeline, denoiser_of
from .placements import Compact, Placement, Streamed, parameter_bytes
from .progress import Reporter
from .rng import derive_seed
from .schedule import Schedule
from .search import (
    Evolution,
    Generation,
    Levels,
    Placing,
    Search,
    Space,
    front_search,
    placing_search,
    race,
    tier,
    usual_switches,
)
from .sensitivity import Sensitivity, as_row, by_rule, changed, judged, sensitivity, starts
from .settings import Settings, describe
from .study import Study, Survey, as_measured, identity, study, survey


@dataclass(frozen=True)
class Found:
    """What a search came back with for one budget: the winner on held-out probes, and how it got there."""

    levels: Levels
    score: float  # on the search's probes
    held_out: float  # on probes the search never saw
    finalists: tuple[tuple[Levels, float, float], ...]  # (levels, search score, held-out score), best held-out first
    history: tuple[Generation, ...]
    evaluations: int  # candidates run in all, those of the sensitivity table included


def run_search(
    search: Search,
    fitness: Fitness,
    journal: Journal,
    reporter: Reporter,
    title: str,
    total: int,
    peers: Callable[[Levels], int] | None = None,
) -> None:
    """Answer every question of a search, from the journal where it knows, and write down what is new.

    With ``peers`` the candidates of a generation race: all of them run in a first heat, and the better half of those
    that compete for the same on all probes.
    """
    with reporter.task(title, total) as task:

        def judge(rung: int, candidates: Sequence[Levels]) -> Mapping[Levels, float]:
            scores = dict[Levels, float]()
            for levels in candidates:
                scores[levels] = judged(fitness, journal, levels, heat=rung == 0)
                if rung == 0:
                    task.advance()
            return scores

        while not search.done:
            if peers is not None:
                search.tell(race(search.ask(), judge, (0.5,), peers))
                continue
            for levels in search.ask():
                search.tell({levels: judged(fitness, journal, levels, heat=False)})
                task.advance(f"best {search.best.score:.2f}")


def place(
    ready: Study, share: float, search: Search, space: Space, fitness: Fitness, journal: Journal, reporter: Reporter
) -> dict[Levels, float]:
    """Where the steps of the best schedules lie best, and those of the rules that people use: candidates by score."""
    settings, path = ready.settings, ready.path
    assert path is not None
    best = [levels for levels, score in search.ranking() if score > -math.inf and space.feasible(levels)]
    starts = [(*levels, as_row(ready.timesteps(levels))) for levels in best[: settings.survivors]]
    starts += by_rule(ready, share)
    placing = Placing(
        offspring=settings.offspring, generations=settings.placings, seed=derive_seed(settings.seed, "placing") % 2**32
    )
    local = placing_search(ready.stages.boundaries, path.end, placing, starts)
    total = len(starts) + settings.offspring * (settings.placings - 1)
    peers = (lambda _: 0) if settings.heat else None
    run_search(local, fitness, journal, reporter, f"place the steps at {share:g}", total, peers)
    return {levels: score for levels, score in local.ranking() if score > -math.inf}


def select(
    ready: Study,
    scores: Mapping[Levels, float],
    extra: Sequence[Levels],
    history: tuple[Generation, ...],
    evaluations: int,
    reporter: Reporter,
) -> Found:
    """Judge the best candidates of a search again, on probes it never saw.

    Args:
        scores: of all candidates that keep the budget, best first.
        extra: candidates that are judged in any case.
    """
    best = list(dict.fromkeys([*list(scores)[: ready.settings.finalists], *extra]))
    finalists = []
    with reporter.task("judge finalists", len(best)) as task:
        for levels in best:
            finalists.append((levels, scores[levels], ready.held_out(levels)))
            task.advance()
    finalists.sort(key=lambda entry: (-entry[2], entry[0]))
    levels, score, held_out = finalists[0]
    return Found(levels, score, held_out, tuple(finalists), history, evaluations)


def evolve(
    ready: Study, budgets: Sequence[float], fitness: Fitness, table: Sensitivity, journal: Journal, reporter: Reporter
) -> dict[float, Found]:
    """The evolutionary search for the best schedule within each budget, all of them in one run.

    Args:
        budgets: shares of the dense cost.
        fitness: on the search's probes.
        table: the sensitivities; one table serves all budgets.
    """
    settings, by_budget = ready.settings, {budget: ready.costs.space(budget) for budget in sorted(set(budgets))}
    spaces = list(by_budget.values())
    first = starts(ready, spaces, table)
    switches = usual_switches(spaces[-1].genes) if settings.switches is None else settings.switches
    evolution = Evolution(
        population=settings.population,
        generations=settings.generations,
        survivors=settings.survivors,
        crossover=settings.crossover,
        switches=switches,
        seed=derive_seed(settings.seed, "evolution") % 2**32,
    )
    search = front_search(spaces[-1], [space.budget for space in spaces], evolution, first)
    peers = tier(spaces[-1].cost, [space.budget for space in spaces]) if settings.heat else None
    total = settings.population * settings.generations
    run_search(search, fitness, journal, reporter, "search", total, peers)
    ran = len(search.ranking()) + len(set(changed(ready)) - dict(search.ranking()).keys())
    results = dict[float, Found]()
    for (budget, space), start in zip(by_budget.items(), first, strict=False):
        alive = [(levels, score) for levels, score in search.ranking() if score > -math.inf]
        scores = {levels: score for levels, score in alive if space.feasible(levels)}
        if ready.path is None:
            scores.setdefault(start, judged(fitness, journal, start, heat=False))  # it may have lost its heat
            results[budget] = select(ready, scores, [start], search.history, ran, reporter)
        else:
            own = place(ready, budget, search, space, fitness, journal, reporter)
            results[budget] = select(ready, own, [], search.history, ran + len(own), reporter)
    return results


def compacted(ready: Study, levels: Levels, placement: Compact, reporter: Reporter) -> tuple[tuple[Plan, ...], float]:
    """A schedule's plans with low-rank corrections, and their score on the held-out probes."""
    compaction, plans = Compaction(ready.library, placement.tolerance), list[Plan]()
    with reporter.task("factor corrections", len(levels)) as task:
        for stage, row in enumerate(ready.rows(levels)):
            plans.append(compaction.plan(stage, row))
            task.advance()
    return tuple(plans), ready.held_out.of_plans(plans, levels)


def finish(
    ready: Study, share: float, found: Found, placement: Placement | None = None, reporter: Reporter | None = None
) -> Compressed:
    """The found schedule with its plans, ready to run and to save."""
    levels, settings, reporter = found.levels, ready.settings, reporter or Reporter(quiet=True)
    rows = ready.rows(levels)
    plans = tuple(ready.library.plan(stage, row) for stage, row in enumerate(rows))
    timesteps = ready.timesteps(levels)
    extra: dict[str, Any] = {}
    if isinstance(placement, Compact):
        plans, extra["compact_held_out_score"] = compacted(ready, levels, placement, reporter)
    if ready.path is not None:
        extra["own_held_out_score"] = ready.held_out(ready.own)
        extra["held_out_score_to_own"] = ready.held_out_to_own(levels)
    about: dict[str, Any] = {
        "budget": share,
        "macs_ratio": ready.macs.ratio(levels),
        "cost_ratio": ready.costs.ratio(levels),
        "score": found.score,
        "held_out_score": found.held_out,
        "finalists": [list(entry) for entry in found.finalists],
        "history": [asdict(generation) for generation in found.history],
        "evaluations": found.evaluations,
        "steps": list(ready.steps(levels)),
        "timesteps": list(ready.trace.timesteps) if timesteps is None else list(timesteps),
        "reference_timesteps": None if ready.reference is None else list(ready.reference),
        "macs_by_level": [list(row) for row in ready.macs.options],
        "units": [unit.name for unit in ready.units],
        "settings": describe(settings),
        "origin": origin_of(ready.pipe),
        **extra,
    }
    base = fingerprint(denoiser_of(ready.pipe))
    schedule = Schedule(ready.stages, rows)
    return Compressed(schedule, plans, settings.sampling, base, about, placement, timesteps)


def compress(
    pipe: AnyPipeline,
    macs: float = 0.7,
    settings: Settings | None = None,
    *,
    speedup: float | None = None,
    weights_gb: float | None = None,
    placement: Placement | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Compressed:
    """Make a pipeline faster: calibrate it on its own trajectories, rank, and search a schedule within the budget.

    Args:
        pipe: a pipeline of one of the classes in ``loading.SUPPORTED``, with the scheduler you sample with; it is left
            as it was.
        macs: the share of the dense trajectory's multiply-accumulates that may be spent, in (0, 1].
        settings: everything else that the result depends on; give at least your own steps and guidance.
        speedup: in place of ``macs``, how many times faster the whole pipeline is to be on this device, at your own
            batch.
        weights_gb: the most GB of weights on the device; the result is placed ``Streamed``.
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
    reporter, budget = reporter or Reporter(quiet=True), Budget(macs, speedup, weights_gb)
    settings, priced = (settings or Settings()).changed(**changes), None
    if resume and journal is not None:
        settings, priced = as_measured(settings, Path(journal))
    surveyed = survey(pipe, settings, reporter, budget, priced)
    log = open_journal(surveyed, budget, journal, resume=resume)
    ready = study(surveyed, reporter)
    fitness = ready.fitness("search", ready.settings.probes, ready.settings.heat)
    table = sensitivity(ready, fitness, log, reporter)
    front = (share for share in ready.settings.front if ready.costs.attainable(share))
    found = evolve(ready, (ready.share, *front), fitness, table, log, reporter)
    if weights_gb is not None:
        placement = Streamed(weights_gb * 1e9 / parameter_bytes(denoiser_of(ready.pipe)))
    results = {share: finish(ready, share, one, placement, reporter) for share, one in found.items()}
    others = tuple(result for share, result in results.items() if share != ready.share)
    result = results[ready.share]
    if speedup is not None:
        runner = Runner("diff-es", result.sampling, ready.stages, result.plans, timesteps=result.timesteps)
        _, timing = measure(ready.pipe, [Runner("dense", result.sampling), runner], 7, reporter)
        result = replace(result, about={**result.about, "speedup": speedup, "measured_speedup": timing.speedup})
    return replace(result, others=others)


def open_journal(surveyed: Survey, budget: Budget, path: str | Path | None, *, resume: bool) -> Journal:
    """The journal of one search, bound to everything that its scores and its course depend on."""
    prices = None if surveyed.prices is None else surveyed.prices.to_json()
    facts = {**describe(surveyed.settings), "budget": asdict(budget), "prices": prices, **identity(surveyed.pipe)}
    return Journal(Path(path) if path is not None else None, facts, resume=resume)


def found_again(fast: Compressed) -> Found:
    """What the search came back with, from a result that was saved."""
    about = fast.about
    finalists = tuple((_levels(rows), score, held_out) for rows, score, held_out in about["finalists"])
    history = tuple(Generation(**generation) for generation in about["history"])
    scores = (about["score"], about["held_out_score"])
    return Found(finalists[0][0], *scores, finalists, history, about["evaluations"])


def _levels(rows: Sequence[Sequence[int]]) -> Levels:
    return tuple(tuple(row) for row in rows)
