"""The additive optimum is exact, whatever the costs and errors."""

from __future__ import annotations

from itertools import pairwise, product
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.search import (
    Branch,
    Candidate,
    Point,
    Relaxed,
    Space,
    StageChoice,
    Steps,
    branches,
    joint_knapsack,
    knapsack,
    knapsack_best,
    knapsack_front,
    knapsack_hull,
    prunings,
)

laws = settings(max_examples=75, deadline=None)
Problem = list[list[Branch]]
exact = st.integers(0, 40).map(lambda eighths: eighths / 8)  # sums of which are exact, so ties are ties


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Space, list[list[list[float]]]]:
    stages, units, levels = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    price = st.integers(0, 9)
    costs = tuple(tuple(tuple(draw(price) for _ in range(levels)) for _ in range(units)) for _ in range(stages))
    errors = [[[draw(st.floats(0, 10)) for _ in range(levels)] for _ in range(units)] for _ in range(stages)]
    least = sum(min(row) for stage in costs for row in stage)
    return Space(costs, least + draw(st.integers(0, 30))), errors


@st.composite
def problems(draw: st.DrawFn, error: st.SearchStrategy[float] = exact) -> Problem:
    """Stages of several branches, some with units and some without."""

    def branch(number: int, units: int) -> Branch:
        choice = st.lists(st.tuples(st.integers(0, 9), error), min_size=1, max_size=3).map(tuple)
        whole = draw(st.booleans())
        own = StageChoice(number, (0,) * units * whole)
        return Branch(
            own, draw(st.integers(0, 9)), draw(error), tuple(draw(choice) for _ in range(units * (not whole)))
        )

    units = draw(st.integers(0, 2))
    return [[branch(k, units) for k in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 3)))]


def options(stage: list[Branch]) -> list[Point]:
    """The choices of a stage by brute force, each as a candidate of this stage alone."""
    return [
        Point(
            b.cost + sum(unit[level][0] for unit, level in zip(b.units, levels, strict=True)),
            b.error + sum(unit[level][1] for unit, level in zip(b.units, levels, strict=True)),
            Candidate((StageChoice(b.choice.steps, (*b.choice.levels, *levels)),)),
        )
        for b in stage
        for levels in product(*(range(len(unit)) for unit in b.units))
    ]


def everything(problem: Problem) -> list[Point]:
    return [
        Point(
            sum(p.cost for p in points),
            sum(p.error for p in points),
            Candidate(tuple(one for p in points for one in p.candidate.stages)),
        )
        for points in product(*map(options, problem))
    ]


def undominated(points: list[Point]) -> list[tuple[int, float]]:
    kept: list[tuple[int, float]] = []
    for cost, error, _ in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((cost, error))
    return kept


@laws
@given(spaces())
def test_the_best_schedule_of_a_space_equals_brute_force(problem: tuple[Space, list[list[list[float]]]]) -> None:
    space, errors = problem
    least = min(point.error for point in everything(prunings(space, errors)) if point.cost <= space.budget)
    found = knapsack(space, errors)
    assert space.feasible(found)
    total = sum(errors[s][u][level] for s, row in enumerate(found.levels) for u, level in enumerate(row))
    assert total == pytest.approx(least, abs=1e-9)


@laws
@given(problems(), st.integers(0, 60))
def test_the_best_of_any_branches_equals_brute_force(problem: Problem, more: int) -> None:
    points = everything(problem)
    budget = min(point.cost for point in points) + more
    found = knapsack_best(problem, budget)
    assert found in points
    assert (found.error, found.cost) == min((p.error, p.cost) for p in points if p.cost <= budget)


@laws
@given(problems(), st.integers(0, 60))
def test_the_front_is_all_that_nothing_beats(problem: Problem, more: int) -> None:
    points = everything(problem)
    budget = min(point.cost for point in points) + more
    found = knapsack_front(problem, budget)
    assert set(found) <= set(points)
    assert [(p.cost, p.error) for p in found] == undominated([p for p in points if p.cost <= budget])


@laws
@given(problems())
def test_supported_schedules_are_optimal_for_their_cost_and_convex(problem: Problem) -> None:
    points, found = everything(problem), knapsack_hull(problem)
    assert set(found) <= set(points)
    front = undominated(points)
    assert {(p.cost, p.error) for p in found} <= set(front)
    assert (found[0].cost, found[-1].error) == (front[0][0], front[-1][1])
    slopes = [(b.error - a.error) / (b.cost - a.cost) for a, b in pairwise(found)]
    assert all(slopes[k] <= slopes[k + 1] + 1e-9 for k in range(len(slopes) - 1))
    for cost, error in front:  # nothing lies below the hull
        for (a, b), slope in zip(pairwise(found), slopes, strict=True):
            assert error >= a.error + slope * (cost - a.cost) - 1e-9 or not a.cost <= cost <= b.cost


@laws
@given(problems(), st.integers(0, 60), st.integers(2, 6))
def test_a_grain_loses_no_more_than_it_says(problem: Problem, more: int, grain: int) -> None:
    points = everything(problem)
    budget = min(point.cost for point in points) + more
    found = knapsack_front(problem, budget, grain)
    allowed = grain * (len(problem) + sum(max(len(b.units) for b in stage) for stage in problem))
    assert set(found) <= set(points)
    for point in points:
        if point.cost <= budget - allowed:
            assert any(p.error <= point.error and p.cost <= point.cost + allowed for p in found)


def joint(stages: int, units: int, counts: int, levels: int, seed: int) -> tuple[Space, Problem]:
    """Errors that fall with the steps and grow with the levels, by stage; costs of no common measure."""
    rng = np.random.default_rng(seed)
    price = [[int(1e9 * (1 - 0.1 * level)) + int(rng.integers(10**6)) for level in range(levels)] for _ in range(units)]
    weight = np.geomspace(20, 0.3, stages) * rng.uniform(0.5, 2, stages)
    deep = rng.uniform(0.1, 3, (stages, units, 1)) * np.arange(levels) ** 1.7
    steps = Steps((tuple(range(1, counts + 1)),) + (tuple(range(counts)),) * (stages - 1), (2,) * stages)
    costs = (tuple(map(tuple, price)),) * stages
    dense = sum(2 * (10**8 + sum(row[0] for row in price)) for _ in range(stages))
    space = Space(costs, dense // 2, steps, (10**8,) * stages)
    return space, branches(space, lambda s, n: (weight[s] / (n + 0.3) ** 2, (n * weight[s] * deep[s] / 50).tolist()))


def test_the_joint_knapsack_equals_brute_force() -> None:
    space, problem = joint(3, 2, 3, 3, 0)
    least = min(point.error for point in everything(problem) if point.cost <= space.budget)
    found = knapsack_best(problem, space.budget)
    assert found.error == pytest.approx(least, rel=1e-12)
    assert space.cost(found.candidate) == found.cost <= space.budget


def test_steps_and_levels_are_chosen_together() -> None:
    space = Space((((4, 2),),) * 2, 8, Steps(((1, 2), (0, 1, 2)), (2, 2)))
    table = {(0, 1): 5.0, (0, 2): 1.0, (1, 0): 9.0, (1, 1): 2.0, (1, 2): 1.25}
    found = joint_knapsack(space, lambda s, n: (table[s, n], [[0.0, 0.5]]))
    assert found == Candidate.of([[1], [1]], steps=[2, 2])
    found = joint_knapsack(space, lambda s, n: (table[s, n], [[0.0, 1.5]]))
    assert found == Candidate.of([[1], [0]], steps=[2, 1])
    found = joint_knapsack(space, lambda s, n: (0.0 if (s, n) == (1, 0) else 7.0, [[0.0, 9.0]]))
    assert found == Candidate.of([[0], [0]], steps=[1, 0])


def test_ten_counts_by_eight_levels_in_ten_stages_have_a_whole_front_that_agrees_with_every_single_budget() -> None:
    space, problem = joint(10, 1, 10, 8, 1)
    found = knapsack_front(problem, space.budget)
    assert len(found) > 100
    for budget in np.linspace(found[0].cost, space.budget, 12).astype(int).tolist():
        alone = knapsack_best(problem, budget)
        within = max(p for p in found if p.cost <= budget)
        assert alone.cost == within.cost
        assert alone.error == pytest.approx(within.error)


def test_fourteen_units_of_ten_stages_are_solved_too() -> None:
    space, problem = joint(10, 14, 4, 8, 2)
    hull = knapsack_hull(problem)
    best = knapsack_best(problem, space.budget)
    below = max(p for p in hull if p.cost <= space.budget)
    above = min(p for p in hull if p.cost > space.budget)
    bound = below.error + (above.error - below.error) * (space.budget - below.cost) / (above.cost - below.cost)
    assert bound <= best.error <= below.error
    assert best.cost <= space.budget
    coarse = knapsack_front(problem, space.budget, space.budget // 1000)[-1]
    assert best.error <= coarse.error <= best.error * 1.2


@laws
@given(spaces(), st.data())
def test_the_relaxation_bounds_every_knapsack_and_meets_the_supported_ones(
    problem: tuple[Space, list[list[list[float]]]], data: st.DataObject
) -> None:
    thinned, errors = problem
    numbers = tuple(tuple(range(0 if s else 1, 4)) for s in range(thinned.stages))
    counts = tuple(data.draw(st.sampled_from(row)) for row in numbers)
    space = Space(thinned.costs, 1000, Steps(numbers, counts), (2,) * thinned.stages)
    taking = branches(space.taking(counts), lambda s, _: (0.0, errors[s]))
    supported = knapsack_hull(taking)
    for point in supported:
        assert Relaxed(space.within(point.cost), errors)(counts) == pytest.approx(point.error, abs=1e-9)
    cheapest = 2 + sum(map(min, thinned.costs[0]))  # of all: one step of the first stage
    space = space.within(max(cheapest, supported[0].cost + data.draw(st.integers(-9, 40))))
    bound = Relaxed(space, errors)(counts)
    least = min((point.error for point in everything(taking) if point.cost <= space.budget), default=inf)
    assert bound <= least
    assert (bound == inf) == (least == inf) == (not space.pays(counts))


def test_a_budget_beyond_all_costs_gives_the_least_error() -> None:
    problem = [[Branch(StageChoice(None, (0,)), 3, 0.0), Branch(StageChoice(None, (1,)), 2, 1.0)]] * 2
    least = Point(6, 0.0, Candidate.of([[0], [0]]))
    assert knapsack_front(problem, 2**70)[-1] == knapsack_best(problem, 2**70) == least


def test_helpful_errors() -> None:
    space, dense = Space((((2, 1),),), 2), StageChoice(None, (0,))
    with pytest.raises(ValueError, match=r"an error for every cost, \[2\] levels of the units, found \[1\]"):
        knapsack(space, [[[0.0]]])
    with pytest.raises(ValueError, match="errors of 1 stages, found 2"):
        knapsack(space, [[[0.0, 1.0]]] * 2)
    for wrong in (inf, nan):
        with pytest.raises(ValueError, match=r"finite errors in stage 0, found .*; leave out what cannot be run"):
            knapsack(space, [[[0.0, wrong]]])
    with pytest.raises(ValueError, match="a choice in each stage, found none in stage 1"):
        knapsack_best([[Branch(dense, 1, 0.0)], []], 2)
    with pytest.raises(ValueError, match="a budget of 1 or more, found 0"):
        knapsack_best([[Branch(dense, 1, 0.0)]], 0)
    with pytest.raises(ValueError, match="a budget of 1 or more, found 0"):
        knapsack_front([[Branch(dense, 1, 0.0)]], 0)
    with pytest.raises(ValueError, match=r"costs below 2\*\*62 in all, found more"):
        knapsack_best([[Branch(dense, 2**62, 0.0)]], 2**63)
    with pytest.raises(ValueError, match="a space of fixed steps, found one whose stages choose; use branches"):
        knapsack(Space((((2, 1),),), 2, Steps(((1,),), (1,))), [[[0.0, 1.0]]])
    with pytest.raises(ValueError, match="a space whose stages choose their steps, found fixed ones"):
        joint_knapsack(space, lambda s, n: (0.0, [[0.0, 1.0]]))
