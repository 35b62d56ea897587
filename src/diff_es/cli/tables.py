"""What a person reads at the end of a command."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from ..compression.forecast import Forecast
from ..compression.result import Compressed
from ..compression.summary import levels_of
from ..evaluation.recipes.price import Price
from ..evaluation.recipes.run import Outcome
from ..evaluation.report import UNRELIABLE, Story, findings
from ..pruning.budget import MacsRatio
from ..routing.placements import Compact
from ..utils.progress import duration

_NAME = 16
"""The fewest characters to a line of a name that takes several."""


class _Table:
    """Rows of text under headings, which cut nothing short: where lines are too short for all columns, names, which
    come first, take several lines; where they are too short for that too, every row is a list of its own."""

    def __init__(self, title: str, *headings: str) -> None:
        self._title, self._headings, self._rows = title, headings, list[tuple[str, ...]]()

    def add_row(self, *cells: str) -> None:
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        widths = self._widths(options.max_width)
        table = Table(
            title=Text(self._title), title_justify="left", box=SIMPLE_HEAD, padding=0, show_header=bool(widths)
        )
        if widths:
            for i, (heading, width) in enumerate(zip(self._headings, widths, strict=True)):
                table.add_column(heading, justify="left" if i == 0 else "right", overflow="fold", width=width)
            for row in self._rows:
                table.add_row(*map(Text, row))
        else:
            headings = [heading.replace("-\n", "").replace("\n", " ") for heading in self._headings]
            table.add_column(overflow="fold", width=max(map(cell_len, headings)))
            table.add_column(overflow="fold")
            for row in self._rows:
                for pair in zip(headings, row, strict=True):
                    table.add_row(*map(Text, pair))
                table.add_section()
        yield table

    def _widths(self, room: int) -> list[int]:
        """Of the columns, side by side; none where there is no room for them."""
        columns = [*zip(self._headings, *self._rows, strict=True)]
        whole = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
        words = [max(cell_len(word) for cell in column for word in cell.split()) for column in columns]
        widths = [min(words[0], _NAME), *words[1:]]
        left = room - len(columns) - 1 - sum(widths)  # a blank between two, and one at each end
        if left < 0:
            return []
        for i, most in enumerate(whole):
            more = min(left, most - widths[i])
            widths[i], left = widths[i] + more, left - more
        return widths


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def show_rows(console: Console, story: Story) -> None:
    """The comparison."""
    table = _Table(story.title, "Contender", "Steps", "MACs", "Speed-up", "SNR dB", "to own", "PSNR dB", "Fréchet")
    for row in story.rows:
        table.add_row(
            row.contender if row.budget == 1 else f"{row.contender} at {row.budget:g}",
            str(row.steps),
            f"{row.macs_ratio:.3f}",
            row.sped(),
            _number(row.snr_db),
            _number(row.own_snr_db),
            _number(row.psnr_db),
            _number(row.frechet_distance, ".3f"),
        )
    console.print(table)
    for row in (one for one in story.rows if one.doubt and one.contender != "diff-es"):  # findings tell of ours
        console.print(f"The speed-up of {row.contender} at {row.budget:g} is unreliable: {row.doubt}.", highlight=False)
    for sentence in findings(story.rows):
        console.print(f"• {sentence}", highlight=False)


def show_inspection(console: Console, found: Mapping[str, Any]) -> None:
    """What can be pruned."""
    size = f"{found['parameters'] / 1e6:.1f}M parameters, {found['macs'] / 1e9:.2f} GMACs a call"
    kinds = _Table(f"{found['denoiser']}: {size}", "Kind", "Layers", "Groups in each", "Width of a group")
    for kind in dict.fromkeys(layer["kind"] for layer in found["layers"]):
        layers = [layer for layer in found["layers"] if layer["kind"] == kind]
        groups = sorted({layer["groups"] for layer in layers})
        widths = sorted({layer["group_width"] for layer in layers})
        kinds.add_row(kind, str(len(layers)), ", ".join(map(str, groups)), ", ".join(map(str, widths)))
    console.print(kinds)
    _show_levels(console, found)
    each = _Table(
        "GMACs of each block, as far as levels decide about them", "Block", "Layers", "Level 0", "Deepest level"
    )
    for unit in found["units"]:
        macs = [f"{unit['macs_by_level'][level] / 1e9:.3f}" for level in (0, -1)]
        each.add_row(unit["name"], str(len(unit["layers"])), *macs)
    each.add_row("all else", "–", *[f"{found['macs_of_no_level'] / 1e9:.3f}"] * 2)
    console.print(each)
    if found["timed"]:
        _show_times(console, found["timed"])
    rest = dict[str, _Table]()  # by reason

    def left(name: str, parameters: str, reason: str) -> None:
        rest.setdefault(reason, _Table(f"Left dense: {reason}", "Where", "Parameters")).add_row(name, parameters)

    for part in found["left_dense"]:
        left(part["name"], f"{part['parameters'] / 1e6:.2f}M", part["reason"])
    for name in found["never_thinned"]:
        left(name, "–", "keeps all of its groups at every level: it runs no faster with fewer")
    for refusal in found["refused"]:
        left(refusal["name"], "–", f"refused: {refusal['reason']}")
    for table in rest.values():
        console.print(table)


def _show_levels(console: Console, found: Mapping[str, Any]) -> None:
    """What a call and the weights that it runs come to, where all blocks have the same level."""
    columns = {
        "Width: MACs": [f"{ratio:.3f}" for ratio in found["width_macs_ratio"]],
        "GB": [f"{size / 1e9:.3f}" for size in found["width_weight_bytes"]],
        "ms": [f"{seconds * 1e3:.1f}" for seconds in found["width_seconds"]],
        "Blocks skipped: MACs": [f"{ratio:.3f}" for ratio in found["depth_macs_ratio"]],
        "their GB": [f"{size / 1e9:.3f}" for size in found["depth_weight_bytes"]],
    }
    shown = {name: cells for name, cells in columns.items() if cells}
    of_one = "; ms of a call for one sample" if found["width_seconds"] else ""
    table = _Table(f"MACs relative to dense, and GB of weights that run{of_one}", "Level", *shown)
    for level, cells in enumerate(zip_longest(*shown.values(), fillvalue="–")):
        table.add_row(str(level), *cells)
    console.print(table)


def _show_times(console: Console, timed: Sequence[Mapping[str, Any]]) -> None:
    """How much faster than dense each shape of layer runs."""
    levels = len(timed[0]["ratios"])
    columns = map(str, range(1, levels))
    table = _Table("Speed-up of a layer, measured, by level", "Layers of one shape", *columns)
    for shape in timed:
        pairs = list(zip(shape["ratios"], shape["slower"], strict=True))[1:]
        cells = ["left dense" if slower else f"{1 / ratio:.2f}x" for ratio, slower in pairs]
        more = f" and {len(shape['layers']) - 1} more" if len(shape["layers"]) > 1 else ""
        table.add_row(f"{shape['layers'][0]}{more}", *cells)
    console.print(table)


def show_compressed(console: Console, fast: Compressed, folder: Path, seconds: float) -> None:
    """What a search found."""
    report = fast.report
    table = _Table("Schedule (level 0 is dense)", "Stage", "Steps", "From timestep", "Level")
    first = 0
    for stage, (steps, row) in enumerate(zip(report.steps, fast.schedule.levels, strict=True)):
        begins = f"{report.timesteps[first]:g}" if steps else "–"
        table.add_row(str(stage), str(steps), begins, levels_of(row) if steps else "–")
        first += steps
    console.print(table)
    error = report.held_out_error
    fresh = f"{report.held_out_score:.2f}" + ("" if error is None else f" ± {error:.2f}")
    scores = f"{report.score:.2f} on the search's probes, {fresh} on fresh ones"
    asked = f" (asked: at most {report.limit:g})" if isinstance(report.budget.compute, MacsRatio) else ""
    console.print(f"MACs {report.macs_ratio:.4f} of dense{asked}; closeness {scores}.")
    if report.measured_speedup is not None:
        if report.speedup_doubt:
            console.print(f"The speed-up could not be measured reliably: {report.speedup_doubt}.")
        else:
            console.print(f"Measured: {report.measured_speedup:.2f}x as fast (asked: {report.budget.compute}).")
    if report.own_held_out_score is not None:
        own, to_own = report.own_held_out_score, report.held_out_score_to_own
        console.print(f"The user's own setting is at {own:.2f}; the result is at {to_own:.2f} from that.")
    others = {(point.report.macs_ratio, point.report.held_out_score) for point in fast.others}
    for ratio, closeness in sorted(others, reverse=True):
        console.print(f"Also saved: --point {math.floor(100 / ratio) / 100}, closeness {closeness:.2f}.")
    console.print(f"Weights: {_placed(fast)}.")
    console.print(f"{report.evaluations} candidates in {seconds / 60:.1f} minutes. Saved in {folder}.")


def _placed(fast: Compressed) -> str:
    """Where the weights wait, and what it costs."""
    match fast.placement:
        case None:
            return "placed by the memory that is free when it runs"
        case Compact(tolerance=tolerance):
            report = fast.report
            assert report.compact_held_out_score is not None
            loss = report.held_out_score - report.compact_held_out_score
            return f"compact, corrections within {tolerance:g} of each layer's error; closeness lost {loss:.2f}"
        case other:
            return type(other).__name__.lower()


def show_bench(console: Console, result: Mapping[str, Any]) -> None:
    """Latency and memory side by side; the spreads are in the JSON."""
    compiled = ", blocks compiled" if result["compiled"] else ""
    setting = f"{result['device']}, {result['dtype']}, {result['steps']} steps{compiled}"
    pipeline, denoiser = ["Pipe-\nline\nms", "Speed-\nup"], ["De-\nnoiser\nms", "Speed-\nup"]
    columns = ["Batch", "Prom-\nised", *pipeline, *denoiser, "Switch\nms", "Weights\nMB"]
    peaks = all(row["peak_bytes"] is not None for row in result["rows"])
    table = _Table(setting, "Runner", *columns, *(["Peak\nMB"] if peaks else []))
    for row in result["rows"]:
        cells = [
            str(row["batch"]),
            f"{1 / row['macs_ratio']:.2f}x",
            f"{row['pipeline_ms']:.0f}",
            UNRELIABLE if row["doubt"] else f"{row['speedup']:.2f}x",
            f"{row['denoiser_ms']:.0f}",
            "–" if row["doubt"] else f"{row['denoiser_speedup']:.2f}x",
            _number(row["switch_ms"], ".2f"),
            f"{row['weight_bytes'] / 1e6:.0f}",
        ]
        table.add_row(row["runner"], *cells, *([f"{row['peak_bytes'] / 1e6:.0f}"] if peaks else []))
    console.print(table)
    for row in (one for one in result["rows"] if one["doubt"]):
        told = f"{row['runner']}, batch {row['batch']}: {row['doubt']}"
        console.print(f"Speed-up not measured reliably: {told}.", highlight=False)


def show_forecast(console: Console, foretold: Forecast) -> None:
    """Time by phase, memory, disk and the size of the result, and what would shrink them."""
    table = _Table("What it would take here, by a few timed calls", "phase", "time")
    for name, seconds in foretold.phases.items():
        table.add_row(name, duration(seconds))
    table.add_row("in all", duration(foretold.seconds))
    console.print(table)
    table = _Table("At the most", "what", "GB")
    for name, size in (("memory, with what is held now", foretold.memory), ("disk meanwhile", foretold.disk)):
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_row("weights of the result", f"{foretold.result / 1e9:.2f}")
    console.print(table)
    if foretold.passes > 1:
        console.print(f"Calibration repeats its runs {foretold.passes} times, to keep within the limit of memory.")
    for what, settings in foretold.advice().items():
        console.print(f"Less {what}: {settings}.", highlight=False)


def show_price(console: Console, title: str, found: Price) -> None:
    """What a run of a recipe would take."""
    console.print(f"{title}: nothing is run.")
    if found.seconds is not None and found.memory is not None and found.disk is not None:
        sizes = f"{found.memory / 1e9:.1f} GB of memory, {found.disk / 1e6:.1f} MB on disk"
        console.print(f"It takes {duration(found.seconds)}, {sizes}.", highlight=False)
    console.print(f"From {found.basis.value}.", highlight=False)
    for one in found.missing:
        console.print(f"Not here: {one}", highlight=False)


def show_outcome(console: Console, found: Outcome) -> None:
    """What a run of a recipe came to, beside published figures."""
    table = _Table(f"{found.title}: {found.images} images", "Contender", "Metric", "Measured", "Error", "Published")
    for row in found.rows:
        figures = _number(row.value, ".4g"), _number(row.error, ".2g"), _number(row.published, ".4g")
        table.add_row(row.contender, row.metric, *figures)
    console.print(table)
    for source in dict.fromkeys(row.source for row in found.rows if row.source):
        console.print(f"Published: {source}.", highlight=False)
