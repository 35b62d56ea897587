"""Before a search: what it would take, and the sizes of one that takes the hours that there are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import SkipValidation

from ..pipelines.sampling import AnyPipeline
from ..pruning.budget import Budget, MacsRatio, Speedup, WeightMemory
from ..scoring.journal import Journal
from ..utils.arguments import checked
from ..utils.errors import DiffESError
from ..utils.limits import Hours
from ..utils.progress import Reporter
from .compress import Run
from .effort import SIZES, sizes_of, with_effort
from .forecast import Forecast, forecast_of, foretold
from .machine import machine_of
from .settings import Settings, describe, restore
from .survey import survey

_EFFORTS = (0.01, 0.018, 0.03, 0.056, 0.1, 0.18, 0.3, 0.56, 1.0)
"""Among which hours choose."""


@checked()
def forecast(
    pipe: SkipValidation[AnyPipeline],
    budget: SkipValidation[float | MacsRatio | Speedup | WeightMemory | Budget | None] = None,
    settings: Settings | None = None,
    run: Run | None = None,
) -> Forecast:
    """What :func:`compress` with the same arguments would take, from a few timed calls; nothing is calibrated.

    Raises:
        DiffESError: it takes more memory, or more of the temporary folder's disk, than is free; and as ``compress``.
    """
    how = run or Run()
    reporter = how.reporter or Reporter(quiet=True)
    surveyed = survey(pipe, settings or Settings(), reporter, Budget.of(budget))
    return foretold(surveyed, reporter, how.bytes, table=how.table is not None)


@checked()
def within_hours(
    pipe: SkipValidation[AnyPipeline],
    hours: Hours,
    budget: SkipValidation[float | MacsRatio | Speedup | WeightMemory | Budget | None] = None,
    settings: Settings | None = None,
    run: Run | None = None,
    *,
    keep: Sequence[str] = (),
) -> Settings:
    """The settings with which :func:`compress` takes so many hours here, by its forecast, or less where a thorough
    search does; a search that is resumed keeps its sizes.

    Args:
        settings: what else the result depends on.
        keep: names of sizes in ``settings`` that stay as they are.

    Raises:
        DiffESError: the least search takes longer; as ``compress``.
    """
    chosen, how, reporter = settings or Settings(), run or Run(), (run or Run()).reporter or Reporter(quiet=True)
    if how.resume and how.journal is not None and (header := Journal.began_with(Path(how.journal))):
        sizes = {name: header.get(name) for name in SIZES if name not in keep}
        return restore({**describe(chosen), **sizes})
    surveyed = survey(pipe, chosen, reporter, Budget.of(budget))
    with reporter.task(f"fit the search into {hours:g} h", len(_EFFORTS).bit_length() + 1) as task:
        machine = machine_of(surveyed)
        task.advance()

        @cache
        def seconds(effort: float) -> float:
            task.advance()
            sized = replace(surveyed, settings=with_effort(surveyed.settings, effort, keep))
            return forecast_of(sized, machine, how.bytes, table=how.table is not None).seconds

        efforts = _allowed(chosen, keep)
        within = bisect_right(efforts, 3600 * hours, key=seconds)
        if not within:
            expected = f"at least {seconds(efforts[0]) / 3600:.2g}, what the smallest search takes by the forecast"
            remedy = "Give more, take fewer stages, or see --dry-run for what takes the time."
            raise DiffESError("hours", expected=expected, found=f"{hours:g}", remedy=remedy)
    effort = efforts[within - 1]
    took = f"{seconds(effort) / 3600:.2g} h by the forecast"
    reporter.say(f"An effort of {effort:g} of the thorough search: {took}, of {hours:g} h.")
    return with_effort(chosen, effort, keep)


def _allowed(chosen: Settings, keep: Sequence[str]) -> Sequence[float]:
    """The efforts whose noises are more than a first rung of the user's takes; all, where none are, to be refused."""
    if chosen.first_rung is None or "search_noises" in keep:
        return _EFFORTS
    first = chosen.first_rung
    return tuple(one for one in _EFFORTS if sizes_of(one)["search_noises"] > first) or _EFFORTS
