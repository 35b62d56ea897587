"""What artefacts of format 3 say, as those of today say it."""

from __future__ import annotations

from collections.abc import Sequence

from .search import Candidate

Rows = Sequence[Sequence[float]]


def candidate_of(rows: Rows, stages: int, *, steps: bool) -> Candidate:
    """A candidate from its rows.

    Args:
        rows: of each stage the number of steps, where it is a choice, and the levels; then, if they were moved, the
            timesteps.
        steps: whether steps are a choice.
    """
    whole = [[int(number) for number in row] for row in rows[:stages]]
    timesteps = [float(t) for row in rows[stages:] for t in row]
    if not steps:
        return Candidate.of(whole)
    return Candidate.of([row[1:] for row in whole], [row[0] for row in whole], timesteps)


def rows_of(candidate: Candidate) -> list[list[float]]:
    """The rows of a candidate, as :func:`candidate_of` reads them."""
    rows: list[list[float]] = [
        [*one.levels] if one.steps is None else [one.steps, *one.levels] for one in candidate.stages
    ]
    whole = [int(t) if t == int(t) else t for t in candidate.timesteps]
    return [*rows, whole] if whole else rows
