"""The method on one page: survey, calibrate, rank, measure sensitivities, search, make the result."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePath
from statistics import fmean

from pydantic import SkipValidation, TypeAdapter

from ..execution import Executor, InProcess
from ..layers import Plan, fingerprint
from ..pipelines.loading import origin_of
from ..pipelines.sampling import AnyPipeline, denoiser_of
from ..pruning.budget import Budget, MacsRatio, MeasuredPrices, Speedup, WeightMemory
from ..pruning.compaction import Compaction
from ..pruning.method import Method
from ..routing.placements import Compact, Placement, Saved
from ..scoring.journal import Journal
from ..scoring.timing import Runner, measure
from ..trajectory.stages import Schedule
from ..utils.arguments import Place, checked
from ..utils.checking import validated
from ..utils.errors import DiffESError
from ..utils.files import check_outputs
from ..utils.limits import Gigabytes
from ..utils.locks import held_file
from ..utils.progress import Reporter
from .evaluator import Evaluator
from .evolve import evolve
from .final import Found
from .forecast import announced, compared
from .report import SearchReport
from .result import Compressed, load
from .sensitivity import Sensitivity, SensitivityOf, sensitivity
from .settings import Settings, describe, value_of
from .store import read_manifest
from .study import Study, study
from .survey import Survey, as_measured, identity, survey


def compacted(ready: Study, found: Found, placement: Compact, reporter: Reporter) -> tuple[tuple[Plan, ...], float]:
    """A result's plans with low-rank corrections, and their score on the fresh probes."""
    compaction, plans = Compaction(ready.library, placement.tolerance), list[Plan]()
    with reporter.task("factor corrections", len(ready.stages)) as task:
        for stage, levels in enumerate(found.candidate.levels):
            plans.append(compaction.plan(stage, levels))
            task.advance()
    return tuple(plans), ready.fresh.of_plans(plans, placement, found.candidate, corrected=found.corrected)


def result_of(
    ready: Study,
    found: Found,
    table: Sensitivity,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
) -> Compressed:
    """The found schedule with its plans, ready to run and to save, and the table that another budget can start from."""
    candidate, settings, reporter = found.candidate, ready.settings, reporter or Reporter(quiet=True)
    plans = tuple(ready.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels))
    timesteps = ready.timesteps(candidate)
    # the user's own once each, however often a step calls the denoiser there
    steps_at = tuple(dict.fromkeys(ready.trace.timesteps)) if timesteps is None else timesteps
    compact = own = to_own = None
    if isinstance(placement, Compact):
        plans, compact = compacted(ready, found, placement, reporter)
    if not ready.refers_to_own:
        own = ready.fresh.plain(ready.own)
        to_own = fmean(ready.fresh_to_own.each(candidate, corrected=found.corrected))
    report = SearchReport(
        budget=ready.budget,
        limit=found.limit,
        macs_ratio=ready.macs.ratio(candidate),
        cost_ratio=ready.costs.ratio(candidate),
        score=found.score,
        held_out_score=found.held_out,
        held_out_error=found.error if math.isfinite(found.error) else None,
        finalists=found.finalists,
        history=found.history,
        evaluations=found.evaluations,
        steps=ready.stages.steps(steps_at),
        timesteps=steps_at,
        reference_timesteps=ready.reference,
        macs_by_level=ready.macs.options,
        units=tuple(unit.name for unit in ready.units),
        sensitivity=SensitivityOf.measured(table, ready),
        settings=settings,
        prices=None if ready.prices is None else ready.prices.measured,
        own_held_out_score=own,
        held_out_score_to_own=to_own,
        compact_held_out_score=compact,
    )
    return Compressed(
        schedule=Schedule(ready.stages, candidate.levels),
        plans=plans,
        sampling=settings.sampling,
        base=fingerprint(denoiser_of(ready.pipe)),
        origin=origin_of(ready.pipe),
        searched=report,
        placement=placement,
        timesteps=timesteps,
        corrections=ready.corrections(candidate) if found.corrected else (),
    )


_PRICES = TypeAdapter(MeasuredPrices | None)


@checked("")
@dataclass(frozen=True)
class Run:
    """How a search is run, none of which changes what it finds, and where its result waits.

    Args:
        placement: where the weights of the stages wait when the result runs; None leaves it to the memory that is free
            then. ``Compact`` factors the corrections, and measures what that costs.
        journal: a file to which every evaluation is appended, so that a stopped search can be resumed.
        resume: go on with an existing journal, to the result that an uninterrupted run gives; where there is none, the
            search starts anew, and the reporter says so.
        executor: who does the work: this process, or workers of a Ray cluster. It changes nothing but the time.
        table: the folder of an earlier result of this model and these settings, whose sensitivities are taken, not
            measured anew: another budget then costs its search alone.
        memory: gigabytes that statistics and weights of levels may take beside the model and what its calls take; what
            is more waits on the disk of the temporary folder. None: half of what is free.
        reporter: shows progress; default silent.

    Raises:
        ArtefactError: ``table`` is no artefact.
        StorageError: the journal cannot be written.
    """

    placement: Saved | None = None
    journal: Place | None = None
    resume: bool = False
    executor: Executor = field(default_factory=InProcess)
    table: Place | None = None
    memory: Gigabytes | None = None
    reporter: Reporter | None = None

    def __post_init__(self) -> None:
        if self.table is not None:
            read_manifest(Path(self.table))
        if self.journal is not None:
            check_outputs(Path(self.journal).parent, Path(self.journal).name)

    @property
    def bytes(self) -> int | None:
        """Of ``memory``."""
        return None if self.memory is None else round(self.memory * 1e9)

    def check(self, budget: Budget) -> None:
        """Whether it goes with a budget.

        Raises:
            DiffESError: a placement beside a budget of memory, which says it.
        """
        if self.placement is not None and budget.memory is not None:
            found, remedy = f"{type(self.placement).__name__} beside {budget.memory}", "Leave one of them out."
            raise DiffESError("placement", expected="none, since the result is streamed", found=found, remedy=remedy)


@checked()
def compress(
    pipe: SkipValidation[AnyPipeline],
    budget: SkipValidation[float | MacsRatio | Speedup | WeightMemory | Budget | None] = None,
    settings: Settings | None = None,
    run: Run | None = None,
    *,
    macs: SkipValidation[float | None] = None,
    speedup: SkipValidation[float | None] = None,
    weights_gb: SkipValidation[float | None] = None,
) -> Compressed:
    """Make a pipeline faster: calibrate it on its own trajectories, rank, and search a schedule within the budget.

    Args:
        pipe: a pipeline of one of the classes in ``loading.SUPPORTED``, with the scheduler you sample with, or a
            denoiser with a loop of your own (:class:`OwnSampler`); it is left as it was.
        budget: what the result may cost; a number is a share of the dense trajectory's multiply-accumulates, and the
            default 0.7 of them. ``macs``, ``speedup`` and ``weights_gb`` say the same by name.
        settings: everything else that the result depends on; by default as the pipeline's own call samples.
        run: journal, processes, progress.

    Raises:
        UnsupportedModel: a pipeline that Diff-ES cannot drive.
        BudgetOutOfReach: before any search; says what is attainable.
        DiffESError: bad settings, or a journal of other settings.
        StorageError: another process searches with this journal; or the disk refused.
    """
    asked, how = Budget.of(budget, macs, speedup, weights_gb), run or Run()
    how.check(asked)
    with held_file(None if how.journal is None else Path(how.journal)):
        return _compress(pipe, asked, settings or Settings(), how)


def _compress(pipe: AnyPipeline, budget: Budget, settings: Settings, run: Run) -> Compressed:
    """:func:`compress`, while nobody else works on the journal."""
    reporter, journal, resume, table = run.reporter or Reporter(quiet=True), run.journal, run.resume, run.table
    header = None
    reporter.follow(None)  # whatever it followed before
    earlier, priced = None if table is None else load(table).report, None
    if earlier is not None:
        settings = as_measured(settings, earlier.settings.method)
    if resume:
        header = None if journal is None else began_with(Path(journal))
        if header is None:
            reporter.say(f"There is no journal to resume{f' at {journal}' if journal else ''}: the search starts anew.")
        else:
            settings, priced = as_measured(settings, header.method), header.prices
    surveyed = survey(pipe, settings, reporter, budget, priced)
    known = None if earlier is None else earlier.sensitivity.checked(surveyed, str(table))
    log = open_journal(surveyed, journal, reporter, resume=resume, table=known)
    foretold = (
        None if reporter.quiet or header else announced(surveyed, reporter, run.bytes, table=run.table is not None)
    )
    began = time.monotonic()
    front = [share for share in surveyed.settings.front if surveyed.costs.attainable(share)]
    if lost := [f"{share:g}" for share in surveyed.settings.front if share not in front]:
        reporter.say(f"Left out of the front, below the cheapest schedule: {', '.join(lost)}.")
    with run.executor.crew(reporter) as crew:
        ready = study(surveyed, reporter, run.bytes, crew)
        evaluator = Evaluator(ready, log, crew)
        errors = known or sensitivity(ready, evaluator, reporter)
        found = evolve(ready, (ready.limit, *front), evaluator, errors, reporter)
    placement = ready.placement or run.placement
    points = tuple(result_of(ready, one, errors, placement, reporter) for one in found)
    result = next(point for point in points if point.report.limit == ready.limit)
    others = tuple(point for point in points if point is not result)
    if foretold is not None:
        reporter.follow(None)
        compared(foretold, time.monotonic() - began, denoiser_of(ready.pipe), reporter)
    if isinstance(budget.compute, Speedup):
        runner = result.runner("diff-es", result.sampling)
        runners, macs = [Runner("dense", result.sampling), runner], [1.0, result.report.macs_ratio]
        _, timing = measure(ready.pipe, runners, 7, reporter, macs)
        told = replace(result.report, measured_speedup=timing.speedup, speedup_doubt=timing.doubt)
        result = replace(result, searched=told)
    return replace(result, others=others)


@dataclass(frozen=True)
class Began:
    """What a search measured when it began, of its journal."""

    method: Method
    prices: MeasuredPrices | None


def began_with(path: Path) -> Began | None:
    """What is in a journal's first line; None where there is none.

    Raises:
        DiffESError: it is not what :func:`open_journal` wrote.
    """
    header = Journal.began_with(path)
    if not header:
        return None
    method, remedy = value_of(header.get("method"), "method"), "Choose another folder to start anew."
    if not isinstance(method, Method):
        raise DiffESError(f"{path}: method", expected="a method", found=type(method).__name__, remedy=remedy)
    prices = validated(_PRICES, header.get("prices"), f"{path}: prices", remedy)
    return Began(method, prices)


def facts_of(surveyed: Survey, table: Sensitivity | None = None) -> dict[str, object]:
    """Everything that the scores and the course of a search depend on, as JSON values."""
    prices = None if surveyed.prices is None else surveyed.prices.measured.model_dump()
    facts = {**describe(surveyed.settings), "budget": surveyed.budget.to_json(), "prices": prices}
    return {
        **facts,
        **identity(surveyed.pipe),
        "table": None if table is None else sha256(repr(table).encode()).hexdigest(),
    }


def open_journal(
    surveyed: Survey,
    path: str | PurePath | None,
    reporter: Reporter,
    *,
    resume: bool,
    table: Sensitivity | None = None,
) -> Journal:
    """The journal of one search, bound to everything that its scores and its course depend on; for who holds it."""
    journal = Journal(Path(path) if path is not None else None, facts_of(surveyed, table), resume=resume)
    if journal.dropped:
        reporter.warn(f"{path}: damaged lines, left out, whose candidates are evaluated again: {journal.dropped}.")
    return journal
