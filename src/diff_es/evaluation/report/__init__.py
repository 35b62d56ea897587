"""The HTML report: what was measured goes in as plain data, one self-contained page comes out.

    Path("report.html").write_text(render(story), encoding="utf-8")

The page loads nothing: style, script, plots and images are all inside, and without the script it is still all there to
read. Every figure and every sentence on it is computed from the rows, and at the precision shown, so that a reader can
check each against the table.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from diff_es.evaluation.report import gallery, heat, meaning, plots
from diff_es.evaluation.report.data import (
    CONTENDERS,
    UNRELIABLE,
    Case,
    CaseKind,
    Curve,
    Heat,
    Row,
    Sensed,
    Story,
    Strip,
    is_number,
    key_of,
    ordered,
)
from diff_es.evaluation.report.prose import at_budget, by_chance, decibels, figures, findings, headline, sped_between
from diff_es.evaluation.report.table import COLUMNS, table

__all__ = [
    "UNRELIABLE",
    "Case",
    "CaseKind",
    "Curve",
    "Heat",
    "Row",
    "Sensed",
    "Story",
    "Strip",
    "findings",
    "headline",
    "render",
]


def render(story: Story) -> str:
    """The whole page."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = _source("page.css"), _source("page.js")
    return page.from_string(_source("page.html.jinja")).render(
        story=story,
        style=Markup(style),
        script=Markup(script),
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        headline=headline(story.rows),
        figures=figures(story.rows),
        findings=findings(story.rows),
        grid=gallery.grid(story),
        compared=story.cases and any(strip.contender == "dense" for strip in story.strips),
        cases=[(case.kind.value, gallery.described(case)) for case in story.cases],
        choices=gallery.choices(story.rows),
        points=_points(story),
        sensed=story.sensed and (_sensed(story.sensed), meaning.of_sensitivities(story.sensed)),
        curves=plots.search_curves(story.curves),
        by_time=plots.by_time(story.rows),
        by_cost=plots.by_cost(story.rows),
        legend=plots.legend(story.rows),
        by_chance=by_chance(story.rows),
        unreliable=any(row.doubt for row in story.rows),
        columns=COLUMNS,
        table=table(story.rows),
        missing=any(column.of(row) is None for column in COLUMNS for row in story.rows),
    )


def _source(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Point:
    """What the page tells of a contender at a budget."""

    key: str
    contender: str
    name: str
    facts: tuple[str, ...]
    meaning: str
    heat: Markup | None
    legend: Markup | None
    most: int


def _points(story: Story) -> list[_Point]:
    found = list[_Point]()
    drawn = {key_of(one): one for one in story.heats}
    for row in sorted(ordered(story.rows), key=lambda row: (row.budget, row.contender != "diff-es")):
        one = drawn.get(key_of(row))
        facts = (f"{row.steps} step{'s' * (row.steps != 1)}", f"{row.macs_ratio:.3f} of the MACs", sped_between(row))
        facts = (*((decibels(row),) if is_number(row.snr_db) else ()), *facts)
        name = f"{CONTENDERS[row.contender].name}, {at_budget(row.budget).lower()}"
        shown = (None, None, 0) if one is None else (_heat(one), Markup(heat.heat_legend(one.most)), one.most)
        told = _way(row, story.rows) if one is None else meaning.of_schedule(one)
        found.append(_Point(key_of(row), row.contender, name, facts, told, *shown))
    return found


def _way(row: Row, rows: Sequence[Row]) -> str:
    """How a contender samples whose schedule is not drawn."""
    if row.contender == "random":
        return by_chance([one for one in rows if one.budget == row.budget])
    return CONTENDERS[row.contender].way


def _heat(one: Heat) -> Markup:
    return Markup(heat.heat_map(one.title, one.levels, one.most, one.steps, one.timesteps, one.units))


def _sensed(sensed: Sensed) -> Markup:
    return Markup(heat.share_map("Sensitivities", sensed.shares, sensed.units))
