"""Quality against cost: what a search has found for every budget at once."""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple

from diff_es.search.ask import Scored
from diff_es.search.candidate import Candidate

Cost = Callable[[Candidate], int]


class FrontPoint(NamedTuple):
    cost: int
    score: float
    candidate: Candidate


def front(ranking: Iterable[Scored], cost: Cost) -> tuple[FrontPoint, ...]:
    """The candidates that no other one beats in cost and score, cheapest first, so the score rises from each to the
    next; of equals the first in the order of candidates, of those ruled out none."""
    points = [FrontPoint(cost(candidate), score, candidate) for candidate, score in ranking if score > -inf]
    kept, best = list[FrontPoint](), -inf
    for point in sorted(points, key=lambda point: (point.cost, -point.score, point.candidate)):
        if point.score > best:
            kept.append(point)
            best = point.score
    return tuple(kept)


def best_within(ranking: Iterable[Scored], cost: Cost, budget: int) -> Scored:
    """The best candidate within a budget. ValueError where none has been evaluated."""
    fits = [scored for scored in ranking if cost(scored.candidate) <= budget]
    if not fits:
        raise ValueError(f"best_within: expected a candidate of cost {budget} or less, found none")
    return min(fits, key=lambda scored: (-scored.score, scored.candidate))


def tier(cost: Cost, budgets: Sequence[int]) -> Callable[[Candidate], int]:
    """A function that says for how many of the budgets a candidate is too dear: peers for a race of a front search."""
    return lambda candidate: sum(cost(candidate) > budget for budget in budgets)
