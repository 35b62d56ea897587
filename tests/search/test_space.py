"""Laws of the space of schedules, for any integer costs: unequal, not monotonic, tied, or zero."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.search import Candidate, Space

laws = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    stages, units = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    row = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
    steps = draw(st.lists(st.integers(0, 3), min_size=stages, max_size=stages))
    rows = draw(st.lists(st.lists(row, min_size=units, max_size=units), min_size=stages, max_size=stages))
    costs = tuple(tuple(tuple(n * c for c in r) for r in stage) for n, stage in zip(steps, rows, strict=True))
    least = sum(min(r) for stage in costs for r in stage)
    most = sum(max(r) for stage in costs for r in stage)
    return Space(costs, draw(st.integers(least, most + 2)))


def cells(space: Space) -> list[tuple[int, int]]:
    return [(s, u) for s in range(len(space.costs)) for u in range(len(space.costs[0]))]


def every(space: Space) -> list[Candidate]:
    """All schedules of the table, whatever they cost."""
    stages = [list(product(*(range(len(row)) for row in stage))) for stage in space.costs]
    return [Candidate.of(levels) for levels in product(*stages)]


def total(space: Space, candidate: Candidate) -> int:
    return sum(space.costs[s][u][candidate.levels[s][u]] for s, u in cells(space))


def is_maximal(space: Space, candidate: Candidate) -> bool:
    """Within the budget, no single dearer level fits, and rows that cost nothing are at level 0."""
    levels, slack = candidate.levels, space.budget - total(space, candidate)
    rises = [c - space.costs[s][u][levels[s][u]] for s, u in cells(space) for c in space.costs[s][u]]
    idle_at_0 = all(any(space.costs[s][u]) or levels[s][u] == 0 for s, u in cells(space))
    return slack >= 0 and not any(0 < rise <= slack for rise in rises) and idle_at_0


@laws
@given(spaces(), seeds, st.data())
def test_repair_gives_a_maximal_candidate_and_leaves_one_alone(space: Space, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    repaired = space.repair(data.draw(st.sampled_from(every(space))), rng)
    assert is_maximal(space, repaired)
    assert space.repair(repaired, rng) == repaired


@laws
@given(spaces(), seeds, st.integers(0, 3))
def test_starts_and_random_candidates_are_maximal(space: Space, seed: int, gap: int) -> None:
    rng = np.random.default_rng(seed)
    starts = space.starts(rng, gap)
    assert len(set(starts)) == len(starts)
    for candidate in (*starts, space.random(rng)):
        assert is_maximal(space, candidate)
    assert total(space, space.cheapest()) == min(total(space, candidate) for candidate in every(space))


@laws
@given(spaces(), seeds, st.integers(1, 4))
def test_a_mutation_is_maximal_and_moves_wherever_it_can(space: Space, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    maximal = [candidate for candidate in every(space) if is_maximal(space, candidate)]
    for parent in maximal[:40]:
        child = space.mutate(parent, rng, most)
        assert is_maximal(space, child)
        assert (child != parent) == (len(maximal) > 1)


@laws
@given(spaces(), seeds, st.integers(1, 4), st.data())
def test_moves_from_any_feasible_parent_are_maximal(space: Space, seed: int, most: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    feasible = st.sampled_from(list(filter(space.feasible, every(space))))
    a, b = data.draw(feasible), data.draw(feasible)
    assert is_maximal(space, space.mutate(a, rng, most))
    assert is_maximal(space, space.crossover(a, b, rng))


@laws
@given(spaces())
def test_feasible_and_cost_agree_with_the_table(space: Space) -> None:
    for candidate in every(space)[:50]:
        assert space.cost(candidate) == total(space, candidate)
        assert space.feasible(candidate) == (total(space, candidate) <= space.budget)


@laws
@given(st.integers(2, 8), st.integers(1, 3), st.integers(1, 8), st.integers(1, 9), seeds, st.data())
def test_with_equal_costs_a_mutation_keeps_the_sum_of_levels(
    stages: int, units: int, top: int, price: int, seed: int, data: st.DataObject
) -> None:
    row = tuple(price * (top - level) for level in range(top + 1))
    budget = data.draw(st.integers(0, stages * units * price * top))
    space = Space(((row,) * units,) * stages, budget)
    rng = np.random.default_rng(seed)
    parent = space.random(rng)
    for _ in range(5):
        child = space.mutate(parent, rng, 3)
        assert sum(map(sum, child.levels)) == sum(map(sum, parent.levels))
        parent = child


def test_one_switch_moves_one_level_from_one_stage_to_another() -> None:
    space = Space((((8, 6, 4, 2, 0),),) * 6, 24)
    rng = np.random.default_rng(0)
    for _ in range(50):
        parent = space.random(rng)
        child = space.mutate(parent, rng, 1)
        moved = sorted(c - p for (c,), (p,) in zip(child.levels, parent.levels, strict=True))
        assert moved == [-1, 0, 0, 0, 0, 1]


def test_crossover_takes_each_stage_from_either_parent() -> None:
    space = Space((((4, 0), (4, 0)),) * 4, 16)
    a, b = Candidate.of([(0, 1)] * 4), Candidate.of([(1, 0)] * 4)
    children = {space.crossover(a, b, np.random.default_rng(seed)) for seed in range(200)}
    assert children == set(map(Candidate.of, product([(0, 1), (1, 0)], repeat=4)))


def test_levels_of_equal_cost_are_reached_sideways() -> None:
    space = Space((((2, 1, 1),), ((2, 2),)), 3)
    reached, frontier = set[Candidate](), {Candidate.of([[1], [0]])}
    rng = np.random.default_rng(0)
    while frontier:
        reached |= frontier
        frontier = {space.mutate(parent, rng, 1) for parent in reached for _ in range(20)} - reached
    assert reached == {candidate for candidate in every(space) if is_maximal(space, candidate)}


def test_a_stage_without_steps_stays_at_level_0() -> None:
    space = Space((((4, 2),), ((0, 0),), ((4, 2),)), 6)
    rng = np.random.default_rng(0)
    assert space.repair(Candidate.of([[1]] * 3), rng).levels[1] == (0,)
    drawn = {space.random(rng) for _ in range(50)}
    assert drawn == {Candidate.of([[0], [0], [1]]), Candidate.of([[1], [0], [0]])}


def test_shapes_are_the_dearest_of_their_family() -> None:
    row = (8, 6, 4, 2, 0)
    space = Space(((row,),) * 5, 20)
    assert space.uniform() == Candidate.of([[2]] * 5)
    assert space.ramp(rising=True, gap=4) == Candidate.of([[0], [1], [2], [3], [4]])
    assert space.ramp(rising=False, gap=4) == Candidate.of([[4], [3], [2], [1], [0]])
    assert space.ramp(rising=True, gap=0) == space.uniform()
    assert space.protect({1, 2}, gap=2) == Candidate.of([[3], [1], [1], [3], [3]])
    assert space.protect(range(0), gap=2) == space.uniform()


def test_shapes_are_cut_off_at_what_a_row_offers() -> None:
    space = Space((((6, 4, 2), (3,)), ((6, 4, 2), (3,))), 11)
    deepest = Candidate.of([(2, 0)] * 2)
    assert space.uniform() == deepest
    assert space.protect([0], gap=9) == deepest
    assert space.ramp(rising=True, gap=9) == deepest


@laws
@given(spaces(), st.booleans(), st.integers(0, 3))
def test_where_costs_fall_with_the_level_every_shape_fits(space: Space, rising: bool, gap: int) -> None:
    most = max(len(row) for stage in space.costs for row in stage)

    def falling(row: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(row, reverse=True)) + (min(row),) * (most - len(row))

    space = Space(tuple(tuple(map(falling, stage)) for stage in space.costs), space.budget)
    ramp, protected = space.ramp(rising, gap), space.protect([0], gap)
    assert all(map(space.feasible, (space.uniform(), ramp, protected)))
    for unit in zip(*ramp.levels, strict=True):
        assert list(unit) == sorted(unit, reverse=not rising)
    for unit in zip(*protected.levels, strict=True):
        assert unit[0] == min(unit)


def test_a_space_is_a_value() -> None:
    assert Space((((1, 0),),), 1) == Space((((1, 0),),), 1)
    assert len({Space((((1, 0),),), 1), Space((((1, 0),),), 1)}) == 1


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ((), "at least one stage and one unit"),
        (((),), "at least one stage and one unit"),
        ((((1,),), ((1,), (1,))), r"costs\[1\]: expected 1 units as in stage 0, found 2; give a unit"),
        ((((1,), ()),), r"costs\[0\]\[1\]: expected one non-negative Python int per level, found \(\)"),
        ((((1, -1),),), r"found \(1, -1\)"),
        ((((1.5,),),), r"found \(1.5,\); round"),
    ],
)
def test_a_malformed_table_is_refused(costs: tuple[tuple[tuple[int, ...], ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(costs, 10)


def test_helpful_errors() -> None:
    with pytest.raises(
        ValueError, match=r"at most 3, but the cheapest schedule costs 4; raise the budget to 4 or more"
    ):
        Space((((4, 2),),) * 2, 3)
    space = Space((((4, 2),),) * 2, 6)
    with pytest.raises(
        ValueError, match=r"expected 2 stages x 1 units, found 1 stages of \[1\] levels, and .*; was it"
    ):
        space.cost(Candidate.of([[0]]))
    with pytest.raises(ValueError, match=r"expected a level from 0 to 1 at \[1\]\[0\], found -1"):
        space.repair(Candidate.of([[0], [-1]]), np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one switch at most, found most=0"):
        space.mutate(Candidate.of([[0], [1]]), np.random.default_rng(0), 0)
    with pytest.raises(ValueError, match=r"protect: expected stages from 0 to 1, found \[2\]"):
        space.protect([1, 2], 1)
    with pytest.raises(ValueError, match="ramp: expected a gap of 0 or more levels, found -1"):
        space.ramp(True, -1)
    with pytest.raises(
        ValueError, match=r"uniform: .* budget of 12, but the cheapest one costs 15; raise the budget, or"
    ):
        Space((((10, 5),), ((5, 10),)), 12).uniform()
    for wrong in ([[0]], [[0], [2]], [[0], [0]]):
        assert not space.feasible(Candidate.of(wrong))
    fits = Candidate.of([[0], [1]])
    assert space.feasible(fits)
    assert not space.feasible(Candidate.of(fits.levels, [1, 1]))
    assert not space.feasible(fits.at([500.0, 300.0]))
