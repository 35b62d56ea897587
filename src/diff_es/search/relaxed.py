"""A bound on what the levels of schedules add to the error, for any numbers of steps, without solving a knapsack."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf

import numpy as np

from diff_es.search.additive import Table, lower_hull
from diff_es.search.candidate import StageChoice
from diff_es.search.space import Space


class Relaxed:
    """The least error that levels within the budget could add if a level could be taken in part.

    That is the linear relaxation of the knapsack: the edges of all units' hulls, the steepest first, up to the budget.
    The hulls are found once, and a stage's number of steps only stretches the costs of its edges.

    Args:
        space: one whose stages choose their steps.
        errors: `[stage][unit][level]`, what a level adds, whatever the number of steps.
    """

    def __init__(self, space: Space, errors: Sequence[Table]) -> None:
        assert space.steps is not None
        hulls = [
            [
                lower_hull([[(c, e, StageChoice(None, ())) for c, e in zip(*unit, strict=True)]])
                for unit in zip(costs, table, strict=True)
            ]
            for costs, table in zip(space.costs, errors, strict=True)
        ]
        self._budget = space.budget
        fixed = space.fixed or (0,) * space.stages
        self._call = np.array(
            [f + sum(hull[0][0] for hull in stage) for f, stage in zip(fixed, hulls, strict=True)], float
        )
        self._error = np.array([sum(hull[0][1] for hull in stage) for stage in hulls])
        edges = [
            (s, after[0] - before[0], before[1] - after[1])
            for s, stage in enumerate(hulls)
            for hull in stage
            for before, after in pairwise(hull)
        ]
        columns = np.array(edges, float).reshape(-1, 3).T
        self._stage, self._rise, self._gain = columns[0].astype(int), columns[1], columns[2]

    def __call__(self, counts: Sequence[int]) -> float:
        """An error that no levels within the budget stay below where stages take these numbers of steps; infinite where
        even the cheapest levels exceed it."""
        steps = np.array(counts)
        left, least = self._budget - float(steps @ self._call), float(self._error[steps > 0].sum())
        if left < 0:
            return inf
        taken = steps[self._stage] > 0
        rise, gain = (steps[self._stage] * self._rise)[taken], self._gain[taken]
        order = np.argsort(-gain / rise)
        rise, gain = rise[order], gain[order]
        parts = np.clip((left - (np.cumsum(rise) - rise)) / rise, 0.0, 1.0)
        return least - float(parts @ gain) - 1e-12 * (abs(least) + float(gain.sum()))  # sums are rounded
