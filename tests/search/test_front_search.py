"""Laws of the front search and of reading off a front."""

from __future__ import annotations

from itertools import pairwise, product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.search import (
    Candidate,
    Evolution,
    Scored,
    Search,
    Space,
    StageChoice,
    Steps,
    best_within,
    evolutionary_search,
    front,
    front_search,
    tier,
)

# 4 stages x (3 counts x 3 levels): 9 * 7**3 rows that differ in effect
SPACE = Space((((7, 5, 2),),) * 4, 56, Steps(((1, 2, 3), *((0, 1, 2),) * 3), (2,) * 4), (1,) * 4)
BUDGETS = (12, 20, 28, 36, 44, 56)
laws = settings(max_examples=10, deadline=None)


def fitness(candidate: Candidate) -> float:
    """Early steps matter most, levels more where there are many steps; neighbours work together."""
    stages = zip((9, 4, 2, 1), candidate.steps, candidate.levels, strict=True)
    alone = sum(w * (4 / (n + 1) + n * level**2 / 6) for w, n, (level,) in stages)
    return -alone - sum(abs(a - b) for a, b in pairwise(candidate.steps)) / 2


def run(search: Search) -> Search:
    while asked := search.ask():
        search.tell({candidate: fitness(candidate) for candidate in asked})
    return search


def every() -> list[Candidate]:
    assert SPACE.steps
    choices = [
        {StageChoice(n, (level if n else 0,)) for n in counts for level in range(3)} for counts in SPACE.steps.counts
    ]
    return [Candidate(stages) for stages in product(*choices)]


@pytest.mark.parametrize("seed", range(2))
def test_one_run_finds_the_optimum_of_every_budget_that_brute_force_finds(seed: int) -> None:
    search = run(front_search(SPACE, BUDGETS, Evolution(population=36, generations=30, seed=seed)))
    scored = [(SPACE.cost(candidate), fitness(candidate)) for candidate in every()]
    assert len(search.ranking()) < len(scored) / 4
    for budget in BUDGETS:
        best = best_within(search.ranking(), SPACE.cost, budget)
        assert best.score == max(score for cost, score in scored if cost <= budget)
    points = front(search.ranking(), SPACE.cost)
    assert len(points) >= len(BUDGETS)


@laws
@given(st.integers(0, 99), st.integers(6, 56), st.integers(0, 3))
def test_with_one_budget_it_is_the_evolutionary_search(seed: int, budget: int, starts: int) -> None:
    space, settings = SPACE.within(budget), Evolution(population=7, generations=5, seed=seed)
    given = space.starts(np.random.default_rng(seed))[:starts]
    front, alone = front_search(SPACE, [budget], settings, given), evolutionary_search(space, settings, given)
    while asked := alone.ask():
        assert front.ask() == asked
        for search in (front, alone):
            search.tell({candidate: fitness(candidate) for candidate in asked})
    assert front.done
    assert front.history == alone.history


@laws
@given(st.integers(0, 99), st.integers(0, 5))
def test_places_are_dealt_over_the_budgets_and_children_are_maximal_within_theirs(seed: int, generation: int) -> None:
    settings = Evolution(population=8, generations=9, seed=seed)
    search = front_search(SPACE, BUDGETS, settings)
    for _ in range(generation):
        search.tell({candidate: fitness(candidate) for candidate in search.ask()})
    asked = search.ask()
    assert len(asked) == 8
    for index, candidate in enumerate(asked):
        space = SPACE.within(BUDGETS[(generation * 8 + index) % 6])
        assert space.feasible(candidate)
        assert space.repair(candidate, np.random.default_rng(0)) == candidate


@pytest.mark.parametrize("seed", range(3))
def test_what_one_budget_learns_serves_a_larger_one(seed: int) -> None:
    """The best of a small budget is the parent of a larger one's child where it is the best there too."""
    space = Space((((6, 5, 4, 3, 2, 1, 0),),) * 30, 120)
    start = space.within(60).random(np.random.default_rng(seed))
    search = front_search(space, (60, 120), Evolution(population=2, generations=2, survivors=1, switches=1), [start])
    search.tell({candidate: float(candidate == start) for candidate in search.ask()})
    smaller, larger = search.ask()
    assert (space.cost(smaller), space.cost(larger)) == (60, 120)
    for child in (smaller, larger):  # one switch took from one stage at most; what was left was filled up
        pairs = zip(child.levels, start.levels, strict=True)
        assert sum(level > before for (level,), (before,) in pairs) <= 1


candidates = st.integers(0, 30).map(lambda level: Candidate.of([[level]]))
scores = st.dictionaries(candidates, st.one_of(st.integers(-5, 5), st.just(-inf)))


@given(scores)
def test_the_front_is_all_that_nothing_beats(told: dict[Candidate, float]) -> None:
    def cost(candidate: Candidate) -> int:
        return candidate.levels[0][0] // 3

    found = front([Scored(candidate, float(score)) for candidate, score in told.items()], cost)
    points = [(cost(candidate), float(score)) for candidate, score in told.items()]
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert [(p.cost, p.score) for p in found] == sorted({p for p in points if p[1] > -inf} - beaten)
    assert all(told[p.candidate] == p.score and cost(p.candidate) == p.cost for p in found)


def test_a_tier_counts_the_budgets_that_a_candidate_exceeds() -> None:
    tiers = tier(SPACE.cost, BUDGETS)
    assert tiers(SPACE.cheapest()) == 0
    assert [tiers(Candidate.of([[0]] * 4, [n, 0, 0, 0])) for n in (1, 2, 3)] == [0, 1, 2]


def test_helpful_errors() -> None:
    with pytest.raises(ValueError, match="front_search: expected at least one budget, found none"):
        front_search(SPACE, (), Evolution())
    with pytest.raises(ValueError, match="at most 2, but the cheapest schedule costs 3"):
        front_search(SPACE, (30, 2), Evolution())
    with pytest.raises(ValueError, match=r"front_search: starts\[0\]: expected a cost of at most 20, found 72"):
        front_search(SPACE, (12, 20), Evolution(), [Candidate.of([[0]] * 4, [3, 2, 2, 2])])
    with pytest.raises(ValueError, match="best_within: expected a candidate of cost 5 or less, found none"):
        best_within([Scored(SPACE.thinned(), 1.0)], SPACE.cost, 5)
