"""Inline SVG for the report: pure functions, numbers in, markup out.

Shapes carry class names and no colours, so that the page alone decides how light, dark and print look; a class
`--c` of the page gives a series its colour. Every picture says in its `aria-label` what it shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 300  # user units of both plots; the page scales them to its column
TOP, BOTTOM = 14, 46  # margins of a plot; those at the sides depend on what is written there
LINE = 14  # vertical distance between labels that must not touch
DASH = "\u2013"
LETTER = 6.4  # width of an average letter at 12 units, to reserve space for names

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    name: str  # as written beside the last point
    style: str  # class name, which sets the colour
    marker: str  # path data around (0, 0), or "" for a line without markers
    points: tuple[Point, ...]  # in the order they are joined
    tips: tuple[str, ...] = ()  # one tooltip per point, or none


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
    """Marked points; those of one series are joined, and its name stands in the margin beside the last."""
    series = _finite(series)
    return _plot(title, axis(x_label, _column(series, 0)), axis(y_label, _column(series, 1)), series, _straight)


def steps(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """A best-so-far value over a count: flat until the next point, since in between nothing was found."""
    series = _finite(series)
    across, up = axis(x_label, _column(series, 0), least=1.0), axis(y_label, _column(series, 1))
    return _plot(title, across, up, series, _stepped)


def key(style: str) -> str:
    """A short stroke for an HTML legend, in the class of the curve it explains."""
    stroke = tag("line", x1=1, y1=6, x2=27, y2=6, class_=f"stroke {style}")
    return tag("svg", stroke, class_="key", viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")


def heat_map(
    title: str,
    levels: Sequence[Sequence[int]],  # [stages][units]
    most: int,  # the level in full colour
    steps_taken: Sequence[int],  # [stages]
    timesteps: Sequence[tuple[float, float]],  # [stages]
    units: Sequence[str],
) -> str:
    """Stages from noise to image across, units down; the colour is the level, and the number says it exactly."""
    stages = len(levels)
    cell = min(64.0, max(26.0, 640 / max(stages, 1)))
    row = 34.0 if len(units) <= 4 else 24.0
    spans = [f"{_time(first)}{DASH}{_time(last)}" for first, last in timesteps]
    upright = max(map(len, spans), default=0) * LETTER < cell - 4
    left = 16 + LETTER * max(9, *map(len, units))
    top, body = 24.0, row * len(units)
    width, span = left + max(cell * stages, 100) + 2, 18 if upright else 12 + LETTER * max(map(len, spans), default=0)
    drawn = [text("noise", left, 14, class_="axis"), text("image", width - 2, 14, class_="axis end")]
    drawn.append(tag("path", d=f"M{left + 40:.1f} 10H{width - 44:.1f}m-4 -3l4 3l-4 3", class_="arrow"))
    drawn += [text(n, left - 8, top + row * (u + 0.5) + 4, class_="end") for u, n in enumerate(units)]
    for s, stage in enumerate(levels):
        x, middle = left + cell * s, left + cell * (s + 0.5)
        for u, level in enumerate(stage):
            tip = f"stage {s}, {units[u]}: level {level} of {most}" if steps_taken[s] else f"stage {s}: no steps"
            box = {"x": x + 1, "y": top + row * u + 1, "width": cell - 2, "height": row - 2}
            drawn.append(_cell(level, most, steps_taken[s] == 0, tip, box))
        drawn.append(text(str(s), middle, top + body + 17, class_="mid"))
        drawn.append(text(str(steps_taken[s]), middle, top + body + 35, class_="mid strong"))
        if upright:
            drawn.append(text(spans[s], middle, top + body + 53, class_="mid small"))
        else:
            turned = f"rotate(-90 {_value(middle + 4)} {_value(top + body + 46)})"
            drawn.append(text(spans[s], middle + 4, top + body + 46, class_="small end", transform=turned))
    for line, name in enumerate(("stage", "steps", "timesteps")):
        drawn.append(text(name, left - 8, top + body + 17 + 18 * line, class_="end axis"))
    told = "; ".join(f"stage {s}: {', '.join(map(str, stage))}" for s, stage in enumerate(levels))
    return picture(f"{title}. Level by stage. {told}", width, top + body + 42 + span, *drawn, style="heat")


def heat_legend(most: int) -> str:
    """Up to nine levels from none to most, each in its colour."""
    shown = sorted({round(i * most / 8) for i in range(9)})
    boxes = [
        _cell(level, most, False, f"level {level}", {"x": 28 * i + 1, "y": 1, "width": 26, "height": 18})
        for i, level in enumerate(shown)
    ]
    return picture(f"Colours of levels 0 to {most}", 28 * len(shown), 20, *boxes, style="heat")


def _cell(level: int, most: int, idle: bool, tip: str, box: dict[str, float]) -> str:
    share = level / most if most else 0.0
    middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2 + 4}
    if idle:
        hollow = tag("rect", class_="idle", **box)
        return tag("g", tag("title", escape(tip)), hollow, text(DASH, **middle, class_="mid"))
    ground = tag("rect", class_="ground", **box)
    colour = tag("rect", class_="level", fill_opacity=round(share, 3), **box)
    number = text(str(level), **middle, class_="mid on" if share > 0.55 else "mid")
    return tag("g", tag("title", escape(tip)), ground, colour, number)


def _plot(title: str, across: Axis, up: Axis, series: Sequence[Series], join: Callable[[Sequence[Point]], str]) -> str:
    gutter = 22 + LETTER * max((len(s.name) for s in series), default=0)
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
    labels = apart([at[-1][1] for at in placed], LINE, TOP, bottom)
    for s, at, label in zip(series, placed, labels, strict=True):
        (end, height), margin = at[-1], right + 14
        leader = f"M{end + 6:.1f} {height:.1f}L{right:.1f} {height:.1f}L{margin - 4:.1f} {label:.1f}"
        drawn.append(tag("path", d=leader, class_="leader"))
        drawn.append(text(s.name, margin, label + 4))
    for s, at in zip(series, placed, strict=True):
        tips = s.tips or ("",) * len(at)
        drawn += [_marker(s, spot, tip) for spot, tip in zip(at, tips, strict=True) if s.marker]
    told = "; ".join(f"{s.name}: " + ", ".join(f"{a:.4g} → {b:.4g}" for a, b in s.points[-8:]) for s in series)
    return picture(f"{title}: {up.label} over {across.label}. {told}", WIDTH, HEIGHT, *drawn, style="plot")


def _marker(series: Series, spot: Point, tip: str) -> str:
    at = f"translate({_value(spot[0])} {_value(spot[1])})"
    return tag("path", tag("title", escape(tip)), d=series.marker, transform=at, class_=f"marker {series.style}")


def _straight(at: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at)


def _stepped(at: Sequence[Point]) -> str:
    (a, b), *later = at
    return f"M{a:.1f} {b:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in later)


def _finite(series: Sequence[Series]) -> tuple[Series, ...]:
    """Drop points that have no place in a plot, with their tooltips, and series that are left without points."""
    kept = []
    for s in series:
        keep = [i for i, point in enumerate(s.points) if all(map(math.isfinite, point))]
        tips = tuple(s.tips[i] for i in keep) if s.tips else ()
        if keep:
            kept.append(Series(s.name, s.style, s.marker, tuple(s.points[i] for i in keep), tips))
    return tuple(kept)


def _column(series: Sequence[Series], which: int) -> list[float]:
    return [point[which] for s in series for point in s.points]


def _time(value: float) -> str:
    """Timesteps count to 1000 in most samplers and to 1 in some."""
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{round(value, 2):.10g}"
