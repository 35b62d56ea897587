"""``diff-es compress``: the command with the most options, and what it makes of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import tables
from .budget import Budget
from .compress import Run, compress
from .conditioning import read_prompts
from .console import finish, open_pipeline, out
from .errors import DiffESError
from .library import Method
from .locks import held_folder
from .options import (
    MEASURES,
    PLACEMENTS,
    RANKINGS,
    AsJson,
    Config,
    Frames,
    GuidanceScale,
    Height,
    InDtype,
    MeasureName,
    Model,
    Negative,
    NumInferenceSteps,
    OnDevice,
    PlacementName,
    Prompts,
    Prune,
    RankingName,
    WithScheduler,
)
from .options import Width as PixelWidth
from .pipeline import Sampling
from .placements import Compact, Saved
from .progress import Reporter
from .reported import SearchReport
from .settings import Levers, Settings
from .store import check_target
from .units import Depth, Grain, Ladder, Width


def compress_command(
    model: Model,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the result")],
    macs: Annotated[
        float | None, typer.Option(help="share of the dense compute that may be spent; default 0.7")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="instead: how many times faster the pipeline is to be on this device")
    ] = None,
    weights_gb: Annotated[
        float | None, typer.Option("--weights-gb", help="the most GB of weights on the device; streams the rest")
    ] = None,
    levers: Annotated[Levers, typer.Option(help="what changes from stage to stage")] = Levers.BOTH,
    stages: Annotated[int, typer.Option(help="stages of the trajectory")] = 10,
    steps: NumInferenceSteps = None,
    guidance: GuidanceScale = None,
    batch: Annotated[int, typer.Option(help="samples per pipeline call")] = 16,
    generations: Annotated[int, typer.Option(help="of the search")] = 40,
    population: Annotated[int, typer.Option(help="candidates per generation")] = 20,
    probes: Annotated[int, typer.Option(help="noises candidates are judged on")] = 32,
    heat: Annotated[
        int | None, typer.Option(help="the first of them, after which the worse half drops out; default half, 0: none")
    ] = None,
    held_out: Annotated[
        int, typer.Option(help="noises the finalists are judged on, up to four times as many where they are close")
    ] = 32,
    calibration: Annotated[int, typer.Option(help="samples of the calibration")] = 128,
    survivors: Annotated[int, typer.Option(help="best so far, from which offspring are drawn")] = 5,
    front: Annotated[str, typer.Option(help="other budgets to search along, such as 0.3,0.5; '' for none")] = (
        "0.3,0.4,0.5,0.6,0.75,0.9"
    ),
    measure: Annotated[MeasureName, typer.Option(help="what closeness means")] = MeasureName.SNR,
    finalists: Annotated[
        int, typer.Option(help="best candidates judged again on held-out noises, beside rules of hand and random ones")
    ] = 5,
    ranking: Annotated[RankingName, typer.Option(help="how groups are ranked")] = RankingName.OBS,
    prune: Annotated[Prune, typer.Option(help="thin layers, skip whole blocks, or either")] = Prune.WIDTH,
    units: Annotated[
        Grain | None, typer.Option(help="what carries its own level; default block, or whole where blocks are ranked")
    ] = None,
    levels: Annotated[int | None, typer.Option(help="levels of the width ladder; default 8")] = None,
    corrections: Annotated[
        int, typer.Option(help="directions along which chosen steps are corrected; 0: they stay the sampler's own")
    ] = 4,
    compensate: Annotated[bool, typer.Option(help="re-solve the weights that stay")] = True,
    shared_order: Annotated[
        bool, typer.Option("--shared-order", help="one order of groups for all stages: less memory, less fidelity")
    ] = False,
    placement: Annotated[
        PlacementName, typer.Option(help="where the stages' weights wait; auto: by the memory that is free")
    ] = PlacementName.AUTO,
    tolerance: Annotated[
        float | None,
        typer.Option(help="compact: what leaving out parts of a correction may add to a layer's error; default 0.1"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    table: Annotated[
        Path | None,
        typer.Option(help="an earlier result of the same settings, whose sensitivities are used again"),
    ] = None,
    workers: Annotated[int, typer.Option(help="processes that score candidates at the same time")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a stopped search")] = False,
    prompts: Prompts = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: PixelWidth = None,
    frames: Frames = None,
    scheduler: WithScheduler = None,
    config: Config = None,
    dtype: InDtype = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate, rank and search the best schedule within the budget; Ctrl-C loses nothing."""
    method = Method(_ladder(prune, levels, compensate), RANKINGS[ranking], shared_order=shared_order, grain=units)
    settings = Settings(
        sampling=Sampling(steps, guidance, batch, negative_prompt, height, width, frames),
        stages=stages,
        levers=levers,
        method=method if compensate else replace(method, compensation=None),
        calibration=calibration,
        corrections=corrections,
        probes=probes,
        heat=heat,
        held_out=held_out,
        survivors=survivors,
        front=_shares(front),
        measure=MEASURES[measure],
        finalists=finalists,
        population=population,
        generations=generations,
        seed=seed,
        prompts=None if prompts is None else read_prompts(prompts),
    )
    where, journal = _placement(placement, tolerance), out_folder / "journal.jsonl"
    budget, run = Budget.of(None, macs, speedup, weights_gb), Run(where, journal, resume, workers, table, Reporter())
    run.check(budget)
    check_target(out_folder)
    start = time.monotonic()
    with held_folder(out_folder):
        pipe = open_pipeline(model, dtype, device, scheduler, config)
        try:
            fast = compress(pipe, budget, settings, run)
        except KeyboardInterrupt as stop:
            if journal.exists():
                stop.add_note(f"What was evaluated is in {journal}: run the same command with --resume to go on.")
            raise
        fast.save(out_folder)
    tables.show_compressed(out, fast, out_folder, time.monotonic() - start)
    shown = [_facts(point.report) for point in fast.front.points]
    said = {"out": str(out_folder), "levels": fast.schedule.levels, **_facts(fast.report), "front": shown}
    finish(said, as_json)


def _facts(report: SearchReport) -> dict[str, object]:
    """What programs are told of a result."""
    scores = {"score": report.score, "held_out_score": report.held_out_score, "held_out_error": report.held_out_error}
    costs = {"limit": report.limit, "macs_ratio": report.macs_ratio, "cost_ratio": report.cost_ratio}
    return {**costs, **scores, "steps": report.steps}


def _ladder(prune: Prune, levels: int | None, compensate: bool) -> Ladder:
    depth = Depth(bypass=compensate)
    if prune is not Prune.DEPTH:
        return Width(8 if levels is None else levels, depth=depth if prune is Prune.BOTH else None)
    if levels is not None:
        found = f"{levels} beside --prune depth, whose levels are numbers of blocks"
        raise DiffESError("--levels", expected="none", found=found, remedy="Leave one of them out.")
    return depth


def _placement(name: PlacementName, tolerance: float | None) -> Saved | None:
    if name is PlacementName.COMPACT:
        return Compact() if tolerance is None else Compact(tolerance)
    if tolerance is not None:
        found, remedy = f"{tolerance:g} beside --placement {name.value}", "Say --placement compact, or leave it out."
        raise DiffESError("--tolerance", expected="none", found=found, remedy=remedy)
    return PLACEMENTS[name]


def _shares(front: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in front.split(",") if part.strip())
    except ValueError as error:
        remedy, found = "Write shares of the compute, such as 0.3,0.5.", front
        raise DiffESError("--front", expected="numbers between commas", found=found, remedy=remedy) from error
