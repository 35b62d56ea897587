"""The space of schedules within a budget: what they cost, where a search may start, how it moves.

A stage of a candidate costs the sum over its units, times its steps where stages choose these. Every move ends in a
*maximal* candidate: it keeps the budget, and no single number of it can go to its next dearer option without breaking
it. Budget left over is quality given away, so nothing else is worth an evaluation.

"Dearer" and "cheaper" of a level always compare costs within the (stage, unit)'s own row, because costs need not fall
from level to level (a narrow but odd width may run slower than a wider even one). Levels of equal cost are peers, and a
move may go sideways between them. What changes nothing, the levels of a stage without steps and a row of zeros, is set
to 0 and left alone. From no steps the next dearer option is the fewest steps at the cheapest levels.

Sources: Diff-ES, arXiv 2603.05105; the level-switch mutation is EvoPress', arXiv 2410.14649.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from diff_es.search.candidate import Candidate
from diff_es.search.moves import Moves
from diff_es.search.shapes import Rows, cut, protections, ramps, spreads
from diff_es.search.slots import Steps


class NoneFits(ValueError):
    """No schedule of a shape keeps the budget."""


@dataclass(frozen=True)
class Space:
    """All schedules that cost at most `budget`.

    Levers: levels alone (no `steps`), steps alone (one level per unit), or both.

    Raises ValueError where the table of costs is malformed, or where even the cheapest schedule exceeds the budget.
    """

    costs: tuple[tuple[tuple[int, ...], ...], ...]  # [stage][unit][level] >= 0, over all steps; of one, if they vary
    budget: int  # an amount, in the unit of `costs`, for all that a schedule costs
    steps: Steps | None = None  # what each stage may take; None: costs count its steps already
    fixed: tuple[int, ...] = ()  # [stage] what belongs to no unit, counted as `costs` are; (): nothing

    def __post_init__(self) -> None:
        if not self.costs or not self.costs[0]:
            raise ValueError("Space.costs: expected at least one stage and one unit, found none")
        if self.fixed and (len(self.fixed) != self.stages or min(self.fixed) < 0):
            raise ValueError(f"Space.fixed: expected {self.stages} costs of 0 or more, found {self.fixed}")
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
            if self.steps and self._fixed[s] + sum(map(min, stage)) == 0:
                raise ValueError(f"Space.costs[{s}]: expected a step to cost something at any level, found 0")
        if self.steps and len(self.steps.counts) != self.stages:
            raise ValueError(f"Space.steps: expected {self.stages} stages, found {len(self.steps.counts)}")
        least = self._moves.spent([slot.cheapest[0] for slot in self._moves.slots])
        if least > self.budget:
            raise ValueError(
                f"Space.budget: asked for a cost of at most {self.budget}, but the cheapest schedule costs {least}; "
                f"raise the budget to {least} or more, or offer cheaper levels"
            )

    def within(self, budget: int) -> "Space":
        """The same schedules under another budget."""
        return replace(self, budget=budget)

    def taking(self, counts: Sequence[int]) -> "Space":
        """The schedules whose stages take these numbers of steps: levels alone are a choice.

        ValueError where even the deepest levels exceed the budget.
        """
        if not self.steps:
            raise ValueError("Space.taking: expected a space whose stages choose their steps, found fixed ones")
        own = tuple(counts)
        return replace(self, steps=Steps(tuple((n,) for n in own), own))

    def pays(self, counts: Sequence[int]) -> bool:
        """Whether any levels keep the budget where stages take these numbers of steps."""
        if not self.steps:
            raise ValueError("Space.pays: expected a space whose stages choose their steps, found fixed ones")
        return (
            sum(
                n * (fixed + sum(map(min, stage)))
                for n, fixed, stage in zip(counts, self._fixed, self.costs, strict=True)
            )
            <= self.budget
        )

    def dense(self) -> "Space | None":
        """Steps alone as a choice: all units are at level 0, as one of a single level.

        None where none of these schedules keeps the budget.
        """
        if not self.steps:
            raise ValueError("Space.dense: expected a space whose stages choose their steps, found fixed ones")
        calls = [fixed + sum(row[0] for row in stage) for fixed, stage in zip(self._fixed, self.costs, strict=True)]
        if sum(counts[0] * call for counts, call in zip(self.steps.counts, calls, strict=True)) > self.budget:
            return None
        return replace(self, costs=tuple(((call,),) for call in calls), fixed=())

    @property
    def stages(self) -> int:
        return len(self.costs)

    @property
    def units(self) -> int:
        return len(self.costs[0])

    @property
    def genes(self) -> int:
        """How many numbers of a schedule are a choice."""
        return sum(len(slot.options) > 1 and not slot.idle for slot in self._moves.slots)

    def misfit(self, candidate: Candidate) -> str | None:
        """Why `candidate` is none of this table (shape, range); None where it is one, whatever it costs."""
        shape, chosen = [len(row) for row in candidate.levels], [one.steps for one in candidate.stages]
        if shape != [self.units] * self.stages or {n is None for n in chosen} != {self.steps is None}:
            front = "the steps and " if self.steps else ""
            found = f"{len(shape)} stages of {shape} levels, and steps {chosen}"
            return f"expected {self.stages} stages x {front}{self.units} units, found {found}"
        if candidate.timesteps:
            return f"expected no timesteps, found {candidate.timesteps}"
        for s, stage in enumerate(candidate.stages):
            if self.steps and stage.steps not in self.steps.counts[s]:
                return f"expected a number of steps out of {self.steps.counts[s]} in stage {s}, found {stage.steps}"
            for u, level in enumerate(stage.levels):
                if not 0 <= level < len(self.costs[s][u]):
                    return f"expected a level from 0 to {len(self.costs[s][u]) - 1} at [{s}][{u}], found {level}"
        return None

    def cost(self, candidate: Candidate) -> int:
        """The exact cost of a schedule. ValueError where its shape or a level is not of this space."""
        return self._moves.spent(self._flat(candidate))

    def feasible(self, candidate: Candidate) -> bool:
        """Whether `candidate` has the right shape, levels in range, and a cost within the budget."""
        return self.misfit(candidate) is None and self.cost(candidate) <= self.budget

    def cheapest(self) -> Candidate:
        """The cheapest schedule; among levels of equal cost the lowest."""
        return self._candidate(self._moves.cleared([slot.cheapest[0] for slot in self._moves.slots]))

    def uniform(self) -> Candidate:
        """The dearest single level for all (stage, unit) that keeps the budget; rows that end sooner give their last.

        Exactly that shape, as a baseline needs it: slack may be left, which `repair` spends. Stages take their own
        steps, here and in `ramp` and `protect`. NoneFits where no uniform schedule does.
        """
        return self._dearest("uniform", self._own(protections(self._deepest, (), 0)))

    def ramp(self, rising: bool, gap: int) -> Candidate:
        """The dearest straight ramp within the budget: first and last stage differ by `gap` levels.

        `rising`: the level rises from noise to image, so late stages are pruned most; otherwise it falls. Ends are cut
        off at the lowest and highest level. Slack and errors as in `uniform`.
        """
        return self._dearest("ramp", self._own(ramps(self._deepest, rising, gap)))

    def protect(self, stages: Collection[int], gap: int) -> Candidate:
        """The dearest schedule of two levels within the budget: `stages` are `gap` levels less pruned than the others.

        With the middle stages this is MosaicDiff's shape. Cut off, slack and errors as in `ramp`; also ValueError where
        a stage is not of this space.
        """
        return self._dearest("protect", self._own(protections(self._deepest, stages, gap)))

    def thinned(self, level: int = 0, early: bool = False) -> Candidate:
        """The dearest schedule within the budget with fewer steps, or more, at one level in all stages.

        Steps are spread in proportion to the stages' own; where `early`, with a weight that falls from 3 at the
        noisiest stage to 1 at the last. Slack and errors as in `uniform`; also ValueError without the steps lever.
        """
        return self._dearest("thinned", self._spread(level, early))

    def starts(self, rng: np.random.Generator, gap: int = 2) -> tuple[Candidate, ...]:
        """Distinct maximal starts: uniform, both ramps, and the middle third protected; with the steps lever also
        fewer steps, evenly and with most of them early, and both levers in equal parts; each with its slack spent."""
        deepest, middle = self._deepest, range(self.stages // 3, self.stages - self.stages // 3)
        shapes = protections(deepest, (), 0), ramps(deepest, True, gap), ramps(deepest, False, gap)
        families = [self._own(shape) for shape in (*shapes, protections(deepest, middle, gap))]
        for early in (False, True) if self.steps else ():
            families += [self._spread(0, early), self._balanced(early)]
        fitting = [list(filter(self.feasible, family)) for family in families]
        return tuple(dict.fromkeys(self.repair(max(fits, key=self.cost), rng) for fits in fitting if fits))

    def random(self, rng: np.random.Generator) -> Candidate:
        """A uniform draw of every number, repaired. Every maximal candidate can be drawn."""
        drawn = [slot.options[int(rng.integers(len(slot.options)))] for slot in self._moves.slots]
        return self._candidate(self._moves.repaired(drawn, rng))

    def repair(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """A maximal candidate near `candidate`, which may cost anything; a maximal one is returned as it is.

        While over budget, random numbers go to their next cheaper option; then random ones go to their next dearer one
        as long as one fits. ValueError where shape or a level is not of this space.
        """
        return self._candidate(self._moves.repaired(self._flat(candidate), rng))

    def mutate(self, parent: Candidate, rng: np.random.Generator, most: int) -> Candidate:
        """Level-switch mutation (EvoPress): min(U{1..most}, U{1..most}) switches, then repair.

        A switch moves one number to its next dearer option and another to its next cheaper one, so the budget is kept
        to the unit where these steps cost the same. Where stages choose their steps, one switch in 1 + units is settled
        within its stage: the stage costs what it did or less, its steps paying for levels or its levels for steps. A
        sideways switch, to a peer, needs no counterpart. What went up stays up, and only moves that the others can pay
        for are drawn. Hence the child of a maximal parent differs from it, unless the parent is the only maximal
        candidate there is: any other has some number that is dearer or a peer, and drawing that one is possible here.
        """
        if most < 1:
            raise ValueError(f"Space.mutate: expected at least one switch at most, found most={most}")
        return self._candidate(self._moves.mutated(self._flat(parent), rng, most))

    def crossover(self, a: Candidate, b: Candidate, rng: np.random.Generator) -> Candidate:
        """Each stage from either parent with equal chance, then repaired. It may well return a parent."""
        from_a = rng.integers(2, size=self.stages)
        pairs = zip(a.stages, b.stages, from_a, strict=True)
        return self.repair(Candidate(tuple(x if first else y for x, y, first in pairs)), rng)

    @property
    def _fixed(self) -> tuple[int, ...]:
        return self.fixed or (0,) * self.stages

    @cached_property
    def _moves(self) -> Moves:
        return Moves(self.costs, self._fixed, self.steps, self.budget)

    def _flat(self, candidate: Candidate) -> list[int]:
        problem = self.misfit(candidate)
        if problem is not None:
            raise ValueError(f"candidate: {problem}; was it made for another space?")
        return candidate.numbers()

    def _candidate(self, flat: Sequence[int]) -> Candidate:
        return Candidate.of_numbers(flat, self.stages, steps=self.steps is not None)

    def _dearest(self, name: str, family: Sequence[Candidate]) -> Candidate:
        fits = list(filter(self.feasible, family))
        if not fits:
            raise NoneFits(
                f"Space.{name}: expected a schedule of this shape within the budget of {self.budget}, but the cheapest "
                f"one costs {min(map(self.cost, family))}; raise the budget, or start from cheapest() or random()"
            )
        return max(fits, key=self.cost)

    @property
    def _deepest(self) -> Rows:
        return tuple(tuple(len(row) - 1 for row in stage) for stage in self.costs)

    def _own(self, family: Sequence[Rows]) -> list[Candidate]:
        return [Candidate.of(levels, self.steps.own if self.steps else None) for levels in family]

    def _spread(self, level: int, early: bool) -> list[Candidate]:
        if not self.steps:
            raise ValueError("Space.thinned: expected a space whose stages choose their steps, found fixed ones")
        levels = cut(self._deepest, [level] * self.stages)
        return [Candidate.of(levels, counts) for counts in spreads(self.steps, early)]

    def _balanced(self, early: bool) -> list[Candidate]:
        """The one of :meth:`thinned` over levels in which steps and levels save most nearly the same share, if any."""
        assert self.steps
        unevenness = dict[Candidate, float]()
        for level in range(1, max(map(max, self._deepest)) + 1):
            for found in sorted(filter(self.feasible, self._spread(level, early)), key=self.cost)[-1:]:
                dense = self.cost(found.at_levels(cut(self._deepest, [0] * self.stages)))
                unevenness[found] = abs(sum(found.steps) / sum(self.steps.own) - self.cost(found) / dense)
        return sorted(unevenness, key=lambda found: unevenness[found])[:1]
