"""Searches for a schedule: (mu + lambda) evolution for one budget or a whole front, and what it is compared with.

Each is a `Search`. Each random draw has its own generator, derived from (seed, purpose, generation, index).

Sources: Diff-ES, arXiv 2603.05105; EvoPress, arXiv 2410.14649.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from zlib import crc32

import numpy as np

from diff_es.search.ask import Scored, Search
from diff_es.search.candidate import Candidate
from diff_es.search.space import Space

ATTEMPTS = 64
"""How often a candidate is drawn anew when it is already known, before its place is left empty."""


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


@dataclass(frozen=True)
class EvoPress:
    """Settings of EvoPress' search, by default those of its depth pruning. ValueError where one is out of range."""

    offspring: int = 32  # lambda
    generations: int = 100  # in all, the initial candidates included
    initial: int = 64  # random candidates, of which the best becomes the first parent
    switches: int = 3  # k: most level switches of a mutation
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("EvoPress.offspring", self.offspring, 1)
        _at_least("EvoPress.generations", self.generations, 1)
        _at_least("EvoPress.initial", self.initial, 1)
        _at_least("EvoPress.switches", self.switches, 1)
        _at_least("EvoPress.seed", self.seed, 0)


def usual_switches(genes: int) -> int:
    """The most level switches of a mutation that suits so many genes (`Space.genes`)."""
    return max(3, genes // 5)


def evolutionary_search(space: Space, settings: Evolution, starts: Sequence[Candidate] = ()) -> Search:
    """The paper's search. The initial population is `starts`, filled up with random candidates.

    Offspring come from the best candidates of all generations, so the best never gets worse, and no candidate is asked
    for twice; one that is ruled out has no offspring. Where a survivor's surroundings are known, a place goes to a
    random candidate; where nothing new is found for it, it stays empty, and the search ends with a generation in which
    all are.

    ValueError where a start is not feasible; it need not be maximal.

    Examples:
        >>> space = Space(costs=(((4, 3, 2),),) * 5, budget=15)  # 5 stages, 1 unit, 3 levels
        >>> def fitness(candidate):
        ...     return -sum(level**2 / (stage + 1) for stage, (level,) in enumerate(candidate.levels))
        >>> search = evolutionary_search(space, Evolution(population=8, generations=10))
        >>> while asked := search.ask():
        ...     search.tell({candidate: fitness(candidate) for candidate in asked})
        >>> search.best.candidate.levels
        ((0,), (1,), (1,), (1,), (2,))
    """
    return _evolution("evolutionary_search", (space,), settings, starts, settings.population)


def front_search(space: Space, budgets: Sequence[int], settings: Evolution, starts: Sequence[Candidate] = ()) -> Search:
    """The same for several budgets at once: what one of them learns serves all; `front` reads off the result.

    The places of a generation are dealt over the budgets in turn. A budget's survivors are the best of all candidates
    that fit it, for whichever they were made, and its children are maximal within it. With one budget this is
    `evolutionary_search`.

    ValueError where there is no budget, where one is below the cheapest schedule, or a start above the largest.
    """
    if not budgets:
        raise ValueError("front_search: expected at least one budget, found none")
    spaces = [space.within(budget) for budget in sorted(set(budgets))]
    return _evolution("front_search", spaces, settings, starts, settings.population)


def evopress_search(space: Space, settings: EvoPress, starts: Sequence[Candidate] = ()) -> Search:
    """EvoPress (arXiv 2410.14649): a single parent whose offspring are made by level switches alone.

    Followed are the random initial candidates of which the best is the first parent, the mutation with
    min(U{1..k}, U{1..k}) switches, no two offspring alike, and the parent that stays unless an offspring is better.
    Its selection in several steps, on more data for fewer offspring, is a `race` of each cohort; the parent meets the
    last step only, as there. Otherwise than there, the probes are fixed and not drawn anew for every step, so the
    parent keeps its score and a known candidate is not asked for again. ValueError as in `evolutionary_search`.
    """
    evolution = Evolution(
        population=settings.offspring,
        generations=settings.generations,
        survivors=1,
        crossover=0.0,
        switches=settings.switches,
        seed=settings.seed,
    )
    return _evolution("evopress_search", (space,), evolution, starts, settings.initial)


def random_search(space: Space, evaluations: int, seed: int = 0, batch: int = 20) -> Search:
    """The baseline: `evaluations` distinct random maximal candidates, `batch` per generation.

    It ends early where no new candidate is found. ValueError where a setting is out of range.
    """
    _at_least("random_search: evaluations", evaluations, 1)
    _at_least("random_search: batch", batch, 1)
    _at_least("random_search: seed", seed, 0)

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Candidate, ...]:
        known = (scored.candidate for scored in ranking)
        places = range(min(batch, evaluations - len(ranking)))
        return _new(lambda rng, _, __: space.random(rng), known, seed, "random", generation, places)

    return Search(propose)


def _evolution(
    name: str, spaces: Sequence[Space], settings: Evolution, starts: Sequence[Candidate], initial: int
) -> Search:
    """(mu + lambda) over spaces that differ in their budget alone, the largest last."""
    widest, costs = spaces[-1], dict[Candidate, int]()
    for i, start in enumerate(starts):
        problem = widest.misfit(start)
        if problem is not None:
            raise ValueError(f"{name}: starts[{i}]: {problem}; was it made for another space?")
        if not widest.feasible(start):
            raise ValueError(
                f"{name}: starts[{i}]: expected a cost of at most {widest.budget}, "
                f"found {widest.cost(start)}; pass it through Space.repair"
            )

    def cost(candidate: Candidate) -> int:
        if candidate not in costs:
            costs[candidate] = widest.cost(candidate)
        return costs[candidate]

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Candidate, ...]:
        if generation >= settings.generations:
            return ()
        if generation == 0:
            given = tuple(dict.fromkeys(starts))
            places = range(len(given), initial)
            return given + _new(
                lambda rng, _, index: spaces[index % len(spaces)].random(rng), given, settings.seed, "start", 0, places
            )
        alive = [scored.candidate for scored in ranking if scored.score > -inf]
        fitting = [[candidate for candidate in alive if cost(candidate) <= space.budget] for space in spaces]
        survivors = [fits[: settings.survivors] for fits in fitting]

        def child(rng: np.random.Generator, attempt: int, index: int) -> Candidate:
            turn = (generation * settings.population + index) % len(spaces)
            space, parents = spaces[turn], survivors[turn]
            if attempt >= ATTEMPTS // 2 or not parents:
                return space.random(rng)
            if len(parents) > 1 and rng.random() < settings.crossover:
                a, b = rng.choice(len(parents), size=2, replace=False)
                return space.crossover(parents[a], parents[b], rng)
            return space.mutate(parents[rng.integers(len(parents))], rng, settings.switches)

        known = (scored.candidate for scored in ranking)
        return _new(child, known, settings.seed, "child", generation, range(settings.population))

    return Search(propose)


def _new(
    draw: Callable[[np.random.Generator, int, int], Candidate],  # (generator, attempt, index) -> candidate
    known: Iterable[Candidate],
    seed: int,
    purpose: str,
    generation: int,
    places: range,
) -> tuple[Candidate, ...]:
    """One candidate per place that is neither known nor at an earlier place; none where all attempts fail."""
    taken = set(known)
    cohort = []
    for index in places:
        rng = np.random.default_rng([seed, crc32(purpose.encode()), generation, index])
        for attempt in range(ATTEMPTS):
            drawn = draw(rng, attempt, index)
            if drawn not in taken:
                taken.add(drawn)
                cohort.append(drawn)
                break
    return tuple(cohort)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, found {value}")
