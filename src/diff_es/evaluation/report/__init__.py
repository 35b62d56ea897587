"""The HTML report: what was measured goes in as plain data, one self-contained page comes out.

    Path("report.html").write_text(render(story), encoding="utf-8")

The page loads nothing and runs nothing: style, plots and images are all inside. Every figure and every sentence on
it is computed from the rows, and at the precision shown, so that a reader can check each against the table.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from diff_es.evaluation.report import svg
from diff_es.evaluation.report.data import CONTENDERS, UNRELIABLE, Curve, Heat, Row, Story, Strip, is_number, ordered
from diff_es.evaluation.report.prose import TIMES, at_budget, decibels, figures, findings, headline

__all__ = ["UNRELIABLE", "Curve", "Heat", "Row", "Story", "Strip", "findings", "headline", "render"]

DASH = "\u2013"  # stands for what was not measured
DOT = CONTENDERS["diff-es"].marker
CURVE_STYLES = 7  # classes k0 … k6 of the page
SHOWN, STORED = 160, 320  # largest image side on the page, and in the file for fine screens


def render(story: Story) -> str:
    """The whole page."""
    source = resources.files(__name__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(source).render(
        story=story,
        headline=headline(story.rows),
        figures=figures(story.rows),
        findings=findings(story.rows),
        grid=_grid(story),
        noises=len(story.strips[0].images) if story.strips else 0,
        heats=[(heat, _heat(heat), Markup(svg.heat_legend(heat.most))) for heat in story.heats],
        curves=_curves(story.curves),
        plots=_plots(story.rows),
        columns=_COLUMNS,
        table=_table(story.rows),
        missing=any(column.of(row) is None for column in _COLUMNS for row in story.rows),
    )


@dataclass(frozen=True)
class _Column:
    heading: str
    unit: str
    of: Callable[[Row], float | None]
    decimals: int
    better: int = 0  # 1: more is better, -1: less is, 0: neither, so nothing is marked best
    spread: Callable[[Row], float] | None = None  # written as ± behind the value
    absent: str = DASH  # where there is none

    def write(self, row: Row) -> str:
        value = self.of(row)
        if not is_number(value):
            return self.absent if value is None else "∞" if value == math.inf else "not a number"
        return f"{value:,.{self.decimals}f}"

    def write_spread(self, row: Row) -> str:
        return f" ± {self.spread(row):,.{self.decimals}f}" if self.spread else ""

    def best(self, rows: Sequence[Row]) -> str | None:
        """The winning figure as written, for what looks equal is equally bold; None if there is nothing to win."""
        found = {self.write(row): value * self.better for row in rows if is_number(value := self.of(row))}
        return max(found, key=found.__getitem__) if self.better and len(found) > 1 else None


_COLUMNS = (
    _Column("Steps", "", lambda row: row.steps, 0),
    _Column("MACs ratio", "of dense", lambda row: row.macs_ratio, 3),
    _Column("Latency", "ms", lambda row: row.latency_ms, 1, better=-1, spread=lambda row: row.latency_spread),
    _Column("Speed-up", TIMES, lambda row: None if row.doubt else row.speedup, 2, better=1, absent=UNRELIABLE),
    _Column("Denoiser speed-up", TIMES, lambda row: None if row.doubt else row.denoiser_speedup, 2, better=1),
    _Column("SNR", "dB", lambda row: row.snr_db, 1, better=1),
    _Column("SNR to own steps", "dB", lambda row: row.own_snr_db, 1, better=1),
    _Column("PSNR", "dB", lambda row: row.psnr_db, 1, better=1),
    _Column("Fréchet distance", "to real data", lambda row: row.frechet_distance, 2, better=-1),
    _Column("Weights", "MB", lambda row: row.weight_bytes / 1e6, 1, better=-1),
)


@dataclass(frozen=True)
class _Line:
    contender: str  # class name on the page
    name: str
    aside: str  # figures in short
    cells: tuple[Markup, ...]


@dataclass(frozen=True)
class _Group:
    budget: str
    lines: tuple[_Line, ...]


def _table(rows: Sequence[Row]) -> list[_Group]:
    groups = []
    for budget in _budgets(rows):
        group = [row for row in ordered(rows) if row.budget == budget]
        best = [column.best(group) for column in _COLUMNS]
        lines = [
            _Line(
                row.contender,
                CONTENDERS[row.contender].name,
                "",
                tuple(_cell(column, row, top) for column, top in zip(_COLUMNS, best, strict=True)),
            )
            for row in group
        ]
        groups.append(_Group(at_budget(budget), tuple(lines)))
    return groups


def _cell(column: _Column, row: Row, best: str | None) -> Markup:
    written = column.write(row)
    return Markup("<strong>{}</strong>{}" if written == best else "{}{}").format(written, column.write_spread(row))


def _grid(story: Story) -> list[_Group]:
    rows = {(row.contender, row.budget): row for row in story.rows}
    groups = []
    for budget in _budgets(story.strips):
        lines = []
        for strip in ordered([strip for strip in story.strips if strip.budget == budget]):
            row, name = rows.get((strip.contender, budget)), CONTENDERS[strip.contender].name
            aside = "the reference" if strip.contender == "dense" else ""
            if row is not None and is_number(row.snr_db):
                aside = f"{decibels(row)}, {row.sped(TIMES)}"
            alt = f"{name}, {at_budget(budget).lower()}, noise"
            images = tuple(_image(image, f"{alt} {i}") for i, image in enumerate(strip.images, start=1))
            lines.append(_Line(strip.contender, name, aside, images))
        groups.append(_Group(at_budget(budget), tuple(lines)))
    return groups


def _budgets(items: Sequence[Row] | Sequence[Strip]) -> list[float]:
    return sorted({item.budget for item in items}, reverse=True)


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


def _heat(heat: Heat) -> Markup:
    return Markup(svg.heat_map(heat.title, heat.levels, heat.most, heat.steps, heat.timesteps, heat.units))


def _plots(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """Fidelity against what a schedule costs on paper and against what it saves; one line per contender."""
    measured = [row for row in rows if is_number(row.snr_db)]
    if not measured:
        return []
    by_cost = _series(measured, lambda row: row.macs_ratio)
    by_speed = _series([row for row in measured if not row.doubt], lambda row: row.speedup)
    titles = "Fidelity by nominal cost", "Fidelity by measured speed-up"
    fidelity, speed = "SNR to dense (dB)", f"measured speed-up ({TIMES})"
    return [
        (titles[0], Markup(svg.scatter(titles[0], "MACs ratio", fidelity, by_cost))),
        (titles[1], Markup(svg.scatter(titles[1], speed, fidelity, by_speed))),
    ]


def _series(rows: Sequence[Row], across: Callable[[Row], float]) -> list[svg.Series]:
    series = []
    for key, contender in CONTENDERS.items():
        own = sorted((row for row in rows if row.contender == key), key=across)
        points = tuple((across(row), row.snr_db) for row in own if row.snr_db is not None)
        tips = tuple(
            f"{contender.name}, budget {row.budget:g}: {decibels(row)}, {row.macs_ratio:.3f} of the MACs, "
            f"{row.sped(TIMES)} as fast"
            for row in own
        )
        series.append(svg.Series(contender.name, key, contender.marker, points, tips))
    return series


def _curves(curves: Sequence[Curve]) -> tuple[Markup, list[tuple[Markup, str, str]]] | None:
    """The plot and its legend: stroke, title, what the search ended with."""
    shown = [curve for curve in curves if any(math.isfinite(score) for _, score in curve.points)]
    if not shown:
        return None
    series, legend = [], []
    for i, curve in enumerate(shown):
        style = f"k{i % CURVE_STYLES}" + (" again" if i >= CURVE_STYLES else "")
        points = tuple(point for point in curve.points if math.isfinite(point[1]))
        count, score = points[-1]
        series.append(svg.Series(f"{score:.1f}", style, DOT if len(points) == 1 else "", points))
        outcome = f"{score:.1f} dB after {count:,} evaluation{'s' * (count != 1)}"
        legend.append((Markup(svg.key(style)), curve.title, outcome))
    return Markup(svg.steps("Best score so far", "schedules evaluated", "score (dB)", series)), legend
