"""Laws of the local search among timesteps and levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.search import Placing, Space, Steps, placing_search
from diff_es.utils.limits import Levels

laws = settings(max_examples=60, deadline=None)
BOUNDARIES, END = (60.0, 30.0), -1.0


def counts_of(timesteps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(low < t <= high for t in timesteps) for low, high in ((60, 99), (30, 60), (-1, 30)))


def total(space: Space, rows: Levels) -> int:
    assert space.steps is not None
    return sum(
        row[0] * (space.steps.fixed + sum(costs[level] for costs, level in zip(stage, row[1:], strict=True)))
        for stage, row in zip(space.costs, rows, strict=True)
    )


@st.composite
def starts(draw: st.DrawFn, most: int = 4) -> tuple[Space, Levels]:
    """A space of three stages, from timestep 99 down, and a schedule of it with its timesteps; the space itself offers
    a single step, since other numbers are placed as well."""
    later = draw(st.sets(st.integers(0, 98), max_size=6))
    timesteps = (99, *sorted(later, reverse=True))
    row = st.lists(st.integers(0, 9), min_size=1, max_size=most).map(tuple)
    units = draw(st.integers(1, 3))
    costs = tuple(tuple(draw(row) for _ in range(units)) for _ in range(3))
    rows = tuple(
        (n, *(draw(st.integers(0, len(options) - 1)) if n and any(options) else 0 for options in stage))
        for n, stage in zip(counts_of(timesteps), costs, strict=True)
    )
    roomy = Space(costs, 10**6, Steps(((1,), (0,), (0,)), (1, 0, 0), draw(st.integers(1, 5))))
    return roomy.within(total(roomy, rows) + draw(st.integers(0, 40))), (*rows, timesteps)


def generations(space: Space, start: Levels, chosen: Placing) -> list[Levels]:
    """All candidates of a search whose scores say nothing in particular."""
    search, found = placing_search(space, BOUNDARIES, END, chosen, [start]), list[Levels]()
    while asked := search.ask():
        found += asked
        search.tell({levels: float(hash(levels) % 1000) for levels in asked})
    return found


@laws
@given(start=starts(), seed=st.integers(0, 2**32 - 1))
def test_every_candidate_keeps_the_budget_and_takes_the_steps_it_says(start: tuple[Space, Levels], seed: int) -> None:
    space, schedule = start
    found = generations(space, schedule, Placing(offspring=6, generations=4, seed=seed))
    assert len(found) == len(set(found))
    for *rows, timesteps in found:
        assert timesteps[0] == 99
        assert all(a > b for a, b in pairwise((*timesteps, END)))
        assert tuple(row[0] for row in rows) == counts_of(timesteps)
        assert total(space, tuple(rows)) <= space.budget


@laws
@given(start=starts(most=1), seed=st.integers(0, 2**32 - 1))
def test_where_levels_are_no_choice_a_step_costs_the_same_everywhere(start: tuple[Space, Levels], seed: int) -> None:
    space, schedule = start
    found = generations(space, schedule, Placing(offspring=6, generations=4, seed=seed))
    assert all(len(one[-1]) == len(schedule[-1]) for one in found)
    assert all(not any(row[1:]) for *rows, _ in found for row in rows)


def test_levels_and_timesteps_both_move() -> None:
    space = Space((((5, 3, 1),) * 2,) * 3, 60, Steps(((1,), (0,), (0,)), (1, 0, 0), 1))
    start = ((2, 1, 1), (2, 1, 1), (2, 1, 1), (99, 80, 60, 40, 30, 10))
    found = generations(space, start, Placing(offspring=20, generations=6))
    assert len({one[-1] for one in found}) > 10
    assert len({one[:-1] for one in found}) > 10
    counts = {counts_of(one[-1]) for one in found}
    assert len(counts) > 3
    assert all(total(space, one[:-1]) <= space.budget for one in found)


def test_the_search_finds_where_steps_belong() -> None:
    """Dense early, as a quadratic rule would have it, from even steps, under costs that do not differ."""
    space = Space((((1,),),) * 3, 10, Steps(((1,), (0,), (0,)), (1, 0, 0), 1))
    goal = (99, 93, 81, 60, 33)
    search = placing_search(
        space, BOUNDARIES, END, Placing(offspring=20, generations=60), [((2, 0), (2, 0), (1, 0), (99, 79, 59, 39, 19))]
    )

    def miss(levels: Levels) -> float:
        return float(sum(abs(a - b) for a, b in zip(levels[-1], goal, strict=True)))

    while asked := search.ask():
        search.tell({levels: -miss(levels) for levels in asked})
    assert miss(search.best.levels) <= 4


def test_starts_that_do_not_fit_are_refused() -> None:
    space = Space((((5, 3),),) * 3, 12, Steps(((1,), (0,), (0,)), (1, 0, 0), 1))
    for start, said in (
        (((1, 0), (0, 0), (0, 0), (99, 80)), "expected steps"),
        (((3, 0), (0, 0), (0, 0), (99, 80, 70)), "expected a cost of 12 or less"),
        (((2, 2), (0, 0), (0, 0), (99, 80)), "expected a cost of 12 or less"),
    ):
        with pytest.raises(ValueError, match=said):
            placing_search(space, BOUNDARIES, END, Placing(), [start])
