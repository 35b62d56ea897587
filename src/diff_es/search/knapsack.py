"""The best schedule of a model in which the errors of stages and units simply add up: a multiple-choice knapsack.

The supported schedules around a budget give it a price lambda. At that price every choice has a loss, what it gives
away in error + lambda * cost, and a schedule's losses add up to no more than its distance from the bound that the
supported schedules set. So the partial sums of small losses are carried from choice to choice, but for those that
another one beats in cost and error, and where they end in no schedule that proves the allowed loss enough, more is
allowed (the idea is that of the core algorithm of Pisinger, European Journal of Operational Research 83, 1995).

The result is the exact optimum for that budget. Costs are exact, errors are sums of doubles. The one exception:
where more partial sums are alive than `OPTIONS` and `PAIRS` allow, which takes errors that are straight in the costs to
many digits, they are thinned out as by a `grain`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf

import numpy as np
from numpy.typing import NDArray

from diff_es.search.additive import Branch, Choice, Point, Stages, Table, branches, check, knapsack_hull, prunings
from diff_es.search.candidate import Candidate, StageChoice
from diff_es.search.space import Space

OPTIONS = 1 << 12
"""The most options of a stage."""
PAIRS = 1 << 23
"""The most sums of the partial sums so far with a stage's options."""
CHUNK = 1 << 20
"""How many of these are formed at a time."""


def knapsack(space: Space, errors: Sequence[Table]) -> Candidate:
    """The schedule of least total error within the budget, where stages take their own steps.

    `errors[stage][unit][level]` is what a level adds to the error where everything else is dense.

    ValueError where the errors have another shape than the costs, or one is not finite.
    """
    return knapsack_best(prunings(space, errors), space.budget).candidate


def joint_knapsack(space: Space, errors: Callable[[int, int], tuple[float, Table]]) -> Candidate:
    """The schedule of least total error within the budget, where stages choose their steps.

    `errors(stage, steps)` is the error of taking so many steps, and what each `[unit][level]` adds to it then.
    ValueError as in `knapsack`.
    """
    return knapsack_best(branches(space, errors), space.budget).candidate


def knapsack_best(stages: Stages, budget: int) -> Point:
    """The exact optimum within a budget; of equal errors the cheapest.

    ValueError where nothing fits, a stage has no branch, or an error is not finite.
    """
    base, price = _supported_within(stages, budget)
    if not price or base.cost == budget:
        return base
    gap = price * (budget - base.cost)  # the optimum is at most this much better than `base`
    rounding = 1e-12 * (price * budget + abs(base.error))
    for part in (4.0**-4, 4.0**-2, 0.25, 1.0):
        found = min(
            _points(stages, budget, price, part * gap + rounding, 1), key=lambda p: (p.error, p.cost), default=base
        )
        if found.error <= base.error - (1 - part) * gap:
            return found
    return min(found, base, key=lambda p: (p.error, p.cost))


def _supported_within(stages: Stages, budget: int) -> tuple[Point, float]:
    """The dearest supported schedule within a budget, and the error that a unit of cost beyond it is worth."""
    supported = knapsack_hull(stages)
    k = sum(point.cost <= budget for point in supported) - 1
    if k < 0:
        raise ValueError(f"knapsack: expected a budget of {supported[0].cost} or more, found {budget}")
    if k + 1 == len(supported):
        return supported[k], 0.0
    base, beyond = supported[k], supported[k + 1]
    return base, (base.error - beyond.error) / (beyond.cost - base.cost)


def knapsack_front(stages: Stages, budget: int, grain: int = 1) -> tuple[Point, ...]:
    """All schedules within a budget that no other one beats in cost and error, cheapest first.

    It is exact, and where costs are irregular it may be long, so for more than some thirty choices in all give a
    `grain`: of partial sums whose costs fall into the same grain only the one of least error is kept. Then for any
    schedule that costs at most `budget - m * grain`, with m units and stages in all, the front has one of no more error
    that costs at most m * grain more; every point is a real schedule at its exact cost. `knapsack_hull` needs no grain.

    ValueError as in `knapsack_best`.
    """
    points = _points(stages, budget, 0.0, inf, grain)
    if not points:
        raise ValueError(f"knapsack: expected a budget of {knapsack_hull(stages)[0].cost} or more, found {budget}")
    return points


@dataclass(frozen=True)
class _Sums:
    """Partial sums, cheapest first, none of which another one beats."""

    cost: NDArray[np.int64]  # [sum]
    error: NDArray[np.float64]  # [sum]
    loss: NDArray[np.float64]  # [sum]
    picks: NDArray[np.int32]  # [sum, choice so far]

    def __len__(self) -> int:
        return len(self.cost)

    def pick(self, order: NDArray[np.intp]) -> "_Sums":
        return _Sums(self.cost[order], self.error[order], self.loss[order], self.picks[order])


@dataclass(frozen=True)
class _Limits:
    """Which partial sums may still become what is sought."""

    budget: int
    price: float  # of a unit of the budget
    slack: float  # the most that losses may add up to
    grain: int

    def keep(self, cost: NDArray[np.int64], loss: NDArray[np.float64], fewest: int, most: int) -> NDArray[np.bool_]:
        """`fewest` and `most`: what the remaining choices may cost. Budget left over then is lost at its price."""
        unspent = np.maximum(self.budget - most - cost, 0)
        return (cost + fewest <= self.budget) & (loss + self.price * unspent <= self.slack)


def _points(stages: Stages, budget: int, price: float, width: float, grain: int) -> tuple[Point, ...]:
    """The undominated schedules within the budget whose losses are at most `width`."""
    limits = _Limits(min(budget, 2**62), price, width, grain)
    options = [_stage(stage, limits) for stage in check(stages)]
    if not all(len(sums) for sums, _ in options):
        return ()
    fewest = _suffixes(int(sums.cost[0]) for sums, _ in options)
    most = _suffixes(int(sums.cost[-1]) for sums, _ in options)
    total = _single(0, 0.0, 0.0)
    for s, (sums, _) in enumerate(options):
        total = _extended(_thinned(total, PAIRS // len(sums)), sums, limits, fewest[s + 1], most[s + 1])
    choices = [choices for _, choices in options]
    return tuple(
        Point(int(cost), float(error), Candidate(tuple(choices[s][pick] for s, pick in enumerate(picks))))
        for cost, error, picks in zip(total.cost, total.error, total.picks.tolist(), strict=True)
    )


def _stage(stage: Sequence[Branch], limits: _Limits) -> tuple[_Sums, list[StageChoice]]:
    """What a stage may add, one pick for each option, and what the options choose."""
    bounds = [
        branch.error + limits.price * branch.cost + sum(_choice(choice, limits.price)[1] for choice in branch.units)
        for branch in stage
    ]
    found, heads, picks = list[_Sums](), list[StageChoice](), list[list[int]]()
    for branch, bound in zip(stage, bounds, strict=True):
        loss = bound - min(bounds)
        if loss <= limits.slack:
            sums = _single(branch.cost, branch.error, loss)
            for choice in branch.units:
                sums = _thinned(_extended(sums, _choice(choice, limits.price)[0], limits, 0, limits.budget), OPTIONS)
            heads += [branch.choice] * len(sums)
            picks += sums.picks.tolist()
            found.append(replace(sums, picks=np.zeros((len(sums), 0), np.int32)))
    joined = _joined(found)
    numbered = replace(joined, picks=np.arange(len(joined), dtype=np.int32)[:, None])
    sums = _thinned(numbered.pick(_undominated(joined.cost, joined.error, 1)), OPTIONS)
    choices = [heads[k].followed_by(picks[k]) for k in sums.picks[:, 0].tolist()]
    return replace(sums, picks=np.arange(len(sums), dtype=np.int32)[:, None]), choices


def _choice(choice: Choice, price: float) -> tuple[_Sums, float]:
    """What a unit's levels may add, and the least of error + price * cost among them."""
    cost, error = np.array([c for c, _ in choice], np.int64), np.array([e for _, e in choice])
    worth = error + price * cost
    least = float(worth.min())
    sums = _Sums(cost, error, worth - least, np.arange(len(cost), dtype=np.int32)[:, None])
    return sums.pick(_undominated(cost, error, 1)), least


def _single(cost: int, error: float, loss: float) -> _Sums:
    return _Sums(np.array([cost], np.int64), np.array([error]), np.array([loss]), np.zeros((1, 0), np.int32))


def _joined(parts: Sequence[_Sums]) -> _Sums:
    return _Sums(
        np.concatenate([part.cost for part in parts]),
        np.concatenate([part.error for part in parts]),
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.picks for part in parts]),
    )


def _extended(sums: _Sums, options: _Sums, limits: _Limits, fewest: int, most: int) -> _Sums:
    """Every sum with every option, as far as the limits, with `fewest` and `most` to come, leave it."""
    width, parts = len(options), list[_Sums]()
    stride = max(CHUNK // width, 1)
    for start in range(0, max(len(sums), 1), stride):
        some = slice(start, start + stride)
        cost = np.add.outer(sums.cost[some], options.cost).ravel()
        loss = np.add.outer(sums.loss[some], options.loss).ravel()
        kept = np.flatnonzero(limits.keep(cost, loss, fewest, most))
        cost, loss, (i, j) = cost[kept], loss[kept], np.divmod(kept, width)
        i += start
        error = sums.error[i] + options.error[j]
        order = _undominated(cost, error, limits.grain)
        picks = np.hstack([sums.picks[i[order]], options.picks[j[order]]])
        parts.append(_Sums(cost[order], error[order], loss[order], picks))
    whole = _joined(parts)
    return whole if len(parts) == 1 else whole.pick(_undominated(whole.cost, whole.error, limits.grain))


def _undominated(cost: NDArray[np.int64], error: NDArray[np.float64], grain: int) -> NDArray[np.intp]:
    """Those that no other one beats in cost and error, cheapest first; of a grain of costs, the one of least error, and
    the cheapest of all."""
    order = np.lexsort((error, cost))
    ranked = error[order]
    first = np.ones(len(order), bool)
    first[1:] = ranked[1:] < np.minimum.accumulate(ranked)[:-1]
    order = order[first]
    last = np.ones(len(order), bool)
    last[:-1] = np.diff(cost[order] // grain) > 0
    last[:1] = True
    return order[last]


def _thinned(sums: _Sums, most: int) -> _Sums:
    if len(sums) <= most:
        return sums
    grain = int(sums.cost[-1] - sums.cost[0]) // (most - 1) + 1
    return sums.pick(_undominated(sums.cost, sums.error, grain))


def _suffixes(values: Iterable[int]) -> list[int]:
    """The sums of the values from each on, and 0."""
    return [*accumulate(reversed(list(values)), initial=0)][::-1]
