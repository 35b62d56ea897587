"""The images: every contender's for the same noises, and what is chosen among on the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from diff_es.evaluation.report.data import CONTENDERS, Case, Row, Story, budgets, is_number, key_of, ordered
from diff_es.evaluation.report.prose import TIMES, at_budget, decibels

SHOWN, STORED = 160, 320  # largest image side on the page, and in the file for fine screens


@dataclass(frozen=True)
class Cell:
    image: Markup
    snr: str  # to the reference; empty for the reference itself


@dataclass(frozen=True)
class Line:
    contender: str  # class name on the page
    key: str
    name: str
    aside: str  # figures in short
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    budget: str
    lines: tuple[Line, ...]


def grid(story: Story) -> list[Group]:
    """The images of every contender, budget by budget."""
    rows = {key_of(row): row for row in story.rows}
    groups = []
    for budget in budgets(story.strips):
        lines = []
        for strip in ordered([strip for strip in story.strips if strip.budget == budget]):
            name, snrs = CONTENDERS[strip.contender].name, [f"{snr:.1f} dB" for snr in strip.snr_db]
            alts = [f"{name}, {at_budget(budget).lower()}, {described(case).lower()}" for case in story.cases]
            cells = zip(strip.images, alts, snrs or [""] * len(alts), strict=True)
            key = key_of(strip)
            shown = tuple(Cell(_image(image, alt), snr) for image, alt, snr in cells)
            lines.append(Line(strip.contender, key, name, _aside(strip.contender, rows.get(key)), shown))
        groups.append(Group(at_budget(budget), tuple(lines)))
    return groups


def described(case: Case) -> str:
    """Which noise, and what was asked for."""
    return f"Noise {case.noise}" + (f", {case.asked}" if case.asked else "")


def choices(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(key, name) of all points that can be chosen, by budget, the tightest first; Diff-ES leads its budget."""
    groups = []
    for budget in sorted({row.budget for row in rows if row.contender != "dense"}):
        group = [row for row in reversed(ordered(rows)) if row.budget == budget and row.contender != "dense"]
        names = [f"{CONTENDERS[row.contender].name} at {budget:g}" for row in group]
        groups.append((at_budget(budget), list(zip(map(key_of, group), names, strict=True))))
    return groups


def _aside(contender: str, row: Row | None) -> str:
    if row is not None and is_number(row.snr_db):
        return f"{decibels(row)}, {row.sped(TIMES)}"
    return "the reference" if contender == "dense" else ""


def _image(image: Image.Image, alt: str) -> Markup:
    """An <img> that holds its PNG. Small images grow by whole factors, so that each pixel stays a square."""
    longest = max(image.size)
    factor = max(1, 96 // longest) if longest <= SHOWN else SHOWN / longest
    width, height = (max(1, round(side * factor)) for side in image.size)
    stored = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    if longest > STORED:
        smaller = [max(1, round(side * STORED / longest)) for side in image.size]
        stored = stored.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    stored.save(held, "PNG", optimize=True)
    data = base64.b64encode(held.getvalue()).decode("ascii")
    style = Markup(' class="pixels"') if factor > 1 else ""
    return Markup('<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}"{}>').format(
        data, alt, width, height, style
    )
