"""Runs a search of a study: asks, has candidates judged, tells; then moves the timesteps of what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..scoring.journal import Scale
from ..search import (
    Candidate,
    Evolution,
    Placing,
    Search,
    Space,
    front_search,
    placing_search,
    race,
    random_search,
    tier,
    usual_switches,
)
from ..utils.progress import Reporter
from ..utils.seeds import derive_seed
from .evaluator import Evaluator
from .starts import by_rule, foreseen, straightest, with_timesteps
from .study import Study

Ranking = dict[Candidate, float]
"""Candidates and their scores; from :func:`ranked`, best first and without those that were ruled out."""


class Scores(Protocol):
    """Who scores candidates: a evaluator, or one that sees them otherwise."""

    def scores(
        self, candidates: Sequence[Candidate], scale: Scale = Scale.ALL, done: Callable[[], None] = ...
    ) -> Mapping[Candidate, float]: ...


class Unpruned:
    """Has schedules of steps alone, those of :meth:`Space.dense`, judged with all units at level 0."""

    def __init__(self, ready: Study, evaluator: Evaluator) -> None:
        self._ready, self._evaluator = ready, evaluator

    def scores(
        self, candidates: Sequence[Candidate], scale: Scale = Scale.ALL, done: Callable[[], None] = lambda: None
    ) -> Mapping[Candidate, float]:
        found = self._evaluator.scores([widened(self._ready, one) for one in candidates], scale, done)
        return dict(zip(candidates, found.values(), strict=True))


def run_search(
    search: Search,
    evaluator: Scores,
    reporter: Reporter,
    title: str,
    total: int,
    peers: Callable[[Candidate], int] | None = None,
) -> None:
    """Answer every question of a search.

    With ``peers`` the candidates of a generation race: all of them run on a first rung, and the better half of those
    that compete for the same on all probes.
    """
    with reporter.task(title, total) as task:

        def done() -> None:
            task.advance(f"best {search.history[-1].best:.2f}" if search.history else "")

        def scores_on(rung: int, candidates: Sequence[Candidate]) -> Mapping[Candidate, float]:
            return evaluator.scores(candidates, Scale.RUNG, done) if rung == 0 else evaluator.scores(candidates)

        while not search.done:
            if peers is not None:
                search.tell(race(search.ask(), scores_on, (0.5,), peers))
            else:
                search.tell(evaluator.scores(search.ask(), done=done))


def evolved(
    ready: Study,
    spaces: Sequence[Space],
    generations: int,
    purpose: str,
    first: Sequence[Candidate],
    evaluator: Scores,
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
    peers = tier(spaces[-1].cost, budgets) if settings.rung_noises else None
    total = max(settings.population, len(set(first))) + settings.population * (generations - 1)
    run_search(search, evaluator, reporter, purpose, total, peers)
    return search


def by_chance(ready: Study, space: Space, title: str, count: int, evaluator: Scores, reporter: Reporter) -> Search:
    """A finished random search of so many candidates; those of a longer one begin with them."""
    search = random_search(space, count, seed=derive_seed(ready.settings.seed, "random search") % 2**32)
    run_search(search, evaluator, reporter, title, count, (lambda _: 0) if ready.settings.rung_noises else None)
    return search


def place_steps(
    ready: Study, share: float, best: Sequence[Candidate], evaluator: Evaluator, reporter: Reporter
) -> Ranking:
    """Where the steps of the best schedules of steps alone lie best, beside the rules that people use, where the dense
    run is straightest, and where corrections miss least of it: all candidates, with their timesteps.

    Args:
        best: schedules within the budget, best first.
    """
    space = ready.costs.space(share).dense()
    if space is None:
        return {}
    first = [with_timesteps(ready, one) for one in best[: ready.settings.survivors]]
    foretold = [*straightest(ready, share, evaluator), *foreseen(ready, share, evaluator)]
    first += [narrowed(one) for one in [*by_rule(ready, share), *foretold]]
    return _placed(ready, f"place the steps at {share:g}", space, first, Unpruned(ready, evaluator), reporter)


def place_both(
    ready: Study, share: float, best: Sequence[Candidate], evaluator: Evaluator, reporter: Reporter
) -> Ranking:
    """The same for schedules that are pruned: steps and levels are moved.

    Args:
        best: schedules within the budget, best first; those that are placed already have their timesteps.
    """
    first = [one if one.timesteps else with_timesteps(ready, one) for one in best]
    title = f"place steps and levels at {share:g}"
    return _placed(ready, title, ready.costs.space(share), first, evaluator, reporter)


def _placed(
    ready: Study, title: str, space: Space, first: Sequence[Candidate], evaluator: Scores, reporter: Reporter
) -> Ranking:
    settings, path = ready.settings, ready.path
    assert path is not None
    placing = Placing(
        offspring=settings.timestep_offspring,
        generations=settings.timestep_generations,
        seed=derive_seed(settings.seed, "placing") % 2**32,
        whole=path.whole,
    )
    search = placing_search(space, ready.stages.boundaries, path.end, placing, first)
    total = len(first) + settings.timestep_offspring * (settings.timestep_generations - 1)
    run_search(search, evaluator, reporter, title, total, (lambda _: 0) if settings.rung_noises else None)
    return dict(search.ranking())


def ranked(scores: Mapping[Candidate, float]) -> Ranking:
    """The candidates that were not ruled out, best first; equal scores in the order of candidates."""
    alive = [(candidate, score) for candidate, score in scores.items() if score > -math.inf]
    return dict(sorted(alive, key=lambda entry: (-entry[1], entry[0])))


def widened(ready: Study, candidate: Candidate) -> Candidate:
    """A schedule of steps alone with all units at level 0; timesteps stay."""
    return candidate.at_levels([(0,) * len(ready.units)] * len(candidate.stages))


def narrowed(candidate: Candidate) -> Candidate:
    """The steps of a schedule alone, as :meth:`Space.dense` has them; timesteps stay."""
    return candidate.at_levels([(0,)] * len(candidate.stages))
