"""The method on one page: survey, calibrate, rank, measure sensitivities, search, make the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any

from .arguments import Place, checked
from .artefact import Compressed, fingerprint, load
from .benchmark import Runner, measure, running
from .budget import Budget
from .compaction import Compaction
from .errors import ArtefactError, DiffESError
from .final import Found, Judged
from .format3 import candidate_of, rows_of
from .journal import Journal
from .judge import Judge
from .layers import Plan
from .limits import Workers
from .loading import origin_of
from .locks import held_file
from .own_sampler import OwnSampler, check_portable
from .pipeline import AnyPipeline, denoiser_of
from .placements import Compact, Placement, Saved, Streamed, parameter_bytes
from .progress import Reporter
from .schedule import Schedule
from .search import Generation
from .searching import evolve
from .sensitivity import Sensitivity, sensitivity
from .settings import Settings, describe, restore
from .store import check_outputs, read_manifest
from .study import Study, study
from .survey import Survey, as_measured, identity, survey


def compacted(ready: Study, found: Found, placement: Compact, reporter: Reporter) -> tuple[tuple[Plan, ...], float]:
    """A result's plans with low-rank corrections, and their score on the fresh probes."""
    compaction, plans = Compaction(ready.library, placement.tolerance), list[Plan]()
    with reporter.task("factor corrections", len(ready.stages)) as task:
        for stage, levels in enumerate(found.candidate.levels):
            plans.append(compaction.plan(stage, levels))
            task.advance()
    return tuple(plans), ready.fresh.of_plans(plans, found.candidate, corrected=found.corrected)


def finish(
    ready: Study,
    share: float,
    found: Found,
    table: Sensitivity,
    placement: Placement | None = None,
    reporter: Reporter | None = None,
) -> Compressed:
    """The found schedule with its plans, ready to run and to save, and the table that another budget can start from."""
    candidate, settings, reporter = found.candidate, ready.settings, reporter or Reporter(quiet=True)
    plans = tuple(ready.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels))
    timesteps = ready.timesteps(candidate)
    extra: dict[str, Any] = {}
    if isinstance(placement, Compact):
        plans, extra["compact_held_out_score"] = compacted(ready, found, placement, reporter)
    if ready.path is not None:
        extra["own_held_out_score"] = ready.fresh.plain(ready.own)
        extra["held_out_score_to_own"] = fmean(ready.fresh_to_own.each(candidate, corrected=found.corrected))
    about: dict[str, Any] = {
        "budget": share,
        "asked": {name: value for name, value in asdict(ready.budget).items() if value is not None},
        "prices": None if ready.prices is None else ready.prices.to_json(),
        "macs_ratio": ready.macs.ratio(candidate),
        "cost_ratio": ready.costs.ratio(candidate),
        "score": found.score,
        "held_out_score": found.held_out,
        "held_out_error": found.error if math.isfinite(found.error) else None,
        "finalists": [[rows_of(one.candidate), *one[1:]] for one in found.finalists],
        "history": [asdict(generation) for generation in found.history],
        "evaluations": found.evaluations,
        "steps": list(ready.steps(candidate)),
        "timesteps": list(ready.trace.timesteps) if timesteps is None else list(timesteps),
        "reference_timesteps": None if ready.reference is None else list(ready.reference),
        "macs_by_level": [list(row) for row in ready.macs.options],
        "units": [unit.name for unit in ready.units],
        "sensitivity": table.to_json(ready),
        "settings": describe(settings),
        "origin": origin_of(ready.pipe),
        **extra,
    }
    base = fingerprint(denoiser_of(ready.pipe))
    schedule = Schedule(ready.stages, candidate.levels)
    corrections = ready.held_out.corrections(candidate) if found.corrected else ()
    return Compressed(schedule, plans, settings.sampling, base, about, placement, timesteps, corrections)


@checked("")
@dataclass(frozen=True)
class Asked:
    """What is asked of a search: whatever can be refused before a model is looked at is refused when this is made.

    Raises:
        DiffESError: a setting of no sense, or a placement beside ``budget.weights_gb``, which says it.
        ArtefactError: ``table`` is no artefact.
        StorageError: the journal cannot be written.
    """

    budget: Budget
    settings: Settings
    placement: Saved | None = None
    journal: Place | None = None
    resume: bool = False
    workers: Workers = 1
    table: Place | None = None
    reporter: Reporter | None = None

    def __post_init__(self) -> None:
        if self.placement is not None and self.budget.weights_gb is not None:
            found, remedy = f"{type(self.placement).__name__} beside weights_gb", "Leave one of them out."
            raise DiffESError("placement", expected="none, since the result is streamed", found=found, remedy=remedy)
        if self.table is not None:
            read_manifest(Path(self.table))
        if self.journal is not None:
            check_outputs(Path(self.journal).parent, Path(self.journal).name)


def compress(
    pipe: AnyPipeline,
    macs: float | None = None,
    settings: Settings | None = None,
    *,
    speedup: float | None = None,
    weights_gb: float | None = None,
    placement: Saved | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    table: str | Path | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Compressed:
    """Make a pipeline faster: calibrate it on its own trajectories, rank, and search a schedule within the budget.

    Args:
        pipe: a pipeline of one of the classes in ``loading.SUPPORTED``, with the scheduler you sample with, or a
            denoiser with a loop of your own (:class:`OwnSampler`); it is left as it was.
        macs: the share of the dense trajectory's multiply-accumulates that may be spent, in (0, 1]; by default 0.7.
        settings: everything else that the result depends on; give at least your own steps and guidance.
        speedup: in place of ``macs``, how many times faster the whole pipeline is to be on this device, at your own
            batch.
        weights_gb: the most GB of weights on the device, besides either; the result is placed ``Streamed``.
        placement: where the weights of the stages wait when the result runs; None leaves it to the memory that is free
            then. ``Compact`` factors the corrections, and measures what that costs.
        journal: a file to which every evaluation is appended, so that a stopped search can be resumed.
        resume: go on with an existing journal, to the result that an uninterrupted run gives; where there is none, the
            search starts anew, and the reporter says so.
        workers: processes that score candidates at the same time, each with a copy of the pipeline; they are dealt over
            the CUDA devices. Their number changes nothing but the time.
        table: the folder of an earlier result of this model and these settings, whose sensitivities are taken, not
            measured anew: another budget then costs its search alone.
        reporter: shows progress; default silent.
        changes: single settings by name, such as ``steps=20, guidance=2.0, generations=50``.

    Raises:
        UnsupportedModel: a pipeline that Diff-ES cannot drive.
        BudgetOutOfReach: before any search; says what is attainable.
        DiffESError: bad settings, or a journal of other settings.
        StorageError: another process searches with this journal; or the disk refused.
    """
    start, budget = Settings() if settings is None else settings, Budget(macs, speedup, weights_gb)
    asked = Asked(budget, start, placement, journal, resume, workers, table, reporter)
    with held_file(journal):
        return _compress(pipe, replace(asked, settings=asked.settings.changed(**changes)))


def _compress(pipe: AnyPipeline, asked: Asked) -> Compressed:
    """:func:`compress`, while nobody else works on the journal."""
    reporter, settings, budget = asked.reporter or Reporter(quiet=True), asked.settings, asked.budget
    journal, resume, table, placement = asked.journal, asked.resume, asked.table, asked.placement
    speedup = budget.speedup
    if asked.workers > 1 and isinstance(pipe, OwnSampler):
        check_portable(pipe)
    earlier, priced = None if table is None else load(table).about, None
    if earlier is not None and "sensitivity" not in earlier:
        expected, remedy = "the sensitivities that a search measured", "Leave the table out."
        raise ArtefactError(str(table), expected=expected, found="a result made by hand", remedy=remedy)
    if earlier is not None:
        settings = as_measured(settings, earlier["settings"])
    if resume:
        header = {} if journal is None else Journal.began_with(Path(journal))
        settings, priced = as_measured(settings, header), header.get("prices")
        if not header:
            reporter.say(f"There is no journal to resume{f' at {journal}' if journal else ''}: the search starts anew.")
    surveyed = survey(pipe, settings, reporter, budget, priced)
    known = None if earlier is None else Sensitivity.restored(earlier["sensitivity"], surveyed, str(table))
    log = open_journal(surveyed, budget, journal, reporter, resume=resume, table=known)
    ready = study(surveyed, reporter)
    front = [share for share in ready.settings.front if ready.costs.attainable(share)]
    if lost := [f"{share:g}" for share in ready.settings.front if share not in front]:
        reporter.say(f"Left out of the front, below the cheapest schedule: {', '.join(lost)}.")
    with Judge(ready, log, asked.workers) as judge:
        errors = known or sensitivity(ready, judge, reporter)
        found = evolve(ready, (ready.share, *front), judge, errors, reporter)
    placement = ready.placement or placement
    results = {share: finish(ready, share, one, errors, placement, reporter) for share, one in found.items()}
    others = tuple(result for share, result in results.items() if share != ready.share)
    result = results[ready.share]
    if speedup is not None:
        runner = running("diff-es", result, result.sampling)
        _, timing = measure(ready.pipe, [Runner("dense", result.sampling), runner], 7, reporter)
        result = replace(result, about={**result.about, "speedup": speedup, "measured_speedup": timing.speedup})
    return replace(result, others=others)


def open_journal(
    surveyed: Survey,
    budget: Budget,
    path: str | PurePath | None,
    reporter: Reporter,
    *,
    resume: bool,
    table: Sensitivity | None = None,
) -> Journal:
    """The journal of one search, bound to everything that its scores and its course depend on; for who holds it."""
    prices = None if surveyed.prices is None else surveyed.prices.to_json()
    facts = {**describe(surveyed.settings), "budget": budget.to_json(), "prices": prices, **identity(surveyed.pipe)}
    facts["table"] = None if table is None else sha256(repr(table).encode()).hexdigest()
    journal = Journal(Path(path) if path is not None else None, facts, resume=resume)
    if journal.dropped:
        reporter.warn(f"{path}: damaged lines, left out, whose candidates are evaluated again: {journal.dropped}.")
    return journal


def found_again(fast: Compressed) -> Found:
    """What the search came back with, from a result that was saved."""
    about = fast.about
    few, finalists = restore(about["settings"]).held_out, list[Judged]()  # few: where it is not said on how many noises
    for rows, score, held_out, *rest in about["finalists"]:
        candidate = candidate_of(rows, len(fast.schedule.stages), steps=fast.timesteps is not None)
        finalists.append(Judged(candidate, score, held_out, *(rest or [few])))
    error, winner = about.get("held_out_error"), finalists[0]
    return Found(
        winner.candidate,
        about["score"],
        about["held_out_score"],
        tuple(finalists),
        tuple(Generation(**generation) for generation in about["history"]),
        about["evaluations"],
        math.inf if error is None else error,
        winner.corrected,
    )


def asked_again(fast: Compressed, pipe: AnyPipeline, journal: Path) -> tuple[Budget, Mapping[str, Any] | None]:
    """The budget that a saved result keeps, and the prices by which it does, from ``Prices.to_json``.

    Args:
        pipe: what it was made for.
        journal: of its search, which may be gone. It is asked where the result, of an earlier version, does not say.

    Raises:
        DiffESError: a budget of time whose prices are not known.
    """
    about = fast.about
    asked, prices = about.get("asked"), about.get("prices")
    if asked is None:
        header = Journal.began_with(journal)
        asked, prices = header.get("budget", {}), header.get("prices")
        if not asked and about["cost_ratio"] != about["macs_ratio"]:
            remedy = "Compress again with the same --speedup into another folder; --table takes what was measured here."
            expected, found = "the prices that its budget of time was kept by", "none: an earlier version made it"
            raise DiffESError("result", expected=expected, found=found, remedy=remedy)
        if not asked and (limit := _limit(fast)) is not None:
            asked = {"weights_gb": limit * parameter_bytes(denoiser_of(pipe)) / 1e9}
    if asked.get("speedup") is not None:
        return Budget(speedup=asked["speedup"], weights_gb=asked.get("weights_gb")), prices
    return Budget(float(about["budget"]), weights_gb=asked.get("weights_gb")), None


def _limit(fast: Compressed) -> float | None:
    """The share of the dense weights that a result keeps within, if it does: streamed, and no stage is dense."""
    placement, steps = fast.placement, fast.about["steps"]
    if not isinstance(placement, Streamed) or placement.limit >= 1:
        return None
    running = [row for row, count in zip(fast.schedule.levels, steps, strict=True) if count]
    return placement.limit if all(len(row) == 1 and row[0] for row in running) else None
