"""The space of schedules within a budget: what they cost, where a search may start, how it moves.

A candidate is plain data, one level per (stage, unit). Every move ends in a *maximal* candidate: it keeps the budget,
and no single (stage, unit) can go to its next dearer level without breaking it. Budget left over is quality given away,
so nothing else is worth an evaluation.

"Dearer" and "cheaper" always compare costs within the (stage, unit)'s own row, because costs need not fall from level
to level (a narrow but odd width may run slower than a wider even one). Levels of equal cost are peers, and a move may
go sideways between them. A row of zeros belongs to a stage that takes no sampler steps: its level changes nothing, so
moves set it to 0 and leave it alone.

Sources: Diff-ES, arXiv 2603.05105; the level-switch mutation is EvoPress', arXiv 2410.14649.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Levels = tuple[tuple[int, ...], ...]
"""A candidate schedule, `levels[stage][unit]`; stage 0 is the noisiest."""


@dataclass(frozen=True)
class _Slot:
    """One (stage, unit): the cost of each level, and for each level the levels it can go to."""

    costs: tuple[int, ...]
    dearer: tuple[tuple[int, ...], ...]  # the next dearer cost; () at the dearest
    cheaper: tuple[tuple[int, ...], ...]  # the next cheaper cost; () at the cheapest
    peers: tuple[tuple[int, ...], ...]  # the same cost, itself excluded; () where the slot is idle

    @property
    def idle(self) -> bool:
        return not any(self.costs)


def _slot(costs: tuple[int, ...]) -> _Slot:
    ladder = sorted(set(costs))
    rungs = [tuple(level for level, cost in enumerate(costs) if cost == rung) for rung in ladder]
    rung_of = [ladder.index(cost) for cost in costs]
    return _Slot(
        costs=costs,
        dearer=tuple(rungs[r + 1] if r + 1 < len(rungs) else () for r in rung_of),
        cheaper=tuple(rungs[r - 1] if r > 0 else () for r in rung_of),
        peers=tuple(tuple(p for p in rungs[r] if p != level and any(costs)) for level, r in enumerate(rung_of)),
    )


@dataclass(frozen=True)
class Space:
    """All schedules that cost at most `budget`.

    Raises ValueError where the table of costs is malformed, or where even the cheapest schedule exceeds the budget.
    """

    costs: tuple[tuple[tuple[int, ...], ...], ...]  # [stage][unit][level] >= 0, over all sampler steps of the stage
    budget: int  # in the unit of `costs`

    def __post_init__(self) -> None:
        if not self.costs or not self.costs[0]:
            raise ValueError("Space.costs: expected at least one stage and one unit, found none")
        for s, stage in enumerate(self.costs):
            if len(stage) != len(self.costs[0]):
                raise ValueError(
                    f"Space.costs[{s}]: expected {len(self.costs[0])} units as in stage 0, found {len(stage)}; "
                    "give a unit that is absent from a stage one level of cost 0"
                )
            for u, row in enumerate(stage):
                if not row or not all(isinstance(cost, int) and cost >= 0 for cost in row):
                    raise ValueError(
                        f"Space.costs[{s}][{u}]: expected one non-negative Python int per level, found {row!r}; "
                        "round to whole MACs or nanoseconds and convert with int(), so that sums are exact"
                    )
        least = sum(min(slot.costs) for slot in self._slots)
        if least > self.budget:
            raise ValueError(
                f"Space.budget: asked for a cost of at most {self.budget}, but the cheapest schedule costs {least}; "
                f"raise the budget to {least} or more, or offer cheaper levels"
            )

    @cached_property
    def _slots(self) -> tuple[_Slot, ...]:
        return tuple(_slot(row) for stage in self.costs for row in stage)

    @property
    def stages(self) -> int:
        return len(self.costs)

    @property
    def units(self) -> int:
        return len(self.costs[0])

    def misfit(self, levels: Levels) -> str | None:
        """Why `levels` is no schedule of this table (shape, range); None where it is one, whatever it costs."""
        shape = [len(stage) for stage in levels]
        if shape != [self.units] * self.stages:
            return f"expected {self.stages} stages x {self.units} units, found units per stage {shape}"
        for s, stage in enumerate(levels):
            for u, level in enumerate(stage):
                if not 0 <= level < len(self.costs[s][u]):
                    return f"expected a level from 0 to {len(self.costs[s][u]) - 1} at [{s}][{u}], found {level}"
        return None

    def cost(self, levels: Levels) -> int:
        """The exact cost of a schedule. ValueError where its shape or a level is not of this space."""
        return self._spent(self._flat(levels))

    def feasible(self, levels: Levels) -> bool:
        """Whether `levels` has the right shape, levels in range, and a cost within the budget."""
        return self.misfit(levels) is None and self.cost(levels) <= self.budget

    def cheapest(self) -> Levels:
        """The cheapest schedule; among levels of equal cost the lowest."""
        return self._levels([slot.costs.index(min(slot.costs)) for slot in self._slots])

    def uniform(self) -> Levels:
        """The dearest single level for all (stage, unit) that keeps the budget; rows that end sooner give their last.

        Exactly that shape, as a baseline needs it: slack may be left, which `repair` spends. ValueError where no
        uniform schedule fits, which takes costs that do not fall with the level.
        """
        return self._dearest("uniform", self._protections((), 0))

    def ramp(self, rising: bool, gap: int) -> Levels:
        """The dearest straight ramp within the budget: first and last stage differ by `gap` levels.

        `rising`: the level rises from noise to image, so late stages are pruned most; otherwise it falls. Ends are cut
        off at the lowest and highest level. Slack and errors as in `uniform`.
        """
        return self._dearest("ramp", self._ramps(rising, gap))

    def protect(self, stages: Collection[int], gap: int) -> Levels:
        """The dearest schedule of two levels within the budget: `stages` are `gap` levels less pruned than the others.

        With the middle stages this is MosaicDiff's shape. Cut off, slack and errors as in `ramp`; also ValueError where
        a stage is not of this space.
        """
        return self._dearest("protect", self._protections(stages, gap))

    def starts(self, rng: np.random.Generator, gap: int = 2) -> tuple[Levels, ...]:
        """Distinct maximal starts: uniform, both ramps, and the middle third protected, each with its slack spent."""
        middle = range(self.stages // 3, self.stages - self.stages // 3)
        ramps = self._ramps(True, gap), self._ramps(False, gap)
        families = self._protections((), 0), *ramps, self._protections(middle, gap)
        fitting = [list(filter(self.feasible, family)) for family in families]
        return tuple(dict.fromkeys(self.repair(max(fits, key=self.cost), rng) for fits in fitting if fits))

    def random(self, rng: np.random.Generator) -> Levels:
        """A uniform draw of every level, repaired. Every maximal candidate can be drawn."""
        return self._repaired([int(rng.integers(len(slot.costs))) for slot in self._slots], rng)

    def repair(self, levels: Levels, rng: np.random.Generator) -> Levels:
        """A maximal candidate near `levels`, which may cost anything; a maximal one is returned as it is.

        While over budget, random (stage, unit)s go to their next cheaper level; then random ones go to their next
        dearer level as long as one fits. ValueError where shape or a level is not of this space.
        """
        return self._repaired(self._flat(levels), rng)

    def mutate(self, levels: Levels, rng: np.random.Generator, most: int) -> Levels:
        """Level-switch mutation (EvoPress): min(U{1..most}, U{1..most}) switches, then repair.

        A switch moves one (stage, unit) to its next dearer level and another to its next cheaper one, so the budget is
        kept to the unit where these steps cost the same. A sideways switch, to a peer, needs no counterpart. What went
        up stays up, and only moves that the others can pay for are drawn. Hence the child of a maximal parent differs
        from it, unless the parent is the only maximal candidate there is: any other has some (stage, unit) that is
        dearer or a peer, and drawing that one is possible here.
        """
        if most < 1:
            raise ValueError(f"Space.mutate: expected at least one switch at most, found most={most}")
        flat = self._cleared(self._flat(levels))
        up: set[int] = set()
        for _ in range(int(min(rng.integers(1, most + 1), rng.integers(1, most + 1)))):
            moves = self._affordable(flat, up)
            if not moves:
                break
            i, level = moves[int(rng.integers(len(moves)))]
            sideways = self._slots[i].costs[level] == self._slots[i].costs[flat[i]]
            flat[i] = level
            up.add(i)
            payers = [j for j, slot in enumerate(self._slots) if j not in up and slot.cheaper[flat[j]]]
            if payers and not sideways:
                j = payers[int(rng.integers(len(payers)))]
                flat[j] = _draw(self._slots[j].cheaper[flat[j]], rng)
        return self._repaired(flat, rng, keep=up)

    def crossover(self, a: Levels, b: Levels, rng: np.random.Generator) -> Levels:
        """Each stage from either parent with equal chance, then repaired. It may well return a parent."""
        from_a = rng.integers(2, size=self.stages)
        return self.repair(tuple(x if first else y for x, y, first in zip(a, b, from_a, strict=True)), rng)

    # Within, a schedule is `flat`: a list of levels over slots, where slot = stage * units + unit.

    def _flat(self, levels: Levels) -> list[int]:
        problem = self.misfit(levels)
        if problem is not None:
            raise ValueError(f"levels: {problem}; was it made for another space?")
        return [level for stage in levels for level in stage]

    def _levels(self, flat: Sequence[int]) -> Levels:
        return tuple(tuple(flat[s * self.units : (s + 1) * self.units]) for s in range(self.stages))

    def _spent(self, flat: Sequence[int]) -> int:
        return sum(slot.costs[level] for slot, level in zip(self._slots, flat, strict=True))

    def _cleared(self, flat: Sequence[int]) -> list[int]:
        return [0 if slot.idle else level for slot, level in zip(self._slots, flat, strict=True)]

    def _affordable(self, flat: Sequence[int], up: Collection[int]) -> list[tuple[int, int]]:
        """The moves (slot, level) up or sideways that fit once all slots outside `up` are at their cheapest."""
        floor = sum(slot.costs[flat[i]] if i in up else min(slot.costs) for i, slot in enumerate(self._slots))
        return [
            (i, level)
            for i, slot in enumerate(self._slots)
            if i not in up
            for level in slot.peers[flat[i]] + slot.dearer[flat[i]]
            if floor - min(slot.costs) + slot.costs[level] <= self.budget
        ]

    def _repaired(self, flat: Sequence[int], rng: np.random.Generator, keep: Collection[int] = ()) -> Levels:
        """Down to the budget, slots in `keep` excepted, then up to a maximal candidate."""
        flat = self._cleared(flat)
        slack = self.budget - self._spent(flat)
        movable = [i for i in range(len(flat)) if i not in keep]
        while slack < 0:
            slack += self._step(flat, movable, rng, dearer=False, slack=slack)
        movable = list(range(len(flat)))
        while movable:
            slack += self._step(flat, movable, rng, dearer=True, slack=slack)
        return self._levels(flat)

    def _step(self, flat: list[int], movable: list[int], rng: np.random.Generator, *, dearer: bool, slack: int) -> int:
        """Move a random slot of `movable` one step and return the cost set free; strike it off where it cannot move.

        Slack only falls on the way up, so a slot struck off once would never fit again.
        """
        pick = int(rng.integers(len(movable)))
        i = movable[pick]
        slot, level = self._slots[i], flat[i]
        targets = slot.dearer[level] if dearer else slot.cheaper[level]
        if not targets or (dearer and slot.costs[targets[0]] - slot.costs[level] > slack):
            movable[pick] = movable[-1]
            movable.pop()
            return 0
        flat[i] = _draw(targets, rng)
        return slot.costs[level] - slot.costs[flat[i]]

    def _dearest(self, name: str, family: Sequence[Levels]) -> Levels:
        fits = list(filter(self.feasible, family))
        if not fits:
            raise ValueError(
                f"Space.{name}: expected a schedule of this shape within the budget of {self.budget}, but the cheapest "
                f"one costs {min(map(self.cost, family))}; raise the budget, or start from cheapest() or random()"
            )
        return max(fits, key=self.cost)

    def _ramps(self, rising: bool, gap: int) -> list[Levels]:
        _check_gap("ramp", gap)
        run = max(self.stages - 1, 1)
        rise = [gap * (s if rising else self.stages - 1 - s) for s in range(self.stages)]
        return [self._cut([(foot + r) // run for r in rise]) for foot in range(-gap * run, self._top * run + 1)]

    def _protections(self, stages: Collection[int], gap: int) -> list[Levels]:
        _check_gap("protect", gap)
        unknown = sorted(set(stages) - set(range(self.stages)))
        if unknown:
            raise ValueError(f"Space.protect: expected stages from 0 to {self.stages - 1}, found {unknown}")
        return [
            self._cut([level - gap if s in stages else level for s in range(self.stages)])
            for level in range(self._top + gap + 1)
        ]

    @property
    def _top(self) -> int:
        return max(len(slot.costs) for slot in self._slots) - 1

    def _cut(self, wanted: Iterable[int]) -> Levels:
        """One wanted level per stage, cut off at what each of its units offers."""
        return tuple(
            tuple(min(max(level, 0), len(row) - 1) for row in stage)
            for level, stage in zip(wanted, self.costs, strict=True)
        )


def _draw(options: Sequence[int], rng: np.random.Generator) -> int:
    return options[int(rng.integers(len(options)))] if len(options) > 1 else options[0]


def _check_gap(where: str, gap: int) -> None:
    if gap < 0:
        raise ValueError(f"Space.{where}: expected a gap of 0 or more levels, found {gap}")
