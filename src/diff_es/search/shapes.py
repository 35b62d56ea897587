"""Shapes of schedules that earlier methods and users fall back on, as families from dear to cheap.

`deepest[stage][unit]` is the deepest level on offer; what a shape asks beyond it is cut off.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from diff_es.search.slots import Steps

Rows = tuple[tuple[int, ...], ...]


def ramps(deepest: Sequence[Sequence[int]], rising: bool, gap: int) -> list[Rows]:
    """Straight ramps whose first and last stage differ by `gap` levels."""
    _check_gap("ramp", gap)
    stages, top = len(deepest), max(map(max, deepest))
    run = max(stages - 1, 1)
    rise = [gap * (s if rising else stages - 1 - s) for s in range(stages)]
    return [cut(deepest, [(foot + r) // run for r in rise]) for foot in range(-gap * run, top * run + 1)]


def protections(deepest: Sequence[Sequence[int]], stages: Collection[int], gap: int) -> list[Rows]:
    """Two levels, `stages` `gap` levels less pruned than the others; without stages, uniform."""
    _check_gap("protect", gap)
    unknown = sorted(set(stages) - set(range(len(deepest))))
    if unknown:
        raise ValueError(f"Space.protect: expected stages from 0 to {len(deepest) - 1}, found {unknown}")
    return [
        cut(deepest, [level - gap if s in stages else level for s in range(len(deepest))])
        for level in range(max(map(max, deepest)) + gap + 1)
    ]


def spreads(steps: Steps, early: bool) -> list[tuple[int, ...]]:
    """Steps of each stage for totals from 1 to the most: in proportion to the stage's own, or, where `early`, with a
    weight that falls from 3 at the noisiest stage to 1 at the last. Each is the nearest count that the stage offers.
    """
    run = max(len(steps.own) - 1, 1)
    weights = [own * (3 * run - 2 * s if early else 1) for s, own in enumerate(steps.own)]
    ends = [sum(weights[:s]) for s in range(len(weights) + 1)]
    found = dict[tuple[int, ...], None]()
    for total in range(1, sum(counts[-1] for counts in steps.counts) + 1):
        marks = [-(-total * end // ends[-1]) for end in ends]  # rounded up: a step too many goes to the noisier stage
        wanted = [b - a for a, b in pairwise(marks)]
        found[tuple(nearest(counts, n) for counts, n in zip(steps.counts, wanted, strict=True))] = None
    return list(found)


def nearest(counts: Sequence[int], wanted: int) -> int:
    """The count next to a wanted number of steps; of two, the lower."""
    return min(counts, key=lambda n: (abs(n - wanted), n))


def cut(deepest: Sequence[Sequence[int]], wanted: Iterable[int]) -> Rows:
    """One wanted level per stage, cut off at what each of its units offers."""
    return tuple(
        tuple(min(max(level, 0), most) for most in stage) for level, stage in zip(wanted, deepest, strict=True)
    )


def _check_gap(where: str, gap: int) -> None:
    if gap < 0:
        raise ValueError(f"Space.{where}: expected a gap of 0 or more levels, found {gap}")
