"""Drives the searches of a study: asks, has candidates judged, moves steps about, re-ranks the finalists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from .sensitivity import Sensitivity, by_rule, changed, dense_starts, starts, with_timesteps
from .settings import Levers
from .study import Study

_BEYOND = (1.0, 1.15)
"""How far beyond a budget steps of the dense model are searched, to be pruned down to it."""
_DOUBTS = (1.0, 2.0, 4.0)
"""How many times the table's errors of levels are counted, to choose what is pruned down."""
_EACH = 2
"""How many schedules are pruned down to a budget for each doubt, and how many placed ones go on."""


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


def place(ready: Study, share: float, best: Sequence[Levels], judge: Judge, reporter: Reporter) -> dict[Levels, float]:
    """Where the steps of the best schedules lie best: candidates by score, with their timesteps as the last row.

    Dense ones are placed by themselves first, with the rules that people use: their steps can go anywhere at the same
    cost. The best of them join the others, of which steps and levels are moved.

    Args:
        best: schedules within the budget, best first.
    """
    space, most, found = ready.costs.space(share), ready.settings.survivors, dict[Levels, float]()
    if (narrow := space.dense()) is not None:
        first = [with_timesteps(ready, levels) for levels in best if narrow.feasible(levels)][:most]
        first += by_rule(ready, share)
        found = _placed(ready, f"place the steps at {share:g}", narrow, first, judge, reporter)
    if any(_is_pruned(ready, levels) for levels in best):
        first = [with_timesteps(ready, levels) for levels in best[:most]] + list(found)[:_EACH]
        found |= _placed(ready, f"place steps and levels at {share:g}", space, first, judge, reporter)
    return dict(ranked(found))


def _placed(
    ready: Study, title: str, space: Space, first: Sequence[Levels], judge: Judge, reporter: Reporter
) -> dict[Levels, float]:
    settings, path = ready.settings, ready.path
    assert path is not None
    placing = Placing(
        offspring=settings.offspring, generations=settings.placings, seed=derive_seed(settings.seed, "placing") % 2**32
    )
    search = placing_search(space, ready.stages.boundaries, path.end, placing, first)
    total = len(first) + settings.offspring * (settings.placings - 1)
    run_search(search, judge, reporter, title, total, (lambda _: 0) if settings.heat else None)
    return dict(ranked(dict(search.ranking())))


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

    Where steps and levels are both a choice, steps are searched for the dense model first, within the budgets and
    beyond. What is found is pruned down to each budget, and from there steps and levels are searched together, in half
    as many generations more.

    Args:
        budgets: shares of the dense cost.
        judge: scores on the search's probes.
        table: the sensitivities; one table serves all budgets.
    """
    by_budget = {budget: ready.costs.space(budget) for budget in sorted(set(budgets))}
    spaces, generations, scores = list(by_budget.values()), ready.settings.generations, dict[Levels, float]()
    first, dense = starts(ready, spaces, table), _dense(ready, spaces)
    if dense:
        begun = dense_starts(ready, dense, table)
        scores |= _evolved(ready, dense, generations, "evolution of steps", begun, judge, reporter).ranking()
        generations = -(-generations // 2)
        thinned = [levels for space in spaces for levels in _pruned(ready, space, scores, table)]
        first = (*first[: len(spaces)], *thinned)
    before, search = len(scores), _evolved(ready, spaces, generations, "evolution", first, judge, reporter)
    scores = {**scores, **dict(search.ranking()), **dict(ranked(scores))}  # who lost a later heat keeps its score
    history = tuple(replace(one, evaluations=before + one.evaluations) for one in search.history)
    ran, results = len(scores) + len(set(changed(ready)) - scores.keys()), dict[float, Found]()
    for (budget, space), start in zip(by_budget.items(), first, strict=False):
        best = {levels: score for levels, score in ranked(scores) if space.feasible(levels)}
        if ready.path is None:
            best.setdefault(start, judge.score(start))  # it may have lost its heat
            results[budget] = select(ready, best, [start], history, ran, reporter)
        else:
            own = place(ready, budget, list(best), judge, reporter)
            unpruned = [levels for levels in own if not _is_pruned(ready, levels)][:1]
            results[budget] = select(ready, own, unpruned, history, ran + len(own), reporter)
    return results


def ranked(scores: Mapping[Levels, float]) -> list[tuple[Levels, float]]:
    """The candidates that were not ruled out, best first; equal scores in the order of their levels."""
    alive = [(levels, score) for levels, score in scores.items() if score > -math.inf]
    return sorted(alive, key=lambda entry: (-entry[1], entry[0]))


def _is_pruned(ready: Study, levels: Levels) -> bool:
    return any(map(any, ready.rows(levels)))


def _evolved(
    ready: Study,
    spaces: Sequence[Space],
    generations: int,
    purpose: str,
    first: Sequence[Levels],
    judge: Judge,
    reporter: Reporter,
) -> Search:
    """A finished evolution within several budgets at once, from these first candidates."""
    settings = ready.settings
    switches = usual_switches(spaces[-1].genes) if settings.switches is None else settings.switches
    evolution = Evolution(
        population=settings.population,
        generations=generations,
        survivors=settings.survivors,
        crossover=settings.crossover,
        switches=switches,
        seed=derive_seed(settings.seed, purpose) % 2**32,
    )
    budgets = [space.budget for space in spaces]
    search = front_search(spaces[-1], budgets, evolution, first)
    peers = tier(spaces[-1].cost, budgets) if settings.heat else None
    run_search(search, judge, reporter, purpose, settings.population * generations, peers)
    return search


def _dense(ready: Study, spaces: Sequence[Space]) -> list[Space]:
    """Where steps and levels are both a choice: schedules of steps alone, within the budgets and somewhat beyond."""
    if ready.settings.levers is not Levers.BOTH or 0 in ready.costs.barred:
        return []
    budgets = sorted({math.floor(space.budget * beyond) for space in spaces for beyond in _BEYOND})
    found = [spaces[-1].within(budget).dense() for budget in budgets]
    return [space for space in found if space is not None]


def _pruned(ready: Study, space: Space, scores: Mapping[Levels, float], table: Sensitivity) -> list[Levels]:
    """The best of the schedules of steps alone, each with the levels that bring it within a budget.

    Which are best is foretold: the error that was measured, and the table's for the levels, once as it is and then more
    and more of it, since errors of levels may reinforce each other.
    """
    errors = dict[Levels, tuple[float, float]]()
    for levels, score in ranked(scores):
        counts = [row[0] for row in levels]
        if space.pays(counts):
            point = table.pruned(space, counts)
            errors[point.levels] = ready.settings.measure.error(score), point.error
    found = list[Levels]()
    for doubt in _DOUBTS:
        foretold = sorted(errors, key=lambda levels: (errors[levels][0] + doubt * errors[levels][1], levels))
        found += [levels for levels in foretold if levels not in found][:_EACH]
    return found
