"""Quality against cost: what a search has found for every budget at once."""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple

from diff_es.search.ask import Scored
from diff_es.search.space import Levels

Cost = Callable[[Levels], int]


class FrontPoint(NamedTuple):
    cost: int
    score: float
    levels: Levels


def front(ranking: Iterable[Scored], cost: Cost) -> tuple[FrontPoint, ...]:
    """The candidates that no other one beats in cost and score, cheapest first, so the score rises from each to the
    next; of equals the first in the order of levels, of those ruled out none."""
    points = [FrontPoint(cost(levels), score, levels) for levels, score in ranking if score > -inf]
    kept, best = list[FrontPoint](), -inf
    for point in sorted(points, key=lambda point: (point.cost, -point.score, point.levels)):
        if point.score > best:
            kept.append(point)
            best = point.score
    return tuple(kept)


def best_within(ranking: Iterable[Scored], cost: Cost, budget: int) -> Scored:
    """The best candidate within a budget. ValueError where none has been evaluated."""
    fits = [candidate for candidate in ranking if cost(candidate.levels) <= budget]
    if not fits:
        raise ValueError(f"best_within: expected a candidate of cost {budget} or less, found none")
    return min(fits, key=lambda candidate: (-candidate.score, candidate.levels))


def tier(cost: Cost, budgets: Sequence[int]) -> Callable[[Levels], int]:
    """A function that says for how many of the budgets a candidate is too dear: peers for a race of a front search."""
    return lambda levels: sum(cost(levels) > budget for budget in budgets)
