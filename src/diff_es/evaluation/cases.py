"""Which of the evaluated noises a page shows: the worst and the typical ones, not the first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .report import CaseKind, Row


def judged_by(rows: Sequence[Row]) -> int:
    """The number of the row by whose closeness noises are chosen: our tightest budget, or the last row without one."""
    ours = [index for index, row in enumerate(rows) if row.contender == "diff-es"]
    return min(ours, key=lambda index: rows[index].budget, default=len(rows) - 1)


def chosen(snr_db: Tensor, count: int) -> tuple[tuple[int, CaseKind], ...]:
    """The noises to show of those with these SNRs, (N,): the worst first, then as many around the median.

    Half of ``count``, rounded up, are worst ones; where there are no more noises than that, all are shown.
    """
    order: list[int] = snr_db.argsort(stable=True).tolist()
    worst, typical = -(-count // 2), count // 2
    rest = order[worst:]
    first = min(max(0, (len(order) - typical) // 2 - worst), max(0, len(rest) - typical))
    middle = rest[first : first + typical]
    return (*((one, CaseKind.WORST) for one in order[:worst]), *((one, CaseKind.TYPICAL) for one in middle))
