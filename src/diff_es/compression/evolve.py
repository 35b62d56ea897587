"""The evolutionary search of a study: steps first, then steps and levels together; last, a final."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ..search import Candidate, Generation, NoneFits, Space
from ..utils.progress import Reporter
from ..utils.seeds import derive_seed
from .evaluator import Evaluator
from .final import Finalist, Found, select
from .search_loop import Ranking, Unpruned, by_chance, evolved, place_both, place_steps, ranked, widened
from .sensitivity import Sensitivity, changed
from .settings import Levers
from .starts import by_rule, foreseen, starts, with_timesteps
from .study import Study

_BEYOND = 1.15
"""How far beyond the largest budget steps of the dense model are searched, to be pruned down to it."""
_DOUBTS = (1.0, 2.0, 4.0)
"""How many times the table's errors of levels are counted, to choose what is pruned down."""
_EACH = 2
"""How many schedules are pruned down to a budget for each doubt, and how many placed ones go on."""


def evolve(
    ready: Study, budgets: Sequence[float], evaluator: Evaluator, table: Sensitivity, reporter: Reporter
) -> tuple[Found, ...]:
    """The evolutionary search for the best schedule within each budget, all of them in one run; the smallest first.

    Where steps and levels are both a choice, steps are searched first, draw by draw as they are alone. What is found is
    pruned down to each budget, and from there steps and levels are searched together.

    What few probes put forward may be what happens to suit them. So there is a final for each budget (``final``), among
    the best of its search before and after timesteps were moved, the best that are not pruned, what users do by hand,
    random schedules, and the winner of the smaller budget. On the noises that it was chosen on, the result is below
    none of them.

    Args:
        budgets: the most that schedules may cost, relative to the user's own setting.
        evaluator: scores on the search's probes.
        table: the sensitivities; one table serves all budgets.
    """
    by_budget = {budget: ready.costs.space(budget) for budget in sorted(set(budgets))}
    explored = _explore(ready, list(by_budget.values()), evaluator, table, reporter)
    results, smaller = list[Found](), list[Finalist]()
    for (budget, space), knapsack in zip(by_budget.items(), explored.knapsacks, strict=True):
        best, placed = _searched(ready, budget, space, explored, evaluator, reporter)
        lucky, drawn = _by_chance(ready, budget, space, evaluator, reporter)
        first = [knapsack] if ready.costs.choices is None else foreseen(ready, budget, evaluator)
        finalists = [*map(Finalist, [*best, *first, *lucky]), *_by_hand(ready, budget, space, evaluator), *smaller]
        ran = {*explored.scores, *changed(ready), *placed, *drawn, *(one.candidate for one in finalists)}
        found = select(ready, budget, finalists, evaluator, explored.history, len(ran), reporter)
        results.append(found)
        smaller = [Finalist(found.candidate, found.corrected)]
    return tuple(results)


def _searched(
    ready: Study, budget: float, space: Space, explored: _Explored, evaluator: Evaluator, reporter: Reporter
) -> tuple[list[Candidate], Mapping[Candidate, float]]:
    """The finalists of a budget's search, best first, and all candidates whose timesteps were moved on the way."""
    most = ready.settings.finalists
    best = [one for one in ranked(explored.scores) if space.feasible(one)]
    if ready.costs.choices is None:
        return best[:most], {}
    narrow = space.dense()
    alone = [one for one in ranked(explored.alone) if narrow is not None and narrow.feasible(one)]
    placed = place_steps(ready, budget, alone, evaluator, reporter)
    own = {widened(ready, one): score for one, score in placed.items()}
    unpruned = list(ranked(own))[:most]
    if any(one.pruned for one in best):
        both = place_both(ready, budget, [*best[: ready.settings.survivors], *unpruned[:_EACH]], evaluator, reporter)
        own = {**own, **both, **ranked(own)}  # who lost on a later rung keeps its score
    few, first = _few(ready), [one for one in best if with_timesteps(ready, one) not in own]
    steps = [one for one in first if not one.pruned]
    return [*list(ranked(own))[:most], *unpruned, *first[:few], *steps[:few]], own


def _few(ready: Study) -> int:
    """How many finalists there are of what no search has made better: random schedules, rules of hand."""
    return max(1, ready.settings.finalists // 2)


def _by_chance(
    ready: Study, budget: float, space: Space, evaluator: Evaluator, reporter: Reporter
) -> tuple[list[Candidate], Mapping[Candidate, float]]:
    """The best of some random schedules, the first that random search would come to, and all of them; where steps and
    levels are both a choice, half of them are of steps alone."""
    count, narrow = ready.settings.population, None if ready.costs.choices is None else space.dense()
    if ready.settings.levers is not Levers.BOTH or narrow is None:
        drawn = dict(by_chance(ready, space, f"random schedules at {budget:g}", count, evaluator, reporter).ranking())
        return list(ranked(drawn))[: _few(ready)], drawn
    count, unpruned = -(-count // 2), Unpruned(ready, evaluator)
    drawn = dict(by_chance(ready, space, f"random schedules at {budget:g}", count, evaluator, reporter).ranking())
    search = by_chance(ready, narrow, f"random steps at {budget:g}", count, unpruned, reporter)
    alone = {widened(ready, one): score for one, score in search.ranking()}
    return [*list(ranked(drawn))[: _few(ready)], *list(ranked(alone))[: _few(ready)]], {**drawn, **alone}


def _by_hand(ready: Study, budget: float, space: Space, evaluator: Evaluator) -> list[Finalist]:
    """What users do: uniform pruning; fewer steps of the dense model by the usual rules, the best of them on the
    search's probes; their own setting, where it is within the budget. Steps are corrected, and as the sampler takes
    them."""
    rng, found = np.random.default_rng(derive_seed(ready.settings.seed, "uniform")), list[Finalist]()
    if ready.settings.levers is not Levers.STEPS:
        with suppress(NoneFits):
            found.append(Finalist(space.repair(space.uniform(), rng)))
    ruled, own = by_rule(ready, budget), [ready.own] if space.feasible(ready.own) else []
    found += map(Finalist, [*list(ranked(evaluator.scores(ruled)))[: _few(ready)], *own])
    if ready.corrected:
        plain = ranked(evaluator.plain(ruled))
        found += [Finalist(one, corrected=False) for one in [*list(plain)[: _few(ready)], *own]]
    return found


@dataclass(frozen=True)
class _Explored:
    """What evolution has seen, before timesteps are moved."""

    scores: Ranking  # of all candidates, those that lost on a rung included
    alone: Ranking  # of the search of steps alone, as `Space.dense` has them
    knapsacks: tuple[Candidate, ...]  # the first start of each budget
    history: tuple[Generation, ...]  # of the last search


def _explore(
    ready: Study, spaces: Sequence[Space], evaluator: Evaluator, table: Sensitivity, reporter: Reporter
) -> _Explored:
    settings, first = ready.settings, starts(ready, spaces, table, evaluator)
    knapsacks, generations, purpose = first[: len(spaces)], settings.generations, "evolution"
    alone, scores, history = Ranking(), Ranking(), tuple[Generation, ...]()
    if dense := _dense(ready, spaces):
        begun, unpruned = starts(ready, dense, table.dense, evaluator), Unpruned(ready, evaluator)
        steps = evolved(ready, dense, generations, purpose, begun, unpruned, reporter)
        alone, history = dict(steps.ranking()), steps.history
        scores = {widened(ready, one): score for one, score in alone.items()}
        if settings.levers is Levers.BOTH:
            generations, purpose = -(-generations // 2), "evolution of steps and levels"
            scores |= _beyond(ready, spaces[-1], alone, table, generations, unpruned, reporter)
            first = (*knapsacks, *(one for space in spaces for one in _pruned(ready, space, scores, table)))
    if settings.levers is not Levers.STEPS:
        before, search = len(scores), evolved(ready, spaces, generations, purpose, first, evaluator, reporter)
        scores = {**scores, **dict(search.ranking()), **ranked(scores)}  # who lost on a later rung keeps its score
        history = tuple(replace(one, evaluations=before + one.evaluations) for one in search.history)
    return _Explored(scores, alone, knapsacks, history)


def _dense(ready: Study, spaces: Sequence[Space]) -> list[Space]:
    """Schedules of steps alone within the budgets, where steps are a choice and the dense model may run."""
    if ready.costs.choices is None or 0 in ready.costs.barred:
        return []
    return [narrow for space in spaces if (narrow := space.dense()) is not None]


def _beyond(
    ready: Study,
    space: Space,
    alone: Ranking,
    table: Sensitivity,
    generations: int,
    evaluator: Unpruned,
    reporter: Reporter,
) -> Ranking:
    """Schedules of steps alone somewhat beyond the largest budget, from the best within it; with all units."""
    wider = space.within(math.floor(space.budget * _BEYOND)).dense()
    assert wider is not None
    rng = np.random.default_rng(derive_seed(ready.settings.seed, "beyond"))
    first = [table.dense.best(wider), *list(ranked(alone))[: ready.settings.survivors]]
    grown = list(dict.fromkeys(wider.repair(one, rng) for one in first))
    search = evolved(ready, [wider], generations, "evolution of more steps", grown, evaluator, reporter)
    return {widened(ready, one): score for one, score in search.ranking()}


def _pruned(ready: Study, space: Space, scores: Mapping[Candidate, float], table: Sensitivity) -> list[Candidate]:
    """The best of the schedules of steps alone, each with the levels that bring it within a budget.

    Which are best is foretold: the error that was measured, and the table's for the levels, once as it is and then more
    and more of it, since errors of levels may reinforce each other.
    """
    errors, foreseen = dict[Candidate, tuple[float, float]](), [list[float]() for _ in _DOUBTS]  # in ascending order
    most, at_least = _EACH * len(_DOUBTS), table.relaxed(space)

    def hopeless(own: float, added: float) -> bool:
        totals = (own + doubt * added for doubt in _DOUBTS)
        return all(
            len(known) >= most and total > known[most - 1] for total, known in zip(totals, foreseen, strict=True)
        )

    offered = list[tuple[float, float, tuple[int, ...]]]()
    for candidate, score in ranked(scores).items():
        if space.pays(counts := candidate.steps):
            offered.append((ready.settings.measure.error(score), at_least(counts), counts))
    for own, added, counts in sorted(offered, key=lambda one: one[0] + _DOUBTS[1] * one[1]):  # soon the best are known
        if not hopeless(own, added):
            point = table.pruned(space, counts)
            errors[point.candidate] = own, point.error
            for doubt, known in zip(_DOUBTS, foreseen, strict=True):
                insort(known, own + doubt * point.error)
    found = list[Candidate]()
    for doubt in _DOUBTS:
        foretold = sorted(errors, key=lambda one: (errors[one][0] + doubt * errors[one][1], one))
        found += [one for one in foretold if one not in found][:_EACH]
    return found
