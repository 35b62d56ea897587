"""From an evaluation to its report: the numbers, the pictures and the course of the searches on one page."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..compression.final import Found
from ..compression.sensitivity import Sensitivity
from ..compression.study import Study
from ..pipelines.denoiser import device_of, dtype_of
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.sampling import denoiser_of, sampler_name
from ..search import Generation
from ..utils.files import write_text
from .evaluate import Evaluation, Extent
from .report import Curve, Heat, Sensed, Story, Strip, render

PUBLISHED = ("result.json", "report.html")
_NAMES = 22
"""Pixels of a line of text above a row of images."""


def picture(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit image; of a video (3, F, H, W) the frames side by side."""
    if image.dim() == 4:
        image = image.permute(0, 2, 1, 3).flatten(2)
    return Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())


def contact_sheet(images: Sequence[Tensor], columns: int = 8) -> Image.Image:
    """Images of one size in rows, small ones enlarged to be seen."""
    tiles = [picture(image) for image in images]
    width, height = tiles[0].size
    zoom = max(1, 96 // width)
    sheet = Image.new("RGB", (columns * width * zoom, -(-len(tiles) // columns) * height * zoom))
    for i, tile in enumerate(tiles):
        large = tile.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        sheet.paste(large, (i % columns * width * zoom, i // columns * height * zoom))
    return sheet


def side_by_side(evaluation: Evaluation) -> Image.Image:
    """The dense model's images, and below them, for the same noises, what Diff-ES makes at each budget; with names."""
    rows = [(row, images) for row, images in zip(evaluation.rows, evaluation.images, strict=True)]
    shown = [(row, images) for row, images in rows if row.contender in ("dense", "diff-es")]
    sheets = [contact_sheet(list(images), len(images)) for _, images in shown]
    width, height = max(sheet.width for sheet in sheets), _NAMES
    page = Image.new("RGB", (width, sum(sheet.height + height for sheet in sheets)), "white")
    pen, top = ImageDraw.Draw(page), 0
    for (row, _), sheet in zip(shown, sheets, strict=True):
        fast = "" if row.doubt else f"{row.sped()} as fast, "
        spent = f"{row.macs_ratio:.2f} of the MACs, {fast}{row.steps} steps"
        name = f"dense, {row.steps} steps" if row.contender == "dense" else f"Diff-ES: {spent}"
        pen.text((4, top + 2), name, fill="black", font_size=_NAMES - 6)
        page.paste(sheet, (0, top + height))
        top += sheet.height + height
    return page


def curves_of(found: Sequence[Found], random: Sequence[Found]) -> list[Curve]:
    """The courses of the searches. Budgets that were searched in one run share one: the best of all that fit the
    largest, which is no score of a smaller budget's."""
    shared = dict[tuple[Generation, ...], list[float]]()
    for one in found:
        shared.setdefault(one.history, []).append(one.limit)
    titles = {
        history: f"Diff-ES at {limits[0]:g}" if len(limits) == 1 else f"Diff-ES, all budgets up to {max(limits):g}"
        for history, limits in shared.items()
    }
    curves = [_curve(title, history) for history, title in titles.items()]
    return curves + [_curve(f"Random at {one.limit:g}", one.history) for one in random]


def _curve(title: str, history: Sequence[Generation]) -> Curve:
    return Curve(title, tuple((generation.evaluations, generation.best) for generation in history))


def _heat(study: Study, found: Found) -> Heat:
    """The levels of each stage, and the steps that it takes; a stage without steps has its interval all the same."""
    own, ends, first = study.costs.steps, list[tuple[float, float]](), 0
    timesteps = study.trace.timesteps if study.path is None else study.path.timesteps
    for steps in own:
        ends.append((timesteps[first], timesteps[first + steps - 1]))
        first += steps
    spent = "compute" if study.prices is None else "time"
    title, names = f"Diff-ES at {found.limit:g} of the {spent}", tuple(unit.name for unit in study.units)
    most = max(len(unit.options) for unit in study.units) - 1
    return Heat(
        "diff-es", found.limit, title, found.candidate.levels, most, study.steps(found.candidate), tuple(ends), names
    )


@dataclass(frozen=True)
class Provenance:
    """How an evaluation came about, apart from what it found."""

    seconds: float
    command: str  # that can be given again
    table: Sensitivity | None = None  # that the search was led by
    notes: tuple[str, ...] = ()
    front: tuple[Found, ...] = ()  # what the same search found for other budgets
    resumed: bool = False  # with scores of an earlier session, whose time is not in `seconds`


def tell(
    study: Study,
    model: str,
    found: Sequence[Found],
    evaluation: Evaluation,
    extent: Extent,
    made: Provenance,
) -> Story:
    """The page's contents."""
    settings, device = study.settings, device_of(denoiser_of(study.pipe))
    facts = (
        ("Model", model),
        ("Sampler", f"{sampler_name(study.pipe)}, {settings.sampling.steps} steps"),
        (
            "Reference",
            f"the dense model at {sum(study.costs.steps) if study.reference is None else len(study.reference)} steps",
        ),
        *(() if isinstance(study.pipe, OwnSampler) else (("Guidance", f"{settings.sampling.guidance:g}"),)),
        ("Stages", str(len(study.stages))),
        ("Search", "; ".join(f"{one.evaluations} evaluations at {one.limit:g}" for one in found)),
        ("Probes", f"{settings.search_noises} to search, from {settings.held_out_noises} up to choose among finalists"),
        ("Calibration", f"{settings.calibration_samples} samples"),
        ("Batch of the timings", f"{extent.batch}, {extent.rounds} rounds or more"),
        ("Seed", str(settings.seed)),
        ("Device", f"{_device(device)}, {dtype_of(denoiser_of(study.pipe))}, {torch.get_num_threads()} threads"),
        ("Versions", f"diff-es {version('diff-es')}, torch {torch.__version__}, diffusers {version('diffusers')}"),
        (
            "Time taken",
            f"{made.seconds / 60:.1f} minutes{', without those of an earlier session' * made.resumed}",
        ),
    )
    strips = [
        Strip(row.contender, row.budget, tuple(picture(image) for image in images), snr_db)
        for row, images, snr_db in zip(evaluation.rows, evaluation.images, evaluation.snr_db, strict=True)
    ]
    return Story(
        title=f"Diff-ES on {model}",
        model=model,
        facts=facts,
        rows=evaluation.rows,
        strips=tuple(strips),
        cases=evaluation.cases,
        heats=tuple(_heat(study, one) for one in (*found, *made.front)),
        curves=tuple(curves_of((*found, *made.front), evaluation.random)),
        notes=made.notes,
        sensed=None if made.table is None else sensed(made.table, tuple(unit.name for unit in study.units)),
        command=made.command,
    )


def sensed(table: Sensitivity, units: Sequence[str]) -> Sensed | None:
    """The shares of error of the last level of each unit, in each stage; None where nothing adds any."""
    last = [[levels[-1] for levels in stage] for stage in table.levels]
    total = sum(map(sum, last))
    return Sensed(tuple(tuple(error / total for error in stage) for stage in last), tuple(units)) if total else None


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"


def publish(folder: Path, story: Story) -> Mapping[str, object]:
    """Write the files :data:`PUBLISHED`; returns what the first holds: how it was made, and a row for each contender.

    Raises:
        StorageError: the disk refused.
    """
    result = {"facts": dict(story.facts), "rows": [row.to_json() for row in story.rows]}
    for name, text in zip(PUBLISHED, (json.dumps(result, indent=2) + "\n", render(story)), strict=True):
        write_text(folder / name, text)
    return result
