"""A model in which the errors of stages and units simply add up, as `knapsack` solves it.

Each stage takes one of its `Branch`es. That is the general case: a branch is a stage's whole choice with its cost and
error, or a number of steps whose units each choose a level on top.
"""

from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import NamedTuple

from diff_es.search.candidate import Candidate, StageChoice
from diff_es.search.space import Space

Table = Sequence[Sequence[float]]
"""What each `[unit][level]` adds to an error."""

Choice = tuple[tuple[int, float], ...]
"""What each level of a unit adds to cost and error."""


class Branch(NamedTuple):
    """One way to run a stage."""

    choice: StageChoice  # as it begins; all of it without `units`
    cost: int
    error: float
    units: tuple[Choice, ...] = ()


Stages = Sequence[Sequence[Branch]]
"""The branches of each stage."""


class Point(NamedTuple):
    cost: int
    error: float
    candidate: Candidate


def prunings(space: Space, errors: Sequence[Table]) -> list[list[Branch]]:
    """The one branch of each stage of a space without the steps lever.

    `errors[stage][unit][level]` is what a level adds to the error where everything else is dense. ValueError where the
    errors have another shape than the costs, or stages choose their steps.
    """
    if space.steps is not None:
        raise ValueError("knapsack: expected a space of fixed steps, found one whose stages choose; use branches")
    if len(errors) != space.stages:
        raise ValueError(f"knapsack: expected errors of {space.stages} stages, found {len(errors)}")
    stages = zip(space.costs, errors, space.fixed or (0,) * space.stages, strict=True)
    return [[Branch(StageChoice(None, ()), fixed, 0.0, _units(costs, table, 1))] for costs, table, fixed in stages]


def branches(space: Space, errors: Callable[[int, int], tuple[float, Table]]) -> list[list[Branch]]:
    """The branches of each stage of a space with the steps lever, one for each number of steps.

    `errors(stage, steps)` is the error of taking so many steps, and what each `[unit][level]` adds to it then; of the
    latter nothing is read where there are no steps. ValueError where it has another shape than the costs.
    """
    if space.steps is None:
        raise ValueError("knapsack: expected a space whose stages choose their steps, found fixed ones; use prunings")
    found = list[list[Branch]]()
    stages = zip(space.costs, space.steps.counts, space.fixed or (0,) * space.stages, strict=True)
    for s, (costs, counts, fixed) in enumerate(stages):
        found.append([])
        for n in counts:
            error, table = errors(s, n)
            if n:
                found[s].append(Branch(StageChoice(n, ()), n * fixed, error, _units(costs, table, n)))
            else:
                found[s].append(Branch(StageChoice(0, (0,) * space.units), 0, error))
    return found


def _units(costs: Sequence[Sequence[int]], table: Table, steps: int) -> tuple[Choice, ...]:
    if [len(row) for row in table] != [len(row) for row in costs]:
        shape, found = [len(row) for row in costs], [len(row) for row in table]
        raise ValueError(f"knapsack: expected an error for every cost, {shape} levels of the units, found {found}")
    return tuple(
        tuple((steps * cost, float(error)) for cost, error in zip(prices, losses, strict=True))
        for prices, losses in zip(costs, table, strict=True)
    )


def knapsack_hull(stages: Stages) -> tuple[Point, ...]:
    """The supported schedules, cheapest first: those on the lower convex hull of cost and error, up to the least error.

    Each is the exact optimum of its own cost, and the next one is never further than one choice of one stage. It takes
    little more than sorting, for any number of units.

    ValueError where a stage has no branch, an error is not finite, or costs add up to 2**62 or more.
    """
    paths = [lower_hull(_supported(branch) for branch in stage) for stage in check(stages)]
    turns = sorted(
        (_slope(path[k], path[k + 1]), s, k + 1) for s, path in enumerate(paths) for k in range(len(path) - 1)
    )
    at = [0] * len(paths)
    found = [_total([path[0] for path in paths])]
    for _, s, k in turns:
        at[s] = k
        found.append(_total([path[k] for path, k in zip(paths, at, strict=True)]))
    return tuple(found)


def check(stages: Stages) -> Stages:
    """ValueError where there is nothing to choose from, an error is not finite, or costs are too large to add."""
    for s, stage in enumerate(stages):
        if not stage or not all(choice for branch in stage for choice in branch.units):
            raise ValueError(f"knapsack: expected a choice in each stage, found none in stage {s}")
        for branch in stage:
            errors = [branch.error, *(error for choice in branch.units for _, error in choice)]
            if not all(map(isfinite, errors)):
                raise ValueError(
                    f"knapsack: expected finite errors in stage {s}, found {errors}; leave out what cannot be run"
                )
    dearest = (max(b.cost + sum(max(choice)[0] for choice in b.units) for b in stage) for stage in stages)
    if sum(dearest) >= 2**62:
        raise ValueError("knapsack: expected costs below 2**62 in all, found more; count them in a coarser unit")
    return stages


_Vertex = tuple[int, float, StageChoice]  # cost, error, what is chosen


def _supported(branch: Branch) -> list[_Vertex]:
    """The hull of a branch: each unit's own, whose edges are taken in the order of what they gain."""
    paths = [
        lower_hull([[(cost, error, StageChoice(None, (level,))) for level, (cost, error) in enumerate(choice)]])
        for choice in branch.units
    ]
    turns = sorted(
        (_slope(path[k], path[k + 1]), u, k + 1) for u, path in enumerate(paths) for k in range(len(path) - 1)
    )
    at = [0] * len(paths)

    def vertex() -> _Vertex:
        picked = [path[k] for path, k in zip(paths, at, strict=True)]
        cost, error = branch.cost + sum(c for c, _, _ in picked), branch.error + sum(e for _, e, _ in picked)
        levels = (level for _, _, one in picked for level in one.levels)
        return cost, error, branch.choice.followed_by(levels)

    found = [vertex()]
    for _, u, k in turns:
        at[u] = k
        found.append(vertex())
    return found


def lower_hull(parts: Iterable[Sequence[_Vertex]]) -> list[_Vertex]:
    """The lower left convex hull, cheapest first, its error falling."""
    kept = list[_Vertex]()
    for vertex in sorted(vertex for part in parts for vertex in part):
        if kept and vertex[1] >= kept[-1][1]:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], vertex):
            kept.pop()
        kept.append(vertex)
    return kept


def _slope(a: _Vertex, b: _Vertex) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _total(rows: Sequence[_Vertex]) -> Point:
    return Point(sum(c for c, _, _ in rows), sum(e for _, e, _ in rows), Candidate(tuple(one for _, _, one in rows)))
