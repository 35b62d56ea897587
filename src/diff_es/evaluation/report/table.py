"""The table of all measurements: one row of each contender, budget by budget, the best of each in bold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from diff_es.evaluation.report.data import CONTENDERS, UNRELIABLE, Row, budgets, is_number, ordered
from diff_es.evaluation.report.prose import TIMES, at_budget

DASH = "\u2013"  # stands for what was not measured


@dataclass(frozen=True)
class Column:
    heading: str
    unit: str
    of: Callable[[Row], float | None]
    decimals: int
    better: int = 0  # 1: more is better, -1: less is, 0: neither, so nothing is marked best
    spread: Callable[[Row], float] | None = None  # written as ± behind the value
    absent: str = DASH  # where there is none
    timed: bool = False  # a time, so that one that was not measured reliably wins nothing

    def write(self, row: Row) -> str:
        value = self.of(row)
        if not is_number(value):
            return self.absent if value is None else "∞" if value == math.inf else "not a number"
        return f"{value:,.{self.decimals}f}"

    def write_spread(self, row: Row) -> str:
        return f" ± {self.spread(row):,.{self.decimals}f}" if self.spread else ""

    def counts(self, row: Row) -> bool:
        return not (self.timed and row.doubt)

    def best(self, rows: Sequence[Row]) -> str | None:
        """The winning figure as written, for what looks equal is equally bold; None if there is nothing to win."""
        fair = filter(self.counts, rows)
        found = {self.write(row): value * self.better for row in fair if is_number(value := self.of(row))}
        return max(found, key=found.__getitem__) if self.better and len(found) > 1 else None


COLUMNS = (
    Column("Steps", "", lambda row: row.steps, 0),
    Column("MACs ratio", "of dense", lambda row: row.macs_ratio, 3),
    Column("Latency", "ms", lambda row: row.latency_ms, 1, -1, spread=lambda row: row.latency_spread, timed=True),
    Column("Speed-up", TIMES, lambda row: None if row.doubt else row.speedup, 2, better=1, absent=UNRELIABLE),
    Column("Denoiser speed-up", TIMES, lambda row: None if row.doubt else row.denoiser_speedup, 2, better=1),
    Column("SNR", "dB", lambda row: row.snr_db, 1, better=1),
    Column("SNR to own steps", "dB", lambda row: row.own_snr_db, 1, better=1),
    Column("PSNR", "dB", lambda row: row.psnr_db, 1, better=1),
    Column("Fréchet distance", "to real data", lambda row: row.frechet_distance, 2, better=-1),
    Column("Weights", "MB", lambda row: row.weight_bytes / 1e6, 1, better=-1),
)


@dataclass(frozen=True)
class Line:
    contender: str  # class name on the page
    name: str
    cells: tuple[Markup, ...]


@dataclass(frozen=True)
class Group:
    budget: str
    lines: tuple[Line, ...]


def table(rows: Sequence[Row]) -> list[Group]:
    """By budget, from the loosest."""
    groups = []
    for budget in budgets(rows):
        group = [row for row in ordered(rows) if row.budget == budget]
        best = [column.best(group) for column in COLUMNS]
        lines = [
            Line(
                row.contender,
                CONTENDERS[row.contender].name,
                tuple(_cell(column, row, top) for column, top in zip(COLUMNS, best, strict=True)),
            )
            for row in group
        ]
        groups.append(Group(at_budget(budget), tuple(lines)))
    return groups


def _cell(column: Column, row: Row, best: str | None) -> Markup:
    written = column.write(row)
    wins = written == best and column.counts(row)
    return Markup("<strong>{}</strong>{}" if wins else "{}{}").format(written, column.write_spread(row))
