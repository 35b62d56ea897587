"""Laws of the local search among timesteps and levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.search import Candidate, Placing, Space, StageChoice, Steps, placing_search

laws = settings(max_examples=30, deadline=None)
STEPS = Steps(((1,), (0,), (0,)), (1, 0, 0))
BOUNDARIES, END = (60.0, 30.0), -1.0


def counts_of(timesteps: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(sum(low < t <= high for t in timesteps) for low, high in ((60, 99), (30, 60), (-1, 30)))


def total(space: Space, candidate: Candidate) -> int:
    stages = zip(space.costs, space.fixed, candidate.steps, candidate.levels, strict=True)
    return sum(
        n * (fixed + sum(costs[level] for costs, level in zip(stage, levels, strict=True)))
        for stage, fixed, n, levels in stages
    )


@st.composite
def starts(draw: st.DrawFn, most: int = 4) -> tuple[Space, Candidate]:
    """A space of three stages, from timestep 99 down, and a schedule of it with its timesteps; the space itself offers
    a single step, since other numbers are placed as well."""
    later = draw(st.sets(st.integers(0, 98), max_size=6))
    timesteps = (99.0, *map(float, sorted(later, reverse=True)))
    row = st.lists(st.integers(0, 9), min_size=1, max_size=most).map(tuple)
    units = draw(st.integers(1, 3))
    costs = tuple(tuple(draw(row) for _ in range(units)) for _ in range(3))
    stages = tuple(
        StageChoice(n, tuple(draw(st.integers(0, len(row) - 1)) if n and any(row) else 0 for row in stage))
        for n, stage in zip(counts_of(timesteps), costs, strict=True)
    )
    fixed = tuple(draw(st.lists(st.integers(1, 5), min_size=3, max_size=3)))
    roomy = Space(costs, 10**6, STEPS, fixed)
    start = Candidate(stages, timesteps)
    return roomy.within(total(roomy, start) + draw(st.integers(0, 40))), start


def generations(space: Space, start: Candidate, chosen: Placing) -> list[Candidate]:
    """All candidates of a search whose scores say nothing in particular."""
    search, found = placing_search(space, BOUNDARIES, END, chosen, [start]), list[Candidate]()
    while asked := search.ask():
        found += asked
        search.tell({one: float(hash((*one.numbers(), *one.timesteps)) % 1000) for one in asked})
    return found


@laws
@given(start=starts(), seed=st.integers(0, 2**32 - 1), whole=st.booleans())
def test_every_candidate_keeps_the_budget_and_takes_the_steps_it_says(
    start: tuple[Space, Candidate], seed: int, whole: bool
) -> None:
    space, schedule = start
    found = generations(space, schedule, Placing(offspring=6, generations=4, seed=seed, whole=whole))
    assert len(found) == len(set(found))
    for one in found:
        assert one.timesteps[0] == 99
        assert all(a > b for a, b in pairwise((*one.timesteps, END)))
        assert min(one.timesteps) >= 0
        assert one.steps == counts_of(one.timesteps)
        assert total(space, one) <= space.budget


@laws
@given(start=starts(most=1), seed=st.integers(0, 2**32 - 1))
def test_where_levels_are_no_choice_a_step_costs_the_same_everywhere(start: tuple[Space, Candidate], seed: int) -> None:
    space, schedule = start
    found = generations(space, schedule, Placing(offspring=6, generations=4, seed=seed))
    assert all(len(one.timesteps) == len(schedule.timesteps) for one in found)
    assert not any(one.pruned for one in found)


def test_levels_and_timesteps_both_move() -> None:
    space = Space((((5, 3, 1),) * 2,) * 3, 60, STEPS, (1,) * 3)
    start = Candidate.of([(1, 1)] * 3, [2, 2, 2], [99.0, 80.0, 60.0, 40.0, 30.0, 10.0])
    found = generations(space, start, Placing(offspring=20, generations=6))
    assert len({one.timesteps for one in found}) > 10
    assert len({one.stages for one in found}) > 10
    assert len({counts_of(one.timesteps) for one in found}) > 3
    assert all(total(space, one) <= space.budget for one in found)


@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_the_search_finds_where_steps_belong(unit: float) -> None:
    """Dense early, as a quadratic rule would have it, from even steps, under costs that do not differ; in timesteps, or
    in times that run from 1 to 0."""
    space = Space((((1,),),) * 3, 10, STEPS, (1,) * 3)
    goal = (99, 93, 81, 60, 33)
    even = Candidate.of([[0]] * 3, [2, 2, 1], [t * unit for t in (99.0, 79.0, 59.0, 39.0, 19.0)])
    boundaries, chosen = [t * unit for t in BOUNDARIES], Placing(offspring=20, generations=60, whole=unit == 1)
    search = placing_search(space, boundaries, END if unit == 1 else 0.0, chosen, [even])

    def miss(candidate: Candidate) -> float:
        return float(sum(abs(a / unit - b) for a, b in zip(candidate.timesteps, goal, strict=True)))

    while asked := search.ask():
        search.tell({candidate: -miss(candidate) for candidate in asked})
    assert miss(search.best.candidate) <= 4


def test_starts_that_do_not_fit_are_refused() -> None:
    space = Space((((5, 3),),) * 3, 12, STEPS, (1,) * 3)
    for steps, first, timesteps, said in (
        (1, 0, [99.0, 80.0], "expected steps"),
        (3, 0, [99.0, 80.0, 70.0], "expected a cost of 12 or less"),
        (2, 2, [99.0, 80.0], "expected a cost of 12 or less"),
    ):
        start = Candidate.of([[first], [0], [0]], [steps, 0, 0], timesteps)
        with pytest.raises(ValueError, match=said):
            placing_search(space, BOUNDARIES, END, Placing(), [start])
