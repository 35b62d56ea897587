"""Drives the searches of a study: asks, has candidates judged, moves steps about, re-ranks the finalists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .journal import Scale
from .judge import Judge
from .progress import Reporter
from .rng import derive_seed
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
from .sensitivity import Sensitivity, as_row, by_rule, changed, starts
from .study import Study


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
    judge: Judge,
    reporter: Reporter,
    title: str,
    total: int,
    peers: Callable[[Levels], int] | None = None,
) -> None:
    """Answer every question of a search.

    With ``peers`` the candidates of a generation race: all of them run in a first heat, and the better half of those
    that compete for the same on all probes.
    """
    with reporter.task(title, total) as task:

        def done() -> None:
            task.advance(f"best {search.history[-1].best:.2f}" if search.history else "")

        def heat_of(rung: int, candidates: Sequence[Levels]) -> Mapping[Levels, float]:
            return judge.scores(candidates, Scale.HEAT, done) if rung == 0 else judge.scores(candidates)

        while not search.done:
            if peers is not None:
                search.tell(race(search.ask(), heat_of, (0.5,), peers))
            else:
                search.tell(judge.scores(search.ask(), done=done))


def place(
    ready: Study, share: float, search: Search, space: Space, judge: Judge, reporter: Reporter
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
    run_search(local, judge, reporter, f"place the steps at {share:g}", total, peers)
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
    ready: Study, budgets: Sequence[float], judge: Judge, table: Sensitivity, reporter: Reporter
) -> dict[float, Found]:
    """The evolutionary search for the best schedule within each budget, all of them in one run.

    Args:
        budgets: shares of the dense cost.
        judge: scores on the search's probes.
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
    run_search(search, judge, reporter, "search", total, peers)
    ran = len(search.ranking()) + len(set(changed(ready)) - dict(search.ranking()).keys())
    results = dict[float, Found]()
    for (budget, space), start in zip(by_budget.items(), first, strict=False):
        alive = [(levels, score) for levels, score in search.ranking() if score > -math.inf]
        scores = {levels: score for levels, score in alive if space.feasible(levels)}
        if ready.path is None:
            scores.setdefault(start, judge.score(start))  # it may have lost its heat
            results[budget] = select(ready, scores, [start], search.history, ran, reporter)
        else:
            own = place(ready, budget, search, space, judge, reporter)
            results[budget] = select(ready, own, [], search.history, ran + len(own), reporter)
    return results
