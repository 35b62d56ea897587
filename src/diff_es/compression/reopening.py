"""What a saved result came back with, and what it keeps: for another look at it."""

from __future__ import annotations

import math

from ..pipelines.sampling import AnyPipeline, denoiser_of
from ..pruning.budget import Budget, MacsRatio, MeasuredPrices, Speedup, WeightMemory
from ..routing.placements import Streamed, parameter_bytes
from ..utils.errors import DiffESError
from .final import Found
from .report import SearchReport
from .result import Compressed


def found_again(report: SearchReport) -> Found:
    """What the search came back with, from what was saved."""
    winner, error = report.finalists[0], report.held_out_error
    return Found(
        report.limit,
        winner.candidate,
        report.score,
        report.held_out_score,
        report.finalists,
        report.history,
        report.evaluations,
        math.inf if error is None else error,
        winner.corrected,
    )


def asked_again(fast: Compressed, pipe: AnyPipeline) -> tuple[Budget, MeasuredPrices | None]:
    """The budget that a saved result keeps, and the prices by which it does.

    Args:
        pipe: what it was made for.

    Raises:
        DiffESError: a budget of time whose prices are not known.
    """
    report = fast.report
    timed = isinstance(report.budget.compute, Speedup) or report.cost_ratio != report.macs_ratio
    if timed and report.prices is None:
        remedy = "Compress again with the same --speedup into another folder; --table takes what was measured here."
        expected, found = "the prices that its budget of time was kept by", "none: an earlier version made it"
        raise DiffESError("result", expected=expected, found=found, remedy=remedy)
    memory = report.budget.memory or _memory(fast, pipe)
    return Budget(report.budget.compute if timed else MacsRatio(report.limit), memory), report.prices


def _memory(fast: Compressed, pipe: AnyPipeline) -> WeightMemory | None:
    """What a result that does not say it, of an earlier version, keeps within: streamed, and no stage is dense."""
    placement, steps = fast.placement, fast.report.steps
    if not isinstance(placement, Streamed) or placement.limit >= 1:
        return None
    running = [row for row, count in zip(fast.schedule.levels, steps, strict=True) if count]
    if not all(len(row) == 1 and row[0] for row in running):
        return None
    return WeightMemory(placement.limit * parameter_bytes(denoiser_of(pipe)) / 1e9)
