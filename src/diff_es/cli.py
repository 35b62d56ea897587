"""The command line: one command for each thing a user wants, a readable end, and JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from . import inspection, tables
from .artefact import Compressed, load
from .benchmark import compare
from .compress import compress, found_again
from .demo import run_demo
from .errors import DiffESError
from .evaluate import Effort, evaluate
from .export import export
from .library import Method
from .loading import load as load_pipeline
from .loading import reopen
from .obs import Ridge
from .options import (
    MEASURES,
    PLACEMENTS,
    RANKINGS,
    Artefact,
    AsJson,
    Dtype,
    InDtype,
    MeasureName,
    Model,
    Moved,
    OnDevice,
    PlacementName,
    Prune,
    RankingName,
    Scheduler,
    WithScheduler,
)
from .pipeline import Pipeline, Probe, Sampling, classes_of, decode, make_probes, sample
from .placements import Compact
from .progress import Reporter
from .rng import derive_seed
from .settings import Settings, restore
from .store import check_target, make_folder
from .story import contact_sheet, picture, publish, tell
from .study import prepare
from .tiles import load_reference
from .units import Depth, Width

_HELP = "Makes diffusion models faster without retraining: stage-wise structural pruning, searched by evolution."

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console()


def _open(model: str, dtype: Dtype | None, device: str | None, scheduler: Scheduler | None) -> Pipeline:
    kind = None if dtype is None else getattr(torch, dtype.value)
    return load_pipeline(model, dtype=kind, device=device, scheduler=None if scheduler is None else scheduler.value)


def _reopen(folder: Path, model: str | None, device: str | None) -> tuple[Compressed, Pipeline]:
    """An artefact and the pipeline it was made from, from its old place or its new one."""
    fast = load(folder)
    return fast, reopen(fast.about["origin"], model, device)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")


def _version(asked: bool) -> None:
    if asked:
        out.print(version("diff-es"))
        raise typer.Exit


@app.callback(help=_HELP)
def common(
    asked: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="say it and end")] = False,
) -> None:
    """Options of the command itself."""


@app.command("demo")
def demo_command(
    out_folder: Annotated[Path, typer.Option("--out", help="where result.json and report.html go")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    as_json: AsJson = False,
) -> None:
    """The whole story on the bundled model: compress to 0.7 and 0.5 of the compute, compare with every alternative."""
    result, story = run_demo(out_folder, seed, Reporter())
    tables.show_rows(out, story)
    out.print(f"\nLook at [bold]{out_folder / 'report.html'}[/bold]; figures in {out_folder / 'result.json'}.")
    _finish(result, as_json)


@app.command("inspect")
def inspect_command(
    model: Model,
    levels: Annotated[int, typer.Option(min=2, help="levels of the width ladder")] = 8,
    timed: Annotated[bool, typer.Option("--time", help="time every layer at every level too")] = False,
    batch: Annotated[int, typer.Option(min=1, help="samples of the timed calls")] = 16,
    dtype: InDtype = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """What can be pruned, what cannot and why, and what each level costs."""
    found = inspection.inspect(_open(model, dtype, device, None), levels, Reporter(), batch if timed else None)
    tables.show_inspection(out, found)
    _finish(found, as_json)


@app.command("compress")
def compress_command(
    model: Model,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the result")],
    macs: Annotated[float, typer.Option(help="share of the dense compute that may be spent")] = 0.7,
    stages: Annotated[int, typer.Option(help="stages of the trajectory")] = 10,
    steps: Annotated[int, typer.Option(help="sampler steps, as you sample")] = 50,
    guidance: Annotated[float, typer.Option(help="guidance scale, as you sample")] = 4.0,
    batch: Annotated[int, typer.Option(help="samples per pipeline call")] = 16,
    generations: Annotated[int, typer.Option(help="of the search")] = 100,
    population: Annotated[int, typer.Option(help="candidates per generation")] = 20,
    probes: Annotated[int, typer.Option(help="noises every candidate is judged on")] = 8,
    held_out: Annotated[int, typer.Option(help="noises the finalists are judged on")] = 32,
    calibration: Annotated[int, typer.Option(help="samples of the calibration")] = 128,
    survivors: Annotated[int, typer.Option(help="best so far, from which offspring are drawn")] = 5,
    measure: Annotated[MeasureName, typer.Option(help="what closeness means")] = MeasureName.SNR,
    finalists: Annotated[int, typer.Option(help="candidates judged again on held-out noises")] = 5,
    ranking: Annotated[RankingName, typer.Option(help="how groups are ranked")] = RankingName.OBS,
    prune: Annotated[Prune, typer.Option(help="thin layers, or skip whole blocks")] = Prune.WIDTH,
    levels: Annotated[int, typer.Option(min=2, help="levels of the width ladder")] = 8,
    compensate: Annotated[bool, typer.Option(help="re-solve the weights that stay")] = True,
    shared_order: Annotated[
        bool, typer.Option("--shared-order", help="one order of groups for all stages: less memory, less fidelity")
    ] = False,
    placement: Annotated[
        PlacementName, typer.Option(help="where the stages' weights wait; auto: by the memory that is free")
    ] = PlacementName.AUTO,
    tolerance: Annotated[
        float, typer.Option(help="compact: what leaving out parts of a correction may add to a layer's error")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a stopped search")] = False,
    scheduler: WithScheduler = None,
    dtype: InDtype = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate, rank and search the best schedule within the budget; Ctrl-C loses nothing."""
    check_target(out_folder)
    ladder = Width(levels) if prune is Prune.WIDTH else Depth(bypass=compensate)
    settings = Settings(
        sampling=Sampling(steps, guidance, batch),
        stages=stages,
        method=Method(ladder, RANKINGS[ranking], Ridge() if compensate else None, shared_order=shared_order),
        calibration=calibration,
        probes=probes,
        held_out=held_out,
        survivors=survivors,
        measure=MEASURES[measure],
        finalists=finalists,
        population=population,
        generations=generations,
        seed=seed,
    )
    where = Compact(tolerance) if placement is PlacementName.COMPACT else PLACEMENTS[placement]
    start, pipe = time.monotonic(), _open(model, dtype, device, scheduler)
    journal = out_folder / "journal.jsonl"
    try:
        fast = compress(pipe, macs, settings, placement=where, journal=journal, resume=resume, reporter=Reporter())
    except KeyboardInterrupt:
        out.print(f"\nStopped. What was evaluated is in {journal}: run the same command with --resume to go on.")
        raise
    fast.save(out_folder)
    tables.show_compressed(out, fast, out_folder, time.monotonic() - start)
    kept = ("budget", "macs_ratio", "score", "held_out_score")
    _finish({"out": str(out_folder), "levels": fast.schedule.levels, **{key: fast.about[key] for key in kept}}, as_json)


@app.command("sample")
def sample_command(
    folder: Artefact,
    dense: Annotated[bool, typer.Option("--dense", help="the base model instead, for the same noises")] = False,
    count: Annotated[int, typer.Option(min=1, help="how many images")] = 8,
    label: Annotated[list[str] | None, typer.Option(help="class by number or name; repeat for several")] = None,
    seed: Annotated[int, typer.Option(help="of the noises")] = 0,
    steps: Annotated[int | None, typer.Option(help="default those of the artefact")] = None,
    guidance: Annotated[float | None, typer.Option(help="default that of the artefact")] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="where the images go")] = Path("samples"),
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """Images, one PNG each and a contact sheet."""
    fast, pipe = _reopen(folder, model, device)
    own = fast.sampling
    setting = Sampling(own.steps if steps is None else steps, own.guidance if guidance is None else guidance, own.batch)
    probes = make_probes(pipe, count, seed, "sample")
    if label:
        classes = [_class(pipe, entry) for entry in label]
        probes = tuple(Probe(derive_seed(seed, "sample", i), classes[i % len(classes)]) for i in range(count))
    reporter, latents = Reporter(), []
    chunks = [probes[i : i + setting.batch] for i in range(0, count, setting.batch)]
    if dense:
        fast.check(pipe)
    else:
        fast.apply(pipe)  # checks too
    with reporter.task("sample", len(chunks)) as task:
        for chunk in chunks:
            latents.append(sample(pipe, chunk, setting))
            task.advance()
    images = decode(pipe, torch.cat(latents))
    make_folder(out_folder)
    stem, files = "dense" if dense else "diff-es", list[str]()
    for i, image in enumerate(images):
        files.append(str(out_folder / f"{stem}-{i:03d}.png"))
        picture(image).save(files[-1])
    sheet = out_folder / f"{stem}-sheet.png"
    contact_sheet(list(images)).save(sheet)
    out.print(f"{count} images in {out_folder}; all of them in {sheet}")
    _finish({"images": files, "sheet": str(sheet), "labels": [probe.label for probe in probes]}, as_json)


def _class(pipe: Pipeline, label: str) -> int:
    """A class by its number or its name."""
    value: int | None = pipe.labels.get(label, int(label) if label.isdecimal() else None)
    if value is None or value not in classes_of(pipe):
        names = ", ".join(f"{number} {name}" for name, number in list(pipe.labels.items())[:20])
        remedy = f"The classes are {names}." if names else "This model's classes have numbers only."
        raise DiffESError("--label", expected=f"one of {len(classes_of(pipe))} classes", found=label, remedy=remedy)
    return value


@app.command("evaluate")
def evaluate_command(
    folder: Artefact,
    noises: Annotated[int, typer.Option(min=2, help="held-out noises for SNR and PSNR")] = 64,
    images: Annotated[int, typer.Option(min=128, help="images for the Fréchet distance, where it can be had")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="timed rounds")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="samples per timed pipeline call")] = 32,
    random: Annotated[
        int | None, typer.Option(min=1, help="candidates of random search; default as many as ours")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="where result.json and report.html go; default DIR")
    ] = None,
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """The comparison with the dense model and all baselines at equal cost: result.json and report.html."""
    start, reporter = time.monotonic(), Reporter()
    fast, pipe = _reopen(folder, model, device)
    fast.check(pipe)
    settings, budget = restore(fast.about["settings"]), float(fast.about["budget"])
    ready = prepare(pipe, settings, reporter)
    found = {budget: found_again(fast)}
    name = model or fast.about["origin"]["model"]
    reference = load_reference() if name == "bundled" else None
    effort, target = Effort(noises, images, rounds, batch, random=random), out_folder or folder
    evaluation = evaluate(ready, found, reference, effort, target, reporter, fast.plans)
    notes = [] if reference else ["No Fréchet distance: there are no reference statistics for this model."]
    story = tell(ready, name, found, evaluation, effort, time.monotonic() - start, notes)
    result = publish(target, story)
    tables.show_rows(out, story)
    out.print(f"\nLook at [bold]{target / 'report.html'}[/bold].")
    _finish(result, as_json)


@app.command("bench")
def bench_command(
    folder: Artefact,
    batch: Annotated[int, typer.Option(min=1, help="samples per pipeline call")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="timed rounds")] = 7,
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """Latency, MACs and memory of the dense and the routed model, interleaved in one process."""
    fast, pipe = _reopen(folder, model, device)
    result = compare(pipe, fast, batch, rounds, Reporter())
    tables.show_bench(out, result)
    _finish(result, as_json)


@app.command("export")
def export_command(
    folder: Artefact,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the exported pipeline, new or empty")],
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """A result of one stage as a diffusers folder of its own, which loads without Diff-ES."""
    fast, pipe = _reopen(folder, model, device)
    found = export(fast, pipe, out_folder)
    sizes = f"{found.bytes / 1e6:.1f} MB of weights, {found.dense_bytes / 1e6:.1f} before"
    out.print(f"{found.denoiser} with {sizes}. It loads without Diff-ES:")
    out.print(found.call, markup=False, highlight=False, soft_wrap=True)
    kinds = {"pipeline": found.pipeline, "denoiser": found.denoiser, "stock": found.stock}
    weights = {"weight_bytes": found.bytes, "dense_weight_bytes": found.dense_bytes}
    _finish({"out": str(found.folder), **kinds, **weights, "call": found.call}, as_json)


def main() -> None:
    """Run the command line; an error of ours is one message and exit code 2, Ctrl-C is exit code 130."""
    try:
        app()
    except DiffESError as error:
        Console(stderr=True).print(
            f"error: {type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        found = str(error).splitlines()[0]
        Console(stderr=True).print(f"error: {found} Take a smaller --batch.", markup=False, highlight=False)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be read
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
