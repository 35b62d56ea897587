"""The additive optimum is exact, whatever the costs and errors."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_es.search import Space, knapsack


@st.composite
def problems(draw: st.DrawFn) -> tuple[Space, list[list[list[float]]]]:
    stages, units, levels = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    price = st.integers(0, 9)
    costs = tuple(tuple(tuple(draw(price) for _ in range(levels)) for _ in range(units)) for _ in range(stages))
    errors = [[[draw(st.floats(0, 10)) for _ in range(levels)] for _ in range(units)] for _ in range(stages)]
    least = sum(min(row) for stage in costs for row in stage)
    return Space(costs, least + draw(st.integers(0, 30))), errors


@given(problems())
def test_equals_brute_force(problem: tuple[Space, list[list[list[float]]]]) -> None:
    space, errors = problem
    slots = [(costs, errors[s][u]) for s, row in enumerate(space.costs) for u, costs in enumerate(row)]
    totals = [
        sum(losses[level] for (_, losses), level in zip(slots, choice, strict=True))
        for choice in product(*(range(len(costs)) for costs, _ in slots))
        if sum(costs[level] for (costs, _), level in zip(slots, choice, strict=True)) <= space.budget
    ]
    found = knapsack(space, errors)
    assert space.feasible(found)
    total = sum(errors[s][u][level] for s, row in enumerate(found) for u, level in enumerate(row))
    assert total == pytest.approx(min(totals), abs=1e-9)


def test_errors_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="an error for every cost"):
        knapsack(Space((((2, 1),),), 2), [[[0.0]]])
