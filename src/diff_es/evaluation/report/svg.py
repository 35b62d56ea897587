"""Inline SVG for the report: pure functions, numbers in, markup out.

Shapes carry class names and no colours, so that the page alone decides how light, dark and print look; a class
`--c` of the page gives a series its colour. Every picture says in its `aria-label` what it shows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 440, 300  # user units of both plots; the page scales them to its column
TOP, BOTTOM = 14, 46  # margins of a plot; those at the sides depend on what is written there
LINE = 14  # vertical distance between labels that must not touch
DASH = "\u2013"
LETTER = 6.4  # width of an average letter at 12 units, to reserve space for names
REACH = 13  # radius around a marker in which a finger meets it

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """What there is to a point besides its place."""

    tip: str
    key: str = ""  # by which the page knows it, to choose it; empty: it cannot be chosen
    span: Point | None = None  # the interval of its place across
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    name: str
    style: str  # class name, which sets the colour
    marker: str  # path data around (0, 0), or "" for a line without markers
    points: tuple[Point, ...]  # in the order they are joined
    marks: tuple[Mark, ...] = ()  # one for each point, or none
    label: str = ""  # written beside the last point


@dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, start: float, end: float) -> Callable[[float], float]:
        """Map [low, high] to [start, end]."""
        scale = (end - start) / (self.high - self.low)
        return lambda value: start + (value - self.low) * scale

    def write(self, tick: float) -> str:
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def tag(name: str, *children: str, **attributes: str | float) -> str:
    """One element. `class_` stands for `class` and `text_anchor` for `text-anchor`; values are escaped."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def text(content: str, x: float, y: float, **attributes: str | float) -> str:
    return tag("text", escape(content), x=x, y=y, **attributes)


def picture(label: str, width: float, height: float, *children: str, style: str) -> str:
    """The <svg> element: `label` for those who hear it, natural size for those who see it."""
    box = f"0 0 {_value(width)} {_value(height)}"
    return tag("svg", *children, class_=style, viewBox=box, width=width, height=height, role="img", aria_label=label)


def axis(label: str, values: Sequence[float], least: float = 0.0) -> Axis:
    """An axis around the values, with about five ticks at round numbers no closer than `least`."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.08 * (high - low) if high - low > 1e-9 * max(abs(low), abs(high)) else max(0.05 * abs(high), 0.5)
    low, high = low - pad, high + pad
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = max(least, min((power, 2 * power, 5 * power, 10 * power), key=lambda s: abs(s - (high - low) / 5)))
    ticks = tuple(i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1))
    return Axis(label, low, high, ticks)


def apart(places: Sequence[float], gap: float, low: float, high: float) -> tuple[float, ...]:
    """Move labels as little as a downward and an upward sweep allow, so that no two are closer than `gap`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    floor = low
    for i in order:
        moved[i] = max(moved[i], floor)
        floor = moved[i] + gap
    ceiling = high
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return tuple(moved)


def scatter(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Marked points with their intervals; those of one series are joined."""
    series = _finite(series)
    across = [*_column(series, 0), *(end for s in series for mark in s.marks for end in mark.span or ())]
    return _plot(title, axis(x_label, across), axis(y_label, _column(series, 1)), series, _straight)


def steps(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """A best-so-far value over a count: flat until the next point, since in between nothing was found."""
    series = _finite(series)
    across, up = axis(x_label, _column(series, 0), least=1.0), axis(y_label, _column(series, 1))
    return _plot(title, across, up, series, _stepped)


def key(style: str) -> str:
    """A short stroke for an HTML legend, in the class of the curve it explains."""
    stroke = tag("line", x1=1, y1=6, x2=27, y2=6, class_=f"stroke {style}")
    return tag("svg", stroke, class_="key", viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")


def legend(style: str, marker: str) -> str:
    """A marker for an HTML legend, in the class of the series it explains."""
    shape = tag("path", d=marker, class_=f"marker {style}")
    return tag("svg", shape, class_="key", viewBox="-7 -7 14 14", width=14, height=14, aria_hidden="true")


def _plot(title: str, across: Axis, up: Axis, series: Sequence[Series], join: Callable[[Sequence[Point]], str]) -> str:
    longest = max((len(s.label) for s in series), default=0)
    gutter = 22 + LETTER * longest if longest else 12
    left = 26 + LETTER * max((len(up.write(tick)) for tick in up.ticks), default=0)
    right, bottom = WIDTH - gutter, HEIGHT - BOTTOM
    x, y = across.place(left, right), up.place(bottom, TOP)
    drawn = []
    for tick in up.ticks:
        drawn.append(tag("line", x1=left, x2=right, y1=y(tick), y2=y(tick), class_="grid"))
        drawn.append(text(up.write(tick), left - 7, y(tick) + 4, class_="end"))
    for tick in across.ticks:
        drawn.append(tag("line", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4, class_="arrow"))
        drawn.append(text(across.write(tick), x(tick), bottom + 17, class_="mid"))
    drawn.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="arrow"))
    drawn.append(text(across.label, (left + right) / 2, HEIGHT - 8, class_="mid axis"))
    turned = f"rotate(-90 11 {(TOP + bottom) / 2})"
    drawn.append(text(up.label, 11, (TOP + bottom) / 2, class_="mid axis", transform=turned))
    placed = [[(x(a), y(b)) for a, b in s.points] for s in series]
    drawn += [tag("path", d=join(at), class_=f"stroke {s.style}") for s, at in zip(series, placed, strict=True)]
    drawn += _labels(series, placed, right, bottom)
    for s, at in zip(series, placed, strict=True):
        marks = s.marks or (Mark(""),) * len(at)
        drawn += [_marker(s, spot, mark, x) for spot, mark in zip(at, marks, strict=True) if s.marker]
    told = "; ".join(f"{s.name}: " + ", ".join(f"{a:.4g} → {b:.4g}" for a, b in s.points[-8:]) for s in series)
    return picture(f"{title}: {up.label} over {across.label}. {told}", WIDTH, HEIGHT, *drawn, style="plot")


def _labels(series: Sequence[Series], placed: Sequence[Sequence[Point]], right: float, bottom: float) -> Iterator[str]:
    """The labels in the margin, each led to from the last point of its series."""
    labelled = [(s.label, at[-1]) for s, at in zip(series, placed, strict=True) if s.label]
    heights = apart([height for _, (_, height) in labelled], LINE, TOP, bottom)
    for (label, (end, height)), beside in zip(labelled, heights, strict=True):
        leader = f"M{end + 6:.1f} {height:.1f}L{right:.1f} {height:.1f}L{right + 10:.1f} {beside:.1f}"
        yield tag("path", d=leader, class_="leader")
        yield text(label, right + 14, beside + 4)


def _marker(series: Series, spot: Point, mark: Mark, x: Callable[[float], float]) -> str:
    shape = tag("path", d=series.marker, class_=f"marker {series.style}" + (" hollow" if mark.hollow else ""))
    drawn = [tag("title", escape(mark.tip))]
    if mark.span is not None:
        low, high = (x(end) - spot[0] for end in mark.span)
        drawn.append(tag("path", d=f"M{low:.1f} -4v8M{low:.1f} 0H{high:.1f}m0 -4v8", class_=f"span {series.style}"))
    at = {"transform": f"translate({_value(spot[0])} {_value(spot[1])})"}
    if not mark.key:
        return tag("g", *drawn, shape, **at)
    reach = tag("circle", r=REACH, class_="reach")
    return tag("g", *drawn, reach, shape, class_="pick", data_point=mark.key, **at)


def _straight(at: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at)


def _stepped(at: Sequence[Point]) -> str:
    (a, b), *later = at
    return f"M{a:.1f} {b:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in later)


def _finite(series: Sequence[Series]) -> tuple[Series, ...]:
    """Drop points that have no place in a plot, with their marks, and series that are left without points."""
    kept = []
    for s in series:
        keep = [i for i, point in enumerate(s.points) if all(map(math.isfinite, point))]
        marks = tuple(s.marks[i] for i in keep) if s.marks else ()
        if keep:
            kept.append(replace(s, points=tuple(s.points[i] for i in keep), marks=marks))
    return tuple(kept)


def _column(series: Sequence[Series], which: int) -> list[float]:
    return [point[which] for s in series for point in s.points]


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{round(value, 2):.10g}"
