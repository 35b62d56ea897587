"""The command line: one command for each thing a user wants, a readable end, and JSON for programs."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..compression.export import check_new, export
from ..compression.reopening import asked_again, found_again
from ..compression.study import prepare
from ..evaluation import inspection
from ..evaluation.assemble import PUBLISHED, Provenance, contact_sheet, picture, publish, tell
from ..evaluation.benchmark import compare
from ..evaluation.demo import SETTINGS, run_demo
from ..evaluation.evaluate import Conduct, evaluate
from ..evaluation.tiles_reference import load_reference
from ..pipelines.bundled import MODELS
from ..pipelines.families import Asked, Pipeline, Sampling, family_of
from ..pipelines.probes import Probe, conditions_of, make_probes
from ..pipelines.sampling import decode, sample
from ..pruning.granularity import Width
from ..utils.errors import DiffESError
from ..utils.files import check_outputs, make_folder
from ..utils.progress import Reporter
from ..utils.seeds import derive_seed
from ..utils.signals import Listener
from . import tables
from .compress import compress_command
from .console import finish, open_pipeline, out, print_anywhere, reopened
from .ending import Ending
from .evaluate import ExtentOptions, RecipeOptions, evaluate_recipe
from .executor_options import ExecutorOptions
from .grouped import Sections, grouped
from .options import (
    Artefact,
    ArtefactOrNone,
    AsJson,
    Config,
    Images,
    InDtype,
    Model,
    Moved,
    OnDevice,
    Point,
    SizeOptions,
    Trials,
)
from .play import play_command

_HELP = "Makes diffusion models faster without retraining: stage-wise structural pruning, searched by evolution."

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _version(asked: bool) -> None:
    if asked:
        out.print(version("diff-es"))
        raise typer.Exit


app.command("compress", cls=Sections)(compress_command)
app.command("play", cls=Sections)(play_command)


@app.callback(help=_HELP)
def common(
    asked: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="say it and end")] = False,
) -> None:
    """Options of the command itself."""


@app.command("demo", cls=Sections)
def demo_command(
    out_folder: Annotated[Path, typer.Option("--out", help="where result.json and report.html go")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    as_json: AsJson = False,
) -> None:
    """The whole story on the bundled model: compress to 0.7 and 0.5 of the compute, compare with every alternative."""
    replace(SETTINGS, seed=seed)  # refused here, if it is none
    check_outputs(out_folder, *PUBLISHED)
    result, story = run_demo(out_folder, seed, Reporter())
    tables.show_rows(out, story)
    out.print(f"\nLook at {out_folder / 'report.html'}; figures in {out_folder / 'result.json'}.")
    finish(result, as_json)


@app.command("inspect", cls=Sections)
@grouped
def inspect_command(
    model: Model,
    size: SizeOptions,
    levels: Annotated[int, typer.Option(help="levels of the width ladder")] = 8,
    timed: Annotated[bool, typer.Option("--time", help="time every layer at every level too")] = False,
    batch: Annotated[int, typer.Option(help="samples of the timed calls")] = 16,
    config: Config = None,
    dtype: InDtype = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """What can be pruned, what cannot and why, and what each level costs."""
    ladder, sampling = Width(levels), Sampling(10, None, batch, None, size.height, size.width, size.num_frames)
    pipe = open_pipeline(model, dtype, device, None, config)
    found = inspection.inspect(pipe, ladder.levels, Reporter(), sampling, timed=timed)
    tables.show_inspection(out, found)
    finish(found, as_json)


@app.command("sample", cls=Sections)
def sample_command(
    folder: Artefact,
    dense: Annotated[bool, typer.Option("--dense", help="the base model instead, for the same noises")] = False,
    count: Annotated[int, typer.Option(help="how many images")] = 8,
    label: Annotated[list[str] | None, typer.Option(help="class by number or name; repeat for several")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="of a text pipeline; repeat for several")] = None,
    seed: Annotated[int, typer.Option(help="of the noises")] = 0,
    steps: Annotated[
        int | None, typer.Option("--num-inference-steps", "--steps", help="default those of the artefact")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance-scale", "--guidance", help="default that of the artefact")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="where the images go")] = Path("samples"),
    point: Point = None,
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """Images, one PNG each and a contact sheet."""
    asked = Images(count, seed, steps, guidance)
    check_outputs(out_folder)
    fast, pipe = reopened(folder, model, device, point)
    setting = asked.of(fast.sampling)
    probes = make_probes(pipe, count, seed, "sample", prompt)
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
    images = decode(pipe, torch.cat(latents), setting.batch)
    make_folder(out_folder)
    stem, files = "dense" if dense else "diff-es", list[str]()
    for i, image in enumerate(images):
        files.append(str(out_folder / f"{stem}-{i:03d}.png"))
        picture(image).save(files[-1])
    sheet = out_folder / f"{stem}-sheet.png"
    contact_sheet(list(images)).save(sheet)
    out.print(f"{count} images in {out_folder}; all of them in {sheet}")
    conditions = [probe.condition for probe in probes]
    finish({"images": files, "sheet": str(sheet), "prompts" if _reads(pipe) else "labels": conditions}, as_json)


def _reads(pipe: Pipeline) -> bool:
    family = family_of(pipe)
    return family is not None and family.asked is Asked.PROMPTS


def _class(pipe: Pipeline, label: str) -> int:
    """A class by its number or its name."""
    classes = conditions_of(pipe)
    if not isinstance(classes[0], int):
        found, remedy = f"{type(pipe).__name__}", "Say --prompt." if _reads(pipe) else "Leave it out."
        raise DiffESError("--label", expected="a pipeline of classes", found=found, remedy=remedy)
    value: int | None = pipe.labels.get(label, int(label) if label.isdecimal() else None)
    if value is None or value not in classes:
        names = ", ".join(f"{number} {name}" for name, number in list(pipe.labels.items())[:20])
        remedy = f"The classes are {names}." if names else "This model's classes have numbers only."
        raise DiffESError("--label", expected=f"one of {len(classes)} classes", found=label, remedy=remedy)
    return value


@app.command("evaluate", cls=Sections)
@grouped
def evaluate_command(
    by: RecipeOptions,
    how_much: ExtentOptions,
    who: ExecutorOptions,
    folder: ArtefactOrNone = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="where results go; default DIR, or by a recipe evaluation-NAME")
    ] = None,
    point: Point = None,
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """The comparison with the dense model and all baselines at equal cost, or by a recipe beside published figures."""
    recipe = by.asked(folder, point, model, how_much)
    if recipe is not None:
        evaluate_recipe(recipe, by, who, out_folder, device, as_json=as_json)
        return
    assert folder is not None, "as there is no recipe"
    start, reporter = time.monotonic(), Reporter()
    extent, target = how_much.extent(), out_folder or folder
    conduct = Conduct(reporter, who.chosen(), target)
    check_outputs(target, *PUBLISHED)
    resumed = any(target.glob("random-*.jsonl"))
    fast, pipe = reopened(folder, model, device, point)
    fast.check(pipe)
    ready, found = prepare(pipe, fast.report.settings, reporter, *asked_again(fast, pipe)), (found_again(fast.report),)
    name = model or (fast.origin.model if fast.origin else "")
    reference = load_reference() if name in MODELS else None
    evaluation = evaluate(ready, found, reference, extent, conduct, fast)
    notes = () if reference else ("No Fréchet distance: there are no reference statistics for this model.",)
    command, table = shlex.join(["diff-es", *sys.argv[1:]]), fast.report.sensitivity.table
    front = tuple(found_again(other.report) for other in fast.others)
    made = Provenance(time.monotonic() - start, command, table, notes, front, resumed)
    story = tell(ready, name, found, evaluation, extent, made)
    result = publish(target, story)
    tables.show_rows(out, story)
    out.print(f"\nLook at {target / 'report.html'}.")
    finish({**result, **reporter.figures}, as_json)


@app.command("bench", cls=Sections)
def bench_command(
    folder: Artefact,
    batch: Annotated[list[int] | None, typer.Option(help="samples per pipeline call; repeat for several")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="compile the denoiser's blocks first")] = False,
    rounds: Annotated[int, typer.Option(help="timed rounds")] = 7,
    point: Point = None,
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """Latency, MACs and memory of the dense and the routed model, interleaved in one process."""
    trials = Trials(tuple(batch or [32]), rounds)
    fast, pipe = reopened(folder, model, device, point)
    result = compare(pipe, fast, trials.batch, trials.rounds, Reporter(), compiled=compiled)
    tables.show_bench(out, result)
    finish(result, as_json)


@app.command("export", cls=Sections)
def export_command(
    folder: Artefact,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the exported pipeline, new or empty")],
    point: Point = None,
    model: Moved = None,
    device: OnDevice = None,
    as_json: AsJson = False,
) -> None:
    """A result of one stage as a diffusers folder of its own, which loads without Diff-ES."""
    check_new(out_folder)
    fast, pipe = reopened(folder, model, device, point)
    found = export(fast, pipe, out_folder)
    sizes = f"{found.bytes / 1e6:.1f} MB of weights, {found.dense_bytes / 1e6:.1f} before"
    out.print(f"{found.denoiser} with {sizes}. It loads without Diff-ES:")
    out.print(found.call, highlight=False, soft_wrap=True)
    kinds = {"pipeline": found.pipeline, "denoiser": found.denoiser, "stock": found.stock}
    weights = {"weight_bytes": found.bytes, "dense_weight_bytes": found.dense_bytes}
    finish({"out": str(found.folder), **kinds, **weights, "call": found.call}, as_json)


def main(listener: Listener | None = None) -> None:
    """Run the command line; bad input is one message and exit code 2, Ctrl-C is exit code 130.

    Args:
        listener: who hears signals, where it is not Python alone.
    """
    print_anywhere()
    command = typer.main.get_command(app)
    width, arguments = min(shutil.get_terminal_size().columns, 80) - 2, sys.argv[1:] or ["--help"]
    with Ending(listener), command.make_context("diff-es", arguments, terminal_width=width) as context:
        command.invoke(context)
        if sys.stdout is not None:  # closed by who has called
            sys.stdout.flush()
    sys.exit(0)
