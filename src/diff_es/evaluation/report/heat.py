"""Tables of stages by units in colour, as inline SVG: the levels of a schedule, and what each of them costs."""

from collections.abc import Sequence
from html import escape

from diff_es.evaluation.report.svg import DASH, LETTER, picture, tag, text

TOP = 24.0  # above the cells
SMALL = 5.8  # width of an average letter at 11 units


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
    spans = [f"{_time(first)}{DASH}{_time(last)}" for first, last in timesteps]
    left, cell, row = _sizes(stages, units)
    upright = max(map(len, spans), default=0) * SMALL < cell - 4
    body = TOP + row * len(units)
    drawn, width = _heading(left, cell, row, stages, units)
    for s, stage in enumerate(levels):
        middle = left + cell * (s + 0.5)
        for u, level in enumerate(stage):
            tip = f"stage {s}, {units[u]}: level {level} of {most}" if steps_taken[s] else f"stage {s}: no steps"
            box, share = _box(left + cell * s, TOP + row * u, cell, row), level / most if most else 0.0
            drawn.append(_idle(tip, box) if steps_taken[s] == 0 else _cell(str(level), share, tip, box))
        drawn.append(text(str(s), middle, body + 17, class_="mid"))
        drawn.append(text(str(steps_taken[s]), middle, body + 35, class_="mid strong"))
        if upright:
            drawn.append(text(spans[s], middle, body + 53, class_="mid small"))
        else:
            turned = f"rotate(-90 {middle + 4:.2f} {body + 46:.2f})"
            drawn.append(text(spans[s], middle + 4, body + 46, class_="small end", transform=turned))
    for line, name in enumerate(("stage", "steps", "timesteps")):
        drawn.append(text(name, left - 8, body + 17 + 18 * line, class_="end axis"))
    foot = 18 if upright else 12 + LETTER * max(map(len, spans), default=0)
    told = "; ".join(f"stage {s}: {', '.join(map(str, stage))}" for s, stage in enumerate(levels))
    return picture(f"{title}. Level by stage. {told}", width, body + 42 + foot, *drawn, style="heat")


def heat_legend(most: int) -> str:
    """Up to nine levels from none to most, each in its colour."""
    shown = sorted({round(i * most / 8) for i in range(9)})
    boxes = [
        _cell(str(level), level / most if most else 0.0, f"level {level}", _box(28.0 * i, 0, 28, 20))
        for i, level in enumerate(shown)
    ]
    return picture(f"Colours of levels 0 to {most}", 28 * len(shown), 20, *boxes, style="heat")


def share_map(title: str, shares: Sequence[Sequence[float]], units: Sequence[str]) -> str:
    """Shares of a whole, of each stage and unit, in percent; the largest has the full colour."""
    left, cell, row = _sizes(len(shares), units)
    body, largest = TOP + row * len(units), max(map(max, shares))
    drawn, width = _heading(left, cell, row, len(shares), units)
    for s, stage in enumerate(shares):
        for u, share in enumerate(stage):
            tip = f"stage {s}, {units[u]}: {share:.2%} of the error"
            box = _box(left + cell * s, TOP + row * u, cell, row)
            drawn.append(_cell(percent(share), share / largest if largest else 0.0, tip, box))
        drawn.append(text(str(s), left + cell * (s + 0.5), body + 17, class_="mid"))
    drawn.append(text("stage", left - 8, body + 17, class_="end axis"))
    told = "; ".join(f"stage {s}: {', '.join(map(percent, stage))}" for s, stage in enumerate(shares))
    return picture(f"{title}. Percent by stage. {told}", width, body + 24, *drawn, style="heat")


def percent(share: float) -> str:
    """Whole percents, and one decimal below one."""
    return f"{100 * share:.0f}" if share >= 0.01 or share == 0 else f"{100 * share:.1f}" if share >= 0.001 else "<.1"


def _sizes(stages: int, units: Sequence[str]) -> tuple[float, float, float]:
    """Where the cells begin, and their width and height."""
    cell = min(54.0, max(34.0, 640 / max(stages, 1)))
    return 16 + LETTER * max(9, *map(len, units)), cell, 34.0 if len(units) <= 4 else 24.0


def _heading(left: float, cell: float, row: float, stages: int, units: Sequence[str]) -> tuple[list[str], float]:
    """The direction of sampling, and the names of the units; with the width of the whole."""
    width = left + max(cell * stages, 100) + 2
    drawn = [text("noise", left, 14, class_="axis"), text("image", width - 2, 14, class_="axis end")]
    drawn.append(tag("path", d=f"M{left + 40:.1f} 10H{width - 44:.1f}m-4 -3l4 3l-4 3", class_="arrow"))
    drawn += [text(name, left - 8, TOP + row * (u + 0.5) + 4, class_="end") for u, name in enumerate(units)]
    return drawn, width


def _box(x: float, y: float, width: float, height: float) -> dict[str, float]:
    return {"x": x + 1, "y": y + 1, "width": width - 2, "height": height - 2}


def _middle(box: dict[str, float]) -> dict[str, float]:
    return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2 + 4}


def _idle(tip: str, box: dict[str, float]) -> str:
    hollow = tag("rect", class_="idle", **box)
    return tag("g", tag("title", escape(tip)), hollow, text(DASH, **_middle(box), class_="mid"))


def _cell(written: str, share: float, tip: str, box: dict[str, float]) -> str:
    ground = tag("rect", class_="ground", **box)
    colour = tag("rect", class_="level", fill_opacity=round(share, 3), **box)
    number = text(written, **_middle(box), class_="mid on" if share > 0.55 else "mid")
    return tag("g", tag("title", escape(tip)), ground, colour, number)


def _time(value: float) -> str:
    """Timesteps count to 1000 in most samplers and to 1 in some."""
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"
