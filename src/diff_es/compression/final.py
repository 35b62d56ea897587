"""The final: finalists of a search are judged on noises that it never saw, and the winner once more on fresh ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from ..search import Candidate, Generation, choose, error_of
from ..utils.progress import Reporter
from .evaluator import Evaluator, Trial
from .study import PARTS, Study


class Finalist(NamedTuple):
    """A schedule, its steps corrected, where steps are, or as the sampler takes them."""

    candidate: Candidate
    corrected: bool = True


@dataclass(frozen=True)
class Judged:
    """What the final made of a finalist."""

    candidate: Candidate
    score: float  # on the search's probes
    held_out: float  # mean on the noises of the final that it ran on, the first ones of all
    noises: int  # how many
    corrected: bool = True


@dataclass(frozen=True)
class Found:
    """What a search came back with for one budget: the winner of its final, and how it got there."""

    limit: float  # the most that it might cost, relative to the user's own setting
    candidate: Candidate
    score: float  # on the search's probes
    held_out: float  # mean on fresh noises, which have chosen nothing
    finalists: tuple[Judged, ...]  # the winner first; of the others those first that came furthest
    history: tuple[Generation, ...]
    evaluations: int  # candidates run in all, those of the sensitivity table included
    error: float = math.inf  # standard error of `held_out`
    corrected: bool = True  # whether the winner's steps are


def select(
    ready: Study,
    limit: float,
    finalists: Sequence[Finalist],
    evaluator: Evaluator,
    history: tuple[Generation, ...],
    evaluations: int,
    reporter: Reporter,
) -> Found:
    """Choose among finalists on noises that no search sees, as many as it takes to tell them apart.

    Args:
        limit: within which they are.
        finalists: best first; where two are equal, the earlier one wins.
        evaluator: knows their scores on the search's probes, or finds them, and judges them on those of the final. On
            the fresh ones there is only the winner, which runs in this process.
    """
    field = list(dict.fromkeys(finalists))
    known = evaluator.scores([one.candidate for one in field if one.corrected])
    with reporter.task(f"judge finalists at {limit:g}", len(field) * PARTS) as task:

        def held_out(left: Sequence[Finalist], part: int) -> list[list[float]]:
            trials = [Trial(one.candidate, one.corrected, part) for one in left]
            return evaluator.held_out(trials, task.advance)

        standings = choose(field, held_out, PARTS)
    plain, judged = evaluator.plain([one.candidate for one in field if not one.corrected]), list[Judged]()
    for (candidate, corrected), scores in standings:
        score = known[candidate] if corrected else plain[candidate]
        judged.append(Judged(candidate, score, fmean(scores), len(scores), corrected))
    winner, fresh = judged[0], ready.fresh.each(judged[0].candidate, corrected=judged[0].corrected)
    finals, error = tuple(judged), error_of(fresh)
    return Found(
        limit, winner.candidate, winner.score, fmean(fresh), finals, history, evaluations, error, winner.corrected
    )
