"""``diff-es compress``: the command with the most options, and what it makes of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ..compression.compress import Run, compress
from ..compression.forecast import forecast
from ..compression.report import SearchReport
from ..compression.settings import Levers, Settings
from ..compression.store import check_target
from ..pipelines.probes import read_prompts
from ..pruning.budget import Budget
from ..pruning.compensation import Ridge
from ..pruning.granularity import Depth, Granularity, Ladder, Width
from ..pruning.importance import Obs, Ranking
from ..pruning.library import Method
from ..routing.placements import Compact, Saved, Streamed
from ..utils.errors import DiffESError
from ..utils.locks import held_folder
from ..utils.progress import Reporter
from . import tables
from .console import finish, open_pipeline, out
from .grouped import grouped
from .options import (
    MEASURES,
    PLACEMENTS,
    RANKINGS,
    AsJson,
    Config,
    InDtype,
    MeasureName,
    Model,
    OnDevice,
    PlacementName,
    Prune,
    RankingName,
    SamplingOptions,
)


@dataclass(frozen=True)
class BudgetOptions:
    """What the result may cost."""

    title: ClassVar = "Budget"

    macs: Annotated[
        float | None, typer.Option(help="Share of the dense multiply-accumulates that may be spent; default 0.7.")
    ] = None
    speedup: Annotated[
        float | None, typer.Option(help="In its place, how many times faster the pipeline is to be on this device.")
    ] = None
    weights_gb: Annotated[
        float | None, typer.Option(help="The most GB of weights on the device; the others are streamed.")
    ] = None
    front: Annotated[str, typer.Option(help="Other shares to search along, such as 0.3,0.5; none by default.")] = ""

    def asked(self) -> Budget:
        """As the library takes it."""
        return Budget.of(None, self.macs, self.speedup, self.weights_gb)


@dataclass(frozen=True)
class SearchOptions:
    """How schedules are searched and judged."""

    title: ClassVar = "Search"

    levers: Annotated[Levers, typer.Option(help="What may change from stage to stage.")] = Levers.BOTH
    stages: Annotated[int, typer.Option(help="Stages that the trajectory is cut into.")] = 10
    measure: Annotated[MeasureName, typer.Option(help="What closeness to the dense model means.")] = MeasureName.SNR
    search_noises: Annotated[int, typer.Option(help="Noises that candidates are judged on.")] = 32
    first_rung: Annotated[
        int | None,
        typer.Option(help="The first of them, after which the worse half drops out; 0: none; default half of them."),
    ] = None
    sensitivity_noises: Annotated[int, typer.Option(help="The first of them, on which sensitivities are measured.")] = (
        10
    )
    generations: Annotated[int, typer.Option(help="Generations of the search.")] = 40
    population: Annotated[int, typer.Option(help="Candidates per generation.")] = 20
    survivors: Annotated[int, typer.Option(help="Best candidates so far, from which offspring are drawn.")] = 5
    crossover: Annotated[float, typer.Option(help="Share of offspring by crossover; the others are mutations.")] = 0.3
    switches: Annotated[
        int | None, typer.Option(help="The most level switches of a mutation; default by the number of choices.")
    ] = None
    timestep_generations: Annotated[int, typer.Option(help="Generations in which timesteps are moved; 1: none.")] = 16
    timestep_offspring: Annotated[int, typer.Option(help="Candidates in each of these.")] = 8
    finalists: Annotated[
        int, typer.Option(help="Best candidates that are judged again, beside rules of hand and random ones.")
    ] = 5
    held_out_noises: Annotated[
        int, typer.Option(help="Noises that they are judged on, up to four times as many where they are close.")
    ] = 32
    reference_multiple: Annotated[
        int, typer.Option(help="Times the user's own steps that the run takes which results are compared with.")
    ] = 4
    corrections: Annotated[
        int, typer.Option(help="The most directions along which chosen steps are corrected; 0: none.")
    ] = 4
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0
    table: Annotated[
        Path | None, typer.Option(help="Earlier result of the same settings, whose sensitivities are used again.")
    ] = None


@dataclass(frozen=True)
class PruningOptions:
    """What a level takes away, and how the rest makes up for it."""

    title: ClassVar = "Pruning"

    prune: Annotated[Prune, typer.Option(help="Whether levels thin layers, skip whole blocks, or either.")] = (
        Prune.WIDTH
    )
    units: Annotated[
        Granularity | None,
        typer.Option(help="What carries its own level; default block, or whole where blocks are ranked."),
    ] = None
    levels: Annotated[int | None, typer.Option(help="Levels of width; default 8.")] = None
    multiple: Annotated[
        int | None, typer.Option(help="Channels that stay come in multiples of it; default as the device likes.")
    ] = None
    ranking: Annotated[RankingName, typer.Option(help="How groups are ranked.")] = RankingName.OBS
    calibration_samples: Annotated[int, typer.Option(help="Samples that calibration runs.")] = 128
    compensate: Annotated[bool, typer.Option(help="Whether the weights that stay are solved anew.")] = True
    damping: Annotated[float, typer.Option(help="Damping of the Hessian, relative to its mean diagonal.")] = 0.01
    stagewise: Annotated[bool, typer.Option(help="Whether each stage has statistics of its own.")] = True
    shared_order: Annotated[
        bool, typer.Option(help="Whether all stages give up groups in one order: less memory, less fidelity.")
    ] = False

    def method(self) -> Method:
        """As the library takes it."""
        ranking: Ranking = Obs(self.damping) if self.ranking is RankingName.OBS else RANKINGS[self.ranking]
        return Method(
            self._ladder(),
            ranking,
            Ridge(self.damping) if self.compensate else None,
            stagewise=self.stagewise,
            shared_order=self.shared_order,
            granularity=self.units,
        )

    def _ladder(self) -> Ladder:
        depth = Depth(bypass=self.compensate)
        if self.prune is not Prune.DEPTH:
            levels = 8 if self.levels is None else self.levels
            return Width(levels, self.multiple, depth=depth if self.prune is Prune.BOTH else None)
        if self.levels is not None or self.multiple is not None:
            found = f"{self.levels or self.multiple} beside --prune depth, whose levels are numbers of blocks"
            where = "--levels" if self.levels is not None else "--multiple"
            raise DiffESError(where, expected="none", found=found, remedy="Leave one of them out.")
        return depth


@dataclass(frozen=True)
class WeightOptions:
    """Where the weights of the stages wait when the result runs."""

    title: ClassVar = "Where weights wait"

    placement: Annotated[
        PlacementName, typer.Option(help="Where the weights of stages wait; auto: by the memory that is free.")
    ] = PlacementName.AUTO
    tolerance: Annotated[
        float | None,
        typer.Option(help="What leaving out parts of a correction may add to a layer's error (compact); default 0.1."),
    ] = None
    limit: Annotated[
        float | None,
        typer.Option(help="The most weights on the device, relative to the dense model's (streamed); default 1.15."),
    ] = None

    def chosen(self) -> Saved | None:
        """As the library takes it."""
        own = {PlacementName.COMPACT: ("--tolerance", self.tolerance), PlacementName.STREAMED: ("--limit", self.limit)}
        for name, (flag, value) in own.items():
            if value is not None and self.placement is not name:
                found = f"{value:g} beside --placement {self.placement.value}"
                remedy = f"Say --placement {name.value}, or leave it out."
                raise DiffESError(flag, expected="none", found=found, remedy=remedy)
        if self.tolerance is not None:
            return Compact(self.tolerance)
        return PLACEMENTS[self.placement] if self.limit is None else Streamed(self.limit)


@dataclass(frozen=True)
class MachineOptions:
    """What it runs on, and what is said of it."""

    title: ClassVar = "Machine"

    config: Config = None
    dtype: InDtype = None
    device: OnDevice = None
    workers: Annotated[int, typer.Option(help="Processes that score candidates at the same time.")] = 1
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="What statistics and weights of levels may take beside the model; more waits on disk; default half.",
        ),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped search.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing else.")] = False
    as_json: AsJson = False


@grouped
def compress_command(
    model: Model,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the result.")],
    sampling: SamplingOptions,
    budget: BudgetOptions,
    search: SearchOptions,
    pruning: PruningOptions,
    weights: WeightOptions,
    machine: MachineOptions,
) -> None:
    """Calibrate, rank and search the best schedule within the budget; Ctrl-C loses nothing."""
    settings, asked = settings_of(sampling, budget, search, pruning), budget.asked()
    journal = out_folder / "journal.jsonl"
    placement, reporter = weights.chosen(), Reporter()
    run = Run(placement, journal, machine.resume, machine.workers, search.table, machine.memory, reporter)
    run.check(asked)
    check_target(out_folder)
    if machine.dry_run:
        dense = open_pipeline(model, machine.dtype, machine.device, sampling.scheduler, machine.config)
        foretold = forecast(dense, asked, settings, run)
        tables.show_forecast(out, foretold)
        finish(foretold.to_json(), machine.as_json)
        return
    start = time.monotonic()
    with held_folder(out_folder):
        pipe = open_pipeline(model, machine.dtype, machine.device, sampling.scheduler, machine.config)
        try:
            fast = compress(pipe, asked, settings, run)
        except KeyboardInterrupt as stop:
            if journal.exists():
                stop.add_note(f"What was evaluated is in {journal}: run the same command with --resume to go on.")
            raise
        fast.save(out_folder)
    tables.show_compressed(out, fast, out_folder, time.monotonic() - start)
    shown = [_facts(point.report) for point in fast.front.points]
    said = {"out": str(out_folder), "levels": fast.schedule.levels, **_facts(fast.report), "front": shown}
    finish(said, machine.as_json)


def settings_of(
    sampling: SamplingOptions, budget: BudgetOptions, search: SearchOptions, pruning: PruningOptions
) -> Settings:
    """As the library takes them; without flags its defaults."""
    return Settings(
        sampling=sampling.setting(),
        stages=search.stages,
        levers=search.levers,
        method=pruning.method(),
        measure=MEASURES[search.measure],
        calibration_samples=pruning.calibration_samples,
        reference_multiple=search.reference_multiple,
        corrections=search.corrections,
        search_noises=search.search_noises,
        first_rung=search.first_rung,
        sensitivity_noises=search.sensitivity_noises,
        finalists=search.finalists,
        held_out_noises=search.held_out_noises,
        population=search.population,
        generations=search.generations,
        survivors=search.survivors,
        crossover=search.crossover,
        switches=search.switches,
        timestep_generations=search.timestep_generations,
        timestep_offspring=search.timestep_offspring,
        front=_shares(budget.front),
        seed=search.seed,
        prompts=None if sampling.prompts is None else read_prompts(sampling.prompts),
    )


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
