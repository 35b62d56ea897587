"""The tables of ``scaling.py``, of what it measured; whatever it foretells is worked out here."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, TypeAlias

from cluster import makespan
from common import header, row

Rows: TypeAlias = Sequence[dict[str, Any]]
"""Of one part, as they were written down."""


def show_start(rows: Rows) -> None:
    header("Ray's start", "a worker's process and imports", "opening of what is shared", "a piece", "the end", "load")
    for one in rows:
        names = ("ray", "worker", "open", "piece", "end")
        row(*(f"{one[name]:.1f} s" for name in names), f"{one['load']:.1f}")


def show_overhead(rows: Rows) -> None:
    header("seconds of a piece", "pieces", "rounds", "Ray against this process, median", "least to most", "load")
    for _, each in itertools.groupby(rows, lambda one: one["noises"]):
        found = list(each)
        own = statistics.mean(one["alone"] / one["pieces"] for one in found)
        more = [one["ray"] / one["alone"] - 1 for one in found]
        spread = f"{min(more):+.1%} to {max(more):+.1%}"
        shown = f"{found[0]['pieces']}", f"{len(found)}", f"{statistics.median(more):+.1%}"
        row(f"{own:.2f}", *shown, spread, f"{found[0]['load']:.1f}")


def show_throughput(rows: Rows) -> None:
    piece, first = latency(rows), [one for one in rows if one["workers"] == 1]
    count, cores, single = len(first[0]["busy"]), first[0]["cores"], mean_of(first, "busy")

    def foretold(workers: int, seconds: float) -> float:
        return makespan([seconds * max(1.0, workers / cores) + piece] * count, workers)

    header("workers", "pieces a second", "foretold", "times one, by round", "by processor time", "piece", "processor")
    for workers in sorted({one["workers"] for one in rows}):
        found = [one for one in rows if one["workers"] == workers]
        times = [own["wall"] / one["wall"] for own, one in zip(first, found, strict=True)]
        took = statistics.median(one["wall"] for one in found)
        faster = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        free = foretold(1, mean_of(first, "cpu")) / foretold(workers, mean_of(found, "cpu"))
        shown = f"{count / took:.2f}", f"{count / foretold(workers, single):.2f}", faster, f"{free:.2f}"
        row(f"{workers}", *shown, *(f"{mean_of(found, key):.2f} s" for key in ("busy", "cpu")))
    print(f"\nLoad {rows[0]['load']:.1f} before it began; a piece takes {1e3 * piece:.1f} ms beside its own time.")


def mean_of(rows: Rows, key: str) -> float:
    """Seconds of a piece."""
    return statistics.mean(list[float](itertools.chain.from_iterable(one[key] for one in rows)))


def latency(rows: Rows) -> float:
    """Seconds of a piece beside its own: of generations in wall time beyond what their pieces, packed, come to."""
    left: list[float] = [one["wall"] - makespan(one["busy"], one["workers"]) for one in rows]
    most = [math.ceil(len(one["busy"]) / one["workers"]) for one in rows]
    return float(statistics.median(beyond / pieces for beyond, pieces in zip(left, most, strict=True)))


def show_solving(rows: Rows) -> None:
    faster = [one["alone"] / one["ray"] for one in rows]
    header("this process", "two workers", "times as fast, median", "least to most", "load")
    alone, ray = (f"{statistics.median(one[name] for one in rows):.1f} s" for name in ("alone", "ray"))
    spread = f"{min(faster):.2f} to {max(faster):.2f}"
    row(alone, ray, f"{statistics.median(faster):.2f}", spread, f"{rows[0]['load']:.1f}")


def show_weights(rows: Rows) -> None:
    header(
        "model", "opened from its origin", "made in memory", "levels", "statistics, by piece", "a piece", "an answer"
    )
    for one in rows:
        sizes = (f"{one[name] / 1e6:.2f} MB" for name in ("origin", "memory", "levels", "statistics"))
        row(one["model"], *sizes, f"{one['piece']} bytes", f"{one['answer']} bytes")
