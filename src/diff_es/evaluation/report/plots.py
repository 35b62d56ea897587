"""The plots of the report: closeness against what it costs, and the course of the searches."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from diff_es.evaluation.report import svg
from diff_es.evaluation.report.data import CONTENDERS, Curve, Row, is_number, key_of
from diff_es.evaluation.report.prose import decibels, sped_between

DOT = CONTENDERS["diff-es"].marker
CURVE_STYLES = 7  # classes k0 … k6 of the page


def by_time(rows: Sequence[Row]) -> Markup | None:
    """Closeness against measured time, with the intervals of the time; None without a point."""
    series = _series(rows, _time, _interval)
    title, across = "Closeness by measured time", "measured time, % of the dense model's"
    return Markup(svg.scatter(title, across, "SNR to the reference (dB)", series)) if series else None


def by_cost(rows: Sequence[Row]) -> Markup | None:
    """Closeness against the MACs that it takes; None without a point."""
    series = _series(rows, lambda row: 100 * row.macs_ratio, lambda row: None)
    title, across = "Closeness by nominal cost", "MACs, % of the dense model's"
    return Markup(svg.scatter(title, across, "SNR to the reference (dB)", series)) if series else None


def legend(rows: Sequence[Row]) -> list[tuple[Markup, str]]:
    """Marker and name of each contender that has a point."""
    drawn = {row.contender for row in rows if is_number(row.snr_db)}
    shown = [(key, contender) for key, contender in CONTENDERS.items() if key in drawn]
    return [(Markup(svg.legend(key, contender.marker)), contender.name) for key, contender in shown]


def _time(row: Row) -> float:
    return 100 / row.speedup if row.speedup > 0 else math.nan


def _interval(row: Row) -> svg.Point | None:
    if row.contender == "dense" or not is_number(row.speedup_low) or not is_number(row.speedup_high):
        return None
    return 100 / row.speedup_high, 100 / row.speedup_low


def _series(
    rows: Sequence[Row], across: Callable[[Row], float], span: Callable[[Row], svg.Point | None]
) -> list[svg.Series]:
    series = []
    for key, contender in CONTENDERS.items():
        own = sorted((row for row in rows if row.contender == key and is_number(row.snr_db)), key=across)
        points = tuple((across(row), row.snr_db) for row in own if row.snr_db is not None)
        marks = tuple(
            svg.Mark(
                f"{contender.name}, budget {row.budget:g}: {decibels(row)}, {row.macs_ratio:.3f} of the MACs, "
                f"{sped_between(row)}",
                key_of(row),
                span(row),
                bool(row.doubt),
            )
            for row in own
        )
        if points:
            series.append(svg.Series(contender.name, key, contender.marker, points, marks))
    return series


def search_curves(curves: Sequence[Curve]) -> tuple[Markup, list[tuple[Markup, str, str]]] | None:
    """The plot and its legend: stroke, title, what the search ended with."""
    shown = [curve for curve in curves if any(math.isfinite(score) for _, score in curve.points)]
    if not shown:
        return None
    series, legend = [], []
    for i, curve in enumerate(shown):
        style = f"k{i % CURVE_STYLES}" + (" again" if i >= CURVE_STYLES else "")
        points = tuple(point for point in curve.points if math.isfinite(point[1]))
        count, score = points[-1]
        series.append(svg.Series(curve.title, style, DOT if len(points) == 1 else "", points, label=f"{score:.1f}"))
        outcome = f"{score:.1f} dB after {count:,} evaluation{'s' * (count != 1)}"
        legend.append((Markup(svg.key(style)), curve.title, outcome))
    return Markup(svg.steps("Best score so far", "schedules evaluated", "score (dB)", series)), legend
