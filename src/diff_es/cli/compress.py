"""``diff-es compress``: what its options come to, and the command."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..compression.compress import Run, compress
from ..compression.effort import SIZES, Effort, sizes_of
from ..compression.planning import forecast, within_hours
from ..compression.report import SearchReport
from ..compression.settings import Settings
from ..compression.store import check_target
from ..pipelines.families import Pipeline
from ..pipelines.probes import read_prompts
from ..scoring.distribution import OfSets
from ..scoring.fidelity import Measure
from ..utils.errors import DiffESError
from ..utils.locks import held_folder
from ..utils.progress import Reporter
from . import tables
from .compress_options import BudgetOptions, MachineOptions, PruningOptions, SearchOptions, WeightOptions
from .console import finish, open_pipeline, out
from .executor_options import ExecutorOptions
from .grouped import grouped
from .options import MEASURES, Model, SamplingOptions


@grouped
def compress_command(
    model: Model,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the result.")],
    sampling: SamplingOptions,
    budget: BudgetOptions,
    search: SearchOptions,
    pruning: PruningOptions,
    weights: WeightOptions,
    executor: ExecutorOptions,
    machine: MachineOptions,
) -> None:
    """Calibrate, rank and search the best schedule within the budget; Ctrl-C loses nothing."""
    settings, asked = settings_of(sampling, budget, search, pruning), budget.asked()
    journal = out_folder / "journal.jsonl"
    placement, reporter = weights.chosen(), Reporter()
    run = Run(placement, journal, machine.resume, executor.chosen(), search.table, machine.memory, reporter)
    run.check(asked)
    check_target(out_folder)

    def opened() -> tuple[Pipeline, Settings]:
        """The pipeline, and the settings, sized by the hours where these are given."""
        pipe = open_pipeline(model, machine.dtype, machine.device, sampling.scheduler, machine.config)
        if search.hours is None:
            return pipe, settings
        keep = [*given_sizes(search, pruning)]
        return pipe, within_hours(pipe, search.hours, asked, settings, run, keep=keep)

    if machine.dry_run:
        pipe, sized = opened()
        foretold = forecast(pipe, asked, sized, run)
        tables.show_forecast(out, foretold)
        finish(foretold.to_json(), machine.as_json)
        return
    start = time.monotonic()
    with held_folder(out_folder):
        pipe, sized = opened()
        try:
            fast = compress(pipe, asked, sized, run)
        except KeyboardInterrupt as stop:
            if journal.exists():
                stop.add_note(f"What was evaluated is in {journal}: run the same command with --resume to go on.")
            raise
        fast.save(out_folder)
    tables.show_compressed(out, fast, out_folder, time.monotonic() - start)
    shown = [_facts(point.report) for point in fast.front.points]
    said = {"out": str(out_folder), "levels": fast.schedule.levels, **_facts(fast.report), "front": shown}
    finish({**said, **reporter.figures}, machine.as_json)


def settings_of(
    sampling: SamplingOptions, budget: BudgetOptions, search: SearchOptions, pruning: PruningOptions
) -> Settings:
    """As the library takes them; without flags its defaults."""
    return Settings(
        **sizes_of(search.effort or Effort.STANDARD) | given_sizes(search, pruning),
        calibration_samples=pruning.calibration_samples,
        sensitivity_noises=search.sensitivity_noises,
        sensitivity_levels=search.sensitivity_levels,
        sampling=sampling.setting(),
        stages=search.stages,
        levers=search.levers,
        method=pruning.method(),
        measure=_measure(search),
        reference_multiple=search.reference_multiple,
        corrections=search.corrections,
        first_rung=search.first_rung,
        survivors=search.survivors,
        crossover=search.crossover,
        switches=search.switches,
        timestep_offspring=search.timestep_offspring,
        front=_shares(budget.front),
        seed=search.seed,
        prompts=None if sampling.prompts is None else read_prompts(sampling.prompts),
    )


def _measure(search: SearchOptions) -> Measure:
    measure = MEASURES[search.measure]
    if search.features is None:
        return measure
    if not isinstance(measure, OfSets):
        remedy = "Add --measure blend or distribution, or leave it out."
        raise DiffESError("--features", expected="a measure of features", found=str(search.measure), remedy=remedy)
    return replace(measure, features=search.features)


def given_sizes(search: SearchOptions, pruning: PruningOptions) -> dict[str, int]:
    """The sizes that the user says himself.

    Raises:
        DiffESError: both an effort and hours.
    """
    if search.hours is not None and search.effort is not None:
        remedy, found = "Leave one of them out.", f"both --effort {search.effort.value} and --hours {search.hours:g}"
        raise DiffESError("--hours", expected="one of --effort and --hours", found=found, remedy=remedy)
    said = vars(search) | vars(pruning)
    return {name: said[name] for name in SIZES if said[name] is not None}


def _facts(report: SearchReport) -> dict[str, object]:
    """What programs are told of a result."""
    scores = {"score": report.score, "held_out_score": report.held_out_score, "held_out_error": report.held_out_error}
    costs = {"limit": report.limit, "macs_ratio": report.macs_ratio, "cost_ratio": report.cost_ratio}
    return {**costs, **scores, "steps": report.steps}


def _shares(front: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in front.split(",") if part.strip())
    except ValueError as error:
        remedy, found = "Write shares of the compute, such as 0.3,0.5.", front
        raise DiffESError("--front", expected="numbers between commas", found=found, remedy=remedy) from error
