"""The best schedule of a model in which the errors of stages and units simply add up: an exact knapsack."""

from __future__ import annotations

from collections.abc import Sequence

from .space import Levels, Space


def knapsack(space: Space, errors: Sequence[Sequence[Sequence[float]]]) -> Levels:
    """The schedule of least total error within the budget (multiple-choice knapsack, solved exactly).

    ``errors[stage][unit][level]`` is what a level adds to the error where everything else is dense. The partial sums
    that no other partial sum beats in both cost and error are carried from one (stage, unit) to the next.

    Raises:
        ValueError: the errors have another shape than the costs.
    """
    shape = [[len(levels) for levels in row] for row in space.costs]
    if [[len(levels) for levels in row] for row in errors] != shape:
        raise ValueError(f"knapsack: expected an error for every cost, {shape} levels, found another shape")
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]  # (cost, error, levels so far), cheapest first
    for costs, worth in zip(space.costs, errors, strict=True):
        for prices, losses in zip(costs, worth, strict=True):
            options = [
                (cost + price, error + loss, (*levels, level))
                for cost, error, levels in front
                for level, (price, loss) in enumerate(zip(prices, losses, strict=True))
                if cost + price <= space.budget
            ]
            front = _undominated(options)
    _, _, flat = min(front, key=lambda state: (state[1], state[0], state[2]))
    return tuple(tuple(flat[stage * space.units : (stage + 1) * space.units]) for stage in range(space.stages))


def _undominated(states: list[tuple[int, float, tuple[int, ...]]]) -> list[tuple[int, float, tuple[int, ...]]]:
    """Those that no other one beats in cost and error."""
    kept, least = list[tuple[int, float, tuple[int, ...]]](), float("inf")
    for state in sorted(states):
        if state[1] < least:
            kept.append(state)
            least = state[1]
    return kept
