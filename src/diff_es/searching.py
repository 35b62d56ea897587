"""The evolutionary search of a study: steps first, then steps and levels together; its finalists are judged again."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .driving import Ranking, Unpruned, evolved, place_both, place_steps, ranked, widened
from .judge import Judge
from .progress import Reporter
from .rng import derive_seed
from .search import Generation, Levels, Space
from .sensitivity import Sensitivity, changed, starts
from .settings import Levers
from .study import Study

_BEYOND = 1.15
"""How far beyond the largest budget steps of the dense model are searched, to be pruned down to it."""
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

    Where steps and levels are both a choice, steps are searched first, draw by draw as they are alone. What is found is
    pruned down to each budget, and from there steps and levels are searched together. The finalists of steps alone are
    judged again beside the others, so that the winner is no worse on the held-out probes than theirs, nor than that of
    a smaller budget.

    Args:
        budgets: shares of the dense cost.
        judge: scores on the search's probes.
        table: the sensitivities; one table serves all budgets.
    """
    by_budget = {budget: ready.costs.space(budget) for budget in sorted(set(budgets))}
    explored = _explore(ready, list(by_budget.values()), judge, table, reporter)
    results, ran = dict[float, Found](), len(explored.scores.keys() | set(changed(ready)))
    for (budget, space), start in zip(by_budget.items(), explored.knapsacks, strict=True):
        best = {levels: score for levels, score in ranked(explored.scores).items() if space.feasible(levels)}
        if ready.path is None:
            best.setdefault(start, judge.score(start))  # it may have lost its heat
            results[budget] = select(ready, best, [start], explored.history, ran, reporter)
            continue
        narrow = space.dense()
        alone = [levels for levels in ranked(explored.alone) if narrow is not None and narrow.feasible(levels)]
        placed = place_steps(ready, budget, alone, judge, reporter)
        own = {widened(ready, levels): score for levels, score in placed.items()}
        unpruned = list(own)[: ready.settings.finalists]
        if any(_is_pruned(ready, levels) for levels in best):
            first = [*list(best)[: ready.settings.survivors], *unpruned[:_EACH]]
            own |= place_both(ready, budget, first, judge, reporter)
        results[budget] = select(ready, ranked(own), unpruned, explored.history, ran + len(own), reporter)
    return _rising(results)


def _rising(results: Mapping[float, Found]) -> dict[float, Found]:
    """The same but for a budget that comes out below a smaller one on held-out probes: that one's winner is its own.

    Args:
        results: smallest budget first.
    """
    rising, best = dict[float, Found](), next(iter(results.values()))
    for budget, found in results.items():
        if best.held_out > found.held_out:
            finalists = (best.finalists[0], *found.finalists)
            found = replace(found, levels=best.levels, score=best.score, held_out=best.held_out, finalists=finalists)
        rising[budget] = best = found
    return rising


@dataclass(frozen=True)
class _Explored:
    """What evolution has seen, before timesteps are moved."""

    scores: Ranking  # of all candidates, those that lost a heat included
    alone: Ranking  # of the search of steps alone, as `Space.dense` has them
    knapsacks: tuple[Levels, ...]  # the first start of each budget
    history: tuple[Generation, ...]  # of the last search


def _explore(ready: Study, spaces: Sequence[Space], judge: Judge, table: Sensitivity, reporter: Reporter) -> _Explored:
    settings, first = ready.settings, starts(ready, spaces, table)
    knapsacks, generations, purpose = first[: len(spaces)], settings.generations, "evolution"
    alone, scores, history = Ranking(), Ranking(), tuple[Generation, ...]()
    if dense := _dense(ready, spaces):
        begun, unpruned = starts(ready, dense, table.dense), Unpruned(ready, judge)
        steps = evolved(ready, dense, generations, purpose, begun, unpruned, reporter)
        alone, history = dict(steps.ranking()), steps.history
        scores = {widened(ready, levels): score for levels, score in alone.items()}
        if settings.levers is Levers.BOTH:
            generations, purpose = -(-generations // 2), "evolution of steps and levels"
            scores |= _beyond(ready, spaces[-1], alone, table, generations, unpruned, reporter)
            first = (*knapsacks, *(levels for space in spaces for levels in _pruned(ready, space, scores, table)))
    if settings.levers is not Levers.STEPS:
        before, search = len(scores), evolved(ready, spaces, generations, purpose, first, judge, reporter)
        scores = {**scores, **dict(search.ranking()), **ranked(scores)}  # who lost a later heat keeps its score
        history = tuple(replace(one, evaluations=before + one.evaluations) for one in search.history)
    return _Explored(scores, alone, knapsacks, history)


def _is_pruned(ready: Study, levels: Levels) -> bool:
    return any(map(any, ready.rows(levels)))


def _dense(ready: Study, spaces: Sequence[Space]) -> list[Space]:
    """Schedules of steps alone within the budgets, where steps are a choice and the dense model may run."""
    if ready.path is None or 0 in ready.costs.barred:
        return []
    return [narrow for space in spaces if (narrow := space.dense()) is not None]


def _beyond(
    ready: Study,
    space: Space,
    alone: Ranking,
    table: Sensitivity,
    generations: int,
    judge: Unpruned,
    reporter: Reporter,
) -> Ranking:
    """Schedules of steps alone somewhat beyond the largest budget, from the best within it; with all units."""
    wider = space.within(math.floor(space.budget * _BEYOND)).dense()
    assert wider is not None
    rng = np.random.default_rng(derive_seed(ready.settings.seed, "beyond"))
    first = [table.dense.best(wider), *list(ranked(alone))[: ready.settings.survivors]]
    grown = list(dict.fromkeys(wider.repair(levels, rng) for levels in first))
    search = evolved(ready, [wider], generations, "evolution of more steps", grown, judge, reporter)
    return {widened(ready, levels): score for levels, score in search.ranking()}


def _pruned(ready: Study, space: Space, scores: Mapping[Levels, float], table: Sensitivity) -> list[Levels]:
    """The best of the schedules of steps alone, each with the levels that bring it within a budget.

    Which are best is foretold: the error that was measured, and the table's for the levels, once as it is and then more
    and more of it, since errors of levels may reinforce each other.
    """
    errors, foreseen = dict[Levels, tuple[float, float]](), [list[float]() for _ in _DOUBTS]  # in ascending order
    most, at_least = _EACH * len(_DOUBTS), table.relaxed(space)

    def hopeless(own: float, added: float) -> bool:
        totals = (own + doubt * added for doubt in _DOUBTS)
        return all(
            len(known) >= most and total > known[most - 1] for total, known in zip(totals, foreseen, strict=True)
        )

    offered = list[tuple[float, float, list[int]]]()
    for levels, score in ranked(scores).items():
        counts = [row[0] for row in levels]
        if space.pays(counts):
            offered.append((ready.settings.measure.error(score), at_least(counts), counts))
    for own, added, counts in sorted(offered, key=lambda one: one[0] + _DOUBTS[1] * one[1]):  # soon the best are known
        if not hopeless(own, added):
            point = table.pruned(space, counts)
            errors[point.levels] = own, point.error
            for doubt, known in zip(_DOUBTS, foreseen, strict=True):
                insort(known, own + doubt * point.error)
    found = list[Levels]()
    for doubt in _DOUBTS:
        foretold = sorted(errors, key=lambda levels: (errors[levels][0] + doubt * errors[levels][1], levels))
        found += [levels for levels in foretold if levels not in found][:_EACH]
    return found
