"""The search for a schedule: (mu + lambda) evolution with ask and tell, and random search as its baseline.

Both are a `Search`, which remembers the scores told so far and nothing else. What comes next is a pure function of
these scores: each random draw has its own generator, derived from (seed, purpose, generation, index). So a search that
was killed resumes by being told its journal again (`replay`), and one worker finds what any number of them find.

Sources: Diff-ES, arXiv 2603.05105; EvoPress, arXiv 2410.14649.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median
from typing import NamedTuple
from zlib import crc32

import numpy as np

from diff_es.search.space import Levels, Space

ATTEMPTS = 64
"""How often a candidate is drawn anew when it is already known, before its place is left empty."""


class Scored(NamedTuple):
    levels: Levels
    score: float  # higher is better


@dataclass(frozen=True)
class Generation:
    """A closed generation."""

    index: int
    best: float  # of all candidates so far; never falls
    median: float  # of this generation's own candidates
    mean: float  # of this generation's own candidates
    evaluations: int  # so far, this generation included


Propose = Callable[[int, tuple[Scored, ...]], tuple[Levels, ...]]
"""(generation, all evaluated candidates, best first) -> the candidates of that generation, distinct and new.

An empty answer ends the search. It must depend on its arguments alone.
"""


class Search:
    """Proposes candidates generation by generation and remembers their scores.

    >>> space = Space(costs=(((4, 3, 2),),) * 5, budget=15)  # 5 stages, 1 unit, 3 levels
    >>> def fitness(levels):
    ...     return -sum(level**2 / (stage + 1) for stage, (level,) in enumerate(levels))
    >>> search = evolutionary_search(space, Evolution(population=8, generations=10))
    >>> while asked := search.ask():
    ...     search.tell({levels: fitness(levels) for levels in asked})
    >>> search.best.levels
    ((0,), (1,), (1,), (1,), (2,))
    """

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self._scores: dict[Levels, float] = {}
        self._history: list[Generation] = []
        self._cohort = propose(0, ())

    def ask(self) -> tuple[Levels, ...]:
        """The candidates of the current generation that have no score yet, always in the same order; () when done."""
        return tuple(levels for levels in self._cohort if levels not in self._scores)

    def tell(self, scores: Mapping[Levels, float]) -> None:
        """Record scores, higher is better, of any of the asked candidates; the last one closes the generation.

        Telling the same score again does nothing. ValueError, with nothing recorded, where a score is NaN, where a
        candidate was not asked for, or where it has another score already.
        """
        for levels, score in scores.items():
            if isnan(score):
                raise ValueError(
                    f"Search.tell: expected a number as the score of {levels}, found NaN; "
                    "find out why its evaluation failed, or tell -inf to rule it out"
                )
            if levels in self._scores:
                if self._scores[levels] != score:
                    raise ValueError(
                        f"Search.tell: {levels} has the score {self._scores[levels]!r}, found {score!r}; a candidate "
                        "has one score, so fix the probes, or begin a new search if they changed"
                    )
            elif levels not in self._cohort:
                raise ValueError(
                    f"Search.tell: expected a candidate of generation {len(self._history)}, found {levels}; tell what "
                    "ask() returned (a journal fits only the space, settings and starts that it was written with)"
                )
        self._scores.update((levels, float(score)) for levels, score in scores.items())
        if self._cohort and not self.ask():
            self._close()

    def _close(self) -> None:
        ranking = self.ranking()
        scores = [self._scores[levels] for levels in self._cohort]
        self._history.append(
            Generation(
                index=len(self._history),
                best=ranking[0].score,
                median=median(scores),
                mean=sum(scores) / len(scores),
                evaluations=len(ranking),
            )
        )
        self._cohort = self._propose(len(self._history), ranking)

    @property
    def done(self) -> bool:
        return not self._cohort

    @property
    def best(self) -> Scored:
        """The best candidate so far. ValueError before the first score."""
        if not self._scores:
            raise ValueError("Search.best: expected at least one score, found none; ask(), evaluate and tell() first")
        return self.ranking()[0]

    @property
    def history(self) -> tuple[Generation, ...]:
        return tuple(self._history)

    def ranking(self) -> tuple[Scored, ...]:
        """All evaluated candidates, best first; equal scores in the order of their levels."""
        return tuple(sorted((Scored(*item) for item in self._scores.items()), key=lambda c: (-c.score, c.levels)))


def replay(search: Search, journal: Mapping[Levels, float]) -> None:
    """Tell a fresh search the scores that an earlier run of it wrote down, in whichever order; it goes on from there.

    Scores that the search does not ask for are passed over.
    """
    while known := {levels: journal[levels] for levels in search.ask() if levels in journal}:
        search.tell(known)


@dataclass(frozen=True)
class Evolution:
    """Settings of the (mu + lambda) search. ValueError where one is out of range."""

    population: int = 20  # lambda: candidates of the initial population, and offspring per generation
    generations: int = 100  # in all, the initial population included
    survivors: int = 5  # mu: the best of all so far, from which offspring are drawn
    crossover: float = 0.3  # share of offspring by crossover of two survivors; the others mutate one
    switches: int = 3  # k: most level switches of a mutation; raise it with the number of (stage, unit)s
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("Evolution.population", self.population, 1)
        _at_least("Evolution.generations", self.generations, 1)
        _at_least("Evolution.survivors", self.survivors, 1)
        _at_least("Evolution.switches", self.switches, 1)
        _at_least("Evolution.seed", self.seed, 0)
        if not 0 <= self.crossover <= 1:
            raise ValueError(f"Evolution.crossover: expected a share from 0 to 1, found {self.crossover}")


def evolutionary_search(space: Space, settings: Evolution, starts: Sequence[Levels] = ()) -> Search:
    """The paper's search. The initial population is `starts`, filled up with random candidates.

    Offspring come from the best candidates of all generations, so the best never gets worse, and no candidate is asked
    for twice. Where a survivor's surroundings are known, a place goes to a random candidate; where nothing new is found
    for it, it stays empty, and the search ends with a generation in which all are.

    ValueError where a start is not feasible; it need not be maximal.
    """
    for i, levels in enumerate(starts):
        problem = space.misfit(levels)
        if problem is not None:
            raise ValueError(f"evolutionary_search: starts[{i}]: {problem}; was it made for another space?")
        if not space.feasible(levels):
            raise ValueError(
                f"evolutionary_search: starts[{i}]: expected a cost of at most {space.budget}, "
                f"found {space.cost(levels)}; pass it through Space.repair"
            )

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Levels, ...]:
        if generation >= settings.generations:
            return ()
        if generation == 0:
            given = tuple(dict.fromkeys(starts))
            places = range(len(given), settings.population)
            return given + _new(lambda rng, _: space.random(rng), given, settings.seed, "start", 0, places)
        survivors = [candidate.levels for candidate in ranking[: settings.survivors]]

        def child(rng: np.random.Generator, attempt: int) -> Levels:
            if attempt >= ATTEMPTS // 2:
                return space.random(rng)
            if len(survivors) > 1 and rng.random() < settings.crossover:
                a, b = rng.choice(len(survivors), size=2, replace=False)
                return space.crossover(survivors[a], survivors[b], rng)
            return space.mutate(survivors[rng.integers(len(survivors))], rng, settings.switches)

        known = (candidate.levels for candidate in ranking)
        return _new(child, known, settings.seed, "child", generation, range(settings.population))

    return Search(propose)


def random_search(space: Space, evaluations: int, seed: int = 0, batch: int = 20) -> Search:
    """The baseline: `evaluations` distinct random maximal candidates, `batch` per generation.

    It ends early where no new candidate is found. ValueError where a setting is out of range.
    """
    _at_least("random_search: evaluations", evaluations, 1)
    _at_least("random_search: batch", batch, 1)
    _at_least("random_search: seed", seed, 0)

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Levels, ...]:
        known = (candidate.levels for candidate in ranking)
        places = range(min(batch, evaluations - len(ranking)))
        return _new(lambda rng, _: space.random(rng), known, seed, "random", generation, places)

    return Search(propose)


def _new(
    draw: Callable[[np.random.Generator, int], Levels],  # (generator, attempt) -> candidate
    known: Iterable[Levels],
    seed: int,
    purpose: str,
    generation: int,
    places: range,
) -> tuple[Levels, ...]:
    """One candidate per place that is neither known nor at an earlier place; none where all attempts fail."""
    taken = set(known)
    cohort = []
    for index in places:
        rng = np.random.default_rng([seed, crc32(purpose.encode()), generation, index])
        for attempt in range(ATTEMPTS):
            levels = draw(rng, attempt)
            if levels not in taken:
                taken.add(levels)
                cohort.append(levels)
                break
    return tuple(cohort)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, found {value}")
