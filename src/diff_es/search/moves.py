"""How a schedule moves: the arithmetic behind `Space`.

A schedule is `flat` here, a list of numbers over slots: of each stage the steps, where they vary, and then its levels.
"""

from collections.abc import Collection, Sequence

import numpy as np

from diff_es.search.slots import Slot, Steps, make_slot


class Moves:
    """Moves of schedules under a budget.

    `costs[stage][unit][level]`, and `fixed[stage]` for what belongs to no unit, are those of one step where `steps` is
    given.
    """

    def __init__(
        self, costs: Sequence[Sequence[Sequence[int]]], fixed: Sequence[int], steps: Steps | None, budget: int
    ) -> None:
        self._steps, self._fixed, self._budget = steps, fixed, budget
        self.slots = list[Slot]()
        for s, stage in enumerate(costs):
            if steps:
                self.slots.append(make_slot({n: n for n in steps.counts[s]}))
            self.slots += (make_slot(dict(enumerate(row))) for row in stage)
        self.width = len(self.slots) // len(costs)  # slots of a stage
        self._starts = range(0, len(self.slots), self.width)  # the first slot of each stage

    def spent(self, flat: Sequence[int]) -> int:
        return sum(self._times(flat, i) * self._rate(flat, i) for i in self._starts)

    def cleared(self, flat: Sequence[int]) -> list[int]:
        """With 0 for what changes nothing."""
        return [
            0 if slot.idle or not self._times(flat, i) else option
            for i, (slot, option) in enumerate(zip(self.slots, flat, strict=True))
        ]

    def mutated(self, flat: Sequence[int], rng: np.random.Generator, most: int) -> list[int]:
        flat = self.cleared(flat)
        up: set[int] = set()
        for _ in range(int(min(rng.integers(1, most + 1), rng.integers(1, most + 1)))):
            moves = self._affordable(flat, up)
            if not moves:
                break
            i, option = moves[int(rng.integers(len(moves)))]
            rise = self._change(flat, i, option)
            self._set(flat, i, option, rng)
            up.add(i)
            if rise:
                self._pay(flat, i, rise, up, rng)
        return self.repaired(flat, rng, keep=up)

    def repaired(self, flat: Sequence[int], rng: np.random.Generator, keep: Collection[int] = ()) -> list[int]:
        """Down to the budget, slots in `keep` excepted, then up to a maximal schedule."""
        flat = self.cleared(flat)
        payers = [i for i in range(len(flat)) if i not in keep]
        self._settle(flat, rng, self._budget - self.spent(flat), payers, list(range(len(flat))), keep)
        return flat

    def _settle(
        self,
        flat: list[int],
        rng: np.random.Generator,
        slack: int,
        payers: list[int],
        takers: list[int],
        keep: Collection[int],
    ) -> None:
        """Move random `payers` down until the slack is none below 0, then random `takers` up while they fit it."""
        while slack < 0 and payers:
            slack += self._step(flat, payers, rng, dearer=False, slack=slack, keep=keep)
        while takers:
            slack += self._step(flat, takers, rng, dearer=True, slack=slack, keep=keep)

    def _step(
        self,
        flat: list[int],
        movable: list[int],
        rng: np.random.Generator,
        *,
        dearer: bool,
        slack: int,
        keep: Collection[int],
    ) -> int:
        """Move a random slot of `movable` one step and return the cost set free; strike it off where it cannot move.

        Going up, slack only falls and the steps of a stage only rise, so a slot that was struck off would never fit
        again; but for the levels of a stage that has only now got steps.
        """
        pick = int(rng.integers(len(movable)))
        i = movable[pick]
        targets = self._dearer(flat, i) if dearer else self._cheaper(flat, i, keep)
        if not targets or (dearer and self._change(flat, i, targets[0]) > slack):
            movable[pick] = movable[-1]
            movable.pop()
            return 0
        if dearer and not self._times(flat, i):
            movable += [j for j in self._levels(i) if j not in movable]
        option = _draw(targets, rng)
        change = self._change(flat, i, option)
        self._set(flat, i, option, rng)
        return -change

    def _pay(self, flat: list[int], i: int, rise: int, up: Collection[int], rng: np.random.Generator) -> None:
        """Let one slot pay for the rise of slot `i`; or the rest of its stage, and in full: in as many cases as one
        number is of a stage's."""
        if self._steps:
            stage = range(i - i % self.width, i - i % self.width + self.width)
            others = [j for j in stage if j not in up]
            partners = [j for j in others if self._cheaper(flat, j, up)]
            if partners and rng.random() * self.width < 1:
                self._settle(flat, rng, -rise, partners, others, up)
                return
        payers = [j for j in range(len(flat)) if j not in up and self._cheaper(flat, j, up)]
        if payers:
            j = payers[int(rng.integers(len(payers)))]
            self._set(flat, j, _draw(self._cheaper(flat, j, up), rng), rng)

    def _affordable(self, flat: Sequence[int], up: Collection[int]) -> list[tuple[int, int]]:
        """The moves (slot, option) up or sideways that fit once all slots outside `up` are at their cheapest."""
        floors = [self._floor(flat, i, up) for i in self._starts]
        total = sum(times * rate for times, _, rate in floors)
        moves = list[tuple[int, int]]()
        for i, slot in enumerate(self.slots):
            if i in up:
                continue
            times, fewest, rate = floors[i // self.width]
            room = self._budget - total + times * rate
            if self._is_steps(i):
                moves += [(i, n) for n in slot.dearer[flat[i]] if n * rate <= room]
            elif self._times(flat, i):
                options = slot.peers[flat[i]] + slot.dearer[flat[i]]
                moves += [(i, o) for o in options if fewest * (rate - slot.least + slot.prices[o]) <= room]
        return moves

    def _floor(self, flat: Sequence[int], i: int, up: Collection[int]) -> tuple[int, int, int]:
        """Of slot `i`'s stage, with all outside `up` at their cheapest: the steps that it takes, those that it must
        take once a level is in `up`, and what one costs."""
        levels = self._levels(i)
        rate = self._fixed[i // self.width] + sum(
            self.slots[j].prices[flat[j]] if j in up else self.slots[j].least for j in levels
        )
        if not self._steps:
            return 1, 1, rate
        first = levels[0] - 1
        counts = self.slots[first].options
        fewest = flat[first] if first in up else next((n for n in counts if n), 0)
        return fewest if first in up or any(j in up for j in levels) else counts[0], fewest, rate

    def _is_steps(self, i: int) -> bool:
        return self._steps is not None and i % self.width == 0

    def _levels(self, i: int) -> range:
        """The slots of the levels of a slot's stage."""
        start = i - i % self.width
        return range(start + (self._steps is not None), start + self.width)

    def _times(self, flat: Sequence[int], i: int) -> int:
        """The steps of a slot's stage, as far as costs do not count them already."""
        return flat[i - i % self.width] if self._steps else 1

    def _rate(self, flat: Sequence[int], i: int) -> int:
        """The cost of a step of a slot's stage."""
        return self._fixed[i // self.width] + sum(self.slots[j].prices[flat[j]] for j in self._levels(i))

    def _dearer(self, flat: Sequence[int], i: int) -> tuple[int, ...]:
        return self.slots[i].dearer[flat[i]] if self._is_steps(i) or self._times(flat, i) else ()

    def _cheaper(self, flat: Sequence[int], i: int, keep: Collection[int]) -> tuple[int, ...]:
        """A stage with a level in `keep` goes on taking steps."""
        if not self._times(flat, i):
            return ()
        targets = self.slots[i].cheaper[flat[i]]
        if self._is_steps(i) and targets == (0,) and any(j in keep for j in self._levels(i)):
            return ()
        return targets

    def _change(self, flat: Sequence[int], i: int, option: int) -> int:
        """What going to an option adds to the cost."""
        slot = self.slots[i]
        if not self._is_steps(i):
            return self._times(flat, i) * (slot.prices[option] - slot.prices[flat[i]])
        if flat[i]:
            return (option - flat[i]) * self._rate(flat, i)
        return option * (self._fixed[i // self.width] + sum(self.slots[j].least for j in self._levels(i)))

    def _set(self, flat: list[int], i: int, option: int, rng: np.random.Generator) -> None:
        """Go to an option; levels of a stage begin at their cheapest and end at 0."""
        if self._is_steps(i) and not (flat[i] and option):
            for j in self._levels(i):
                flat[j] = _draw(self.slots[j].cheapest, rng) if option and not self.slots[j].idle else 0
        flat[i] = option


def _draw(options: Sequence[int], rng: np.random.Generator) -> int:
    return options[int(rng.integers(len(options)))] if len(options) > 1 else options[0]
