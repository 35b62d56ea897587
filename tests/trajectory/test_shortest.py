"""Laws of where corrected steps stand: what they miss is what least squares leaves, and no other steps miss less."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_es.trajectory.shortest import Bends, cheapest_pairs

POINTS, NOISES = 7, 2


def curve() -> tuple[list[float], list[Tensor]]:
    """Places, unevenly apart, and states that no few of the others explain."""
    generator = torch.Generator().manual_seed(0)
    tau = [(1 - point / POINTS) ** 1.5 for point in range(POINTS + 1)]
    parts = torch.randn(6, NOISES, 3, 4, generator=generator, dtype=torch.float64)
    return tau, [sum((part * t**power for power, part in enumerate(parts)), torch.zeros(())) for t in tau]


@pytest.mark.parametrize("directions", [1, 2, 3, 4])
def test_what_a_step_misses_is_what_least_squares_leaves(directions: int) -> None:
    tau, states = curve()
    left = Bends.of(tau, states).left(directions, POINTS)
    flat = [state.flatten().numpy() for state in states]
    for start in range(POINTS):
        move = (flat[start + 1] - flat[start]) / (tau[start + 1] - tau[start])
        for end in range(start + 1, POINTS + 1):
            missing = flat[end] - flat[start] - (tau[end] - tau[start]) * move
            for before in range(max(start, 1)):
                back = [flat[start] - flat[start - 1 - before]] if start else []
                along = np.stack([flat[start], move, *back][:directions], 1)
                rest = missing - along @ np.linalg.lstsq(along, missing, rcond=None)[0]
                wanted = float(rest @ rest) / NOISES
                assert left[start, before, end - start - 1] == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    known = sum(max(start, 1) * (POINTS - start) for start in range(POINTS))
    assert np.isfinite(left).sum() == known


def test_dynamic_programming_over_pairs_finds_what_trying_all_finds() -> None:
    rng = np.random.default_rng(0)
    costs = np.full((POINTS, POINTS, POINTS), np.inf)
    for start in range(POINTS):
        costs[start, : max(start, 1), : POINTS - start] = rng.random((max(start, 1), POINTS - start))
    for coefficient in (0.8, 1.0, 1.15):
        for steps in range(1, POINTS + 1):

            def cost(inner: tuple[int, ...], coefficient: float = coefficient) -> float:
                points, total = (0, *inner, POINTS), 0.0
                for step in reversed(range(len(points) - 1)):
                    before = points[step] - points[step - 1] - 1 if step else 0
                    total = costs[points[step], before, points[step + 1] - points[step] - 1] + coefficient * total
                return total

            best = min(combinations(range(1, POINTS), steps - 1), key=cost)
            assert cheapest_pairs(costs, steps, coefficient) == (0, *best)


def test_a_run_that_its_own_directions_explain_is_followed_in_any_steps() -> None:
    tau, states = curve()
    straight = [states[0] + (tau[0] - t) * (states[-1] - states[0]) for t in tau]
    bends = Bends.of(tau, straight)
    assert np.nanmax(np.where(np.isinf(left := bends.left(4, POINTS)), np.nan, left)) < 1e-9
    assert all(len(found) == 3 for found in bends.nearest(3, 4))
