"""What each choice of a stage costs in closeness with all else at its best, and what follows if errors add up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..pruning.granularity import Thin
from ..scoring.journal import Scale
from ..search import Candidate, Point, Relaxed, Space, StageChoice, branches, knapsack_best, prunings
from ..utils.errors import DiffESError
from ..utils.progress import Reporter
from .evaluator import Evaluator
from .settings import describe
from .study import Study
from .survey import Survey, identity

_WORST = 1e30
"""What counts as the error of a candidate that overflows; errors have to be numbers that add up."""


@dataclass(frozen=True)
class Sensitivity:
    """Errors that a choice adds where everything else is dense and, if steps are a choice, stepped twice as finely as
    the user does.

    One table serves all budgets. Errors are of the measure's own kind, 0 being exact (``Measure.error``).
    """

    levels: tuple[tuple[tuple[float, ...], ...], ...]  # [stage][unit][level]
    steps: tuple[Mapping[int, float], ...] | None  # [stage]: by number of steps

    @property
    def dense(self) -> Sensitivity:
        """Of steps alone, for :meth:`Space.dense`."""
        return Sensitivity((((0.0,),),) * len(self.levels), self.steps)

    def best(self, space: Space, *, coherent: bool = False) -> Candidate:
        """The schedule of least total error within the budget, were errors to add up; exact (search/knapsack.py).

        ``coherent`` adds them as amplitudes, all in one direction, as the errors of a sampler's steps tend to be.
        """

        def added(error: float) -> float:
            return math.sqrt(error) if coherent else error

        by_level = [[[added(error) for error in row] for row in stage] for stage in self.levels]
        if self.steps is None:
            stages = prunings(space, by_level)
        else:
            steps = self.steps
            stages = branches(space, lambda stage, count: (added(steps[stage][count]), by_level[stage]))
        return knapsack_best(stages, space.budget).candidate

    def pruned(self, space: Space, counts: Sequence[int]) -> Point:
        """The schedule of least added error that takes these numbers of steps, within the budget; exact."""
        taking = branches(space.taking(counts), lambda stage, _: (0.0, self.levels[stage]))
        return knapsack_best(taking, space.budget)

    def relaxed(self, space: Space) -> Relaxed:
        """An error that none of them is below, by the numbers of steps, for far less work."""
        return Relaxed(space, self.levels)


@dataclass(frozen=True)
class SensitivityOf:
    """A table, and what it was measured on."""

    table: Sensitivity
    of: Mapping[str, Any]  # JSON values

    @classmethod
    def measured(cls, table: Sensitivity, ready: Survey) -> SensitivityOf:
        return cls(table, json.loads(json.dumps(_facts(ready))))

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        steps = self.table.steps
        by_count = None if steps is None else [{str(n): error for n, error in row.items()} for row in steps]
        return {"levels": self.table.levels, "steps": by_count, "of": self.of}

    def checked(self, ready: Survey, where: str) -> Sensitivity:
        """The table, for the same model and settings; ``where`` it lay, for the message.

        Raises:
            DiffESError: it was measured on something else, and the message says what; or it is of other choices.
        """
        now, then = json.loads(json.dumps(_facts(ready))), self.of
        known = [key for key in now if key in then or key not in _SINCE]
        changed = [f"{key} {then.get(key)!r} then and {now[key]!r} now" for key in known if then.get(key) != now[key]]
        if changed:
            remedy = "Take the settings of the earlier result, or leave --table out to measure anew."
            expected = "sensitivities of this model and these settings"
            raise DiffESError(f"table of {where}", expected=expected, found=", ".join(changed), remedy=remedy)
        levels, steps = self.table.levels, self.table.steps
        counts = None if steps is None else tuple(tuple(sorted(row)) for row in steps)
        shape = {tuple(map(len, stage)) for stage in levels}
        if (
            len(levels) != len(ready.stages)
            or shape != {tuple(map(len, ready.costs.options))}
            or counts != ready.costs.choices
        ):
            remedy = "Leave --table out to measure anew."
            expected = "an error for every choice of every stage"
            raise DiffESError(f"table of {where}", expected=expected, found="other choices", remedy=remedy)
        return self.table


_SINCE = ("prompts", "sensitivity_levels")
"""Facts that tables of earlier versions do not tell."""


def _facts(ready: Survey) -> dict[str, object]:
    """What a table depends on."""
    described = describe(ready.settings) | {"sensitivity_noises": ready.settings.sensed_noises}
    names = ["sampling", "stages", "levers", "method", "measure", "calibration_samples", "sensitivity_noises", "seed"]
    names += [*_SINCE, *([] if ready.path is None else ["reference_multiple", "corrections"])]
    return {**{name: described[name] for name in names}, **identity(ready.pipe)}


def sensitivity(ready: Study, evaluator: Evaluator, reporter: Reporter) -> Sensitivity:
    """Measure the table by short runs: the prefix before a changed stage is known."""
    single = changed(ready)
    with reporter.task("measure sensitivity", len(single)) as task:
        scores = evaluator.scores(single, Scale.ALONE, task.advance)
    error = ready.settings.measure.error
    errors = {ready.base: 0.0, **{one: min(error(score), _WORST) for one, score in scores.items()}}
    if _foretold(ready):
        errors |= _smoothed(ready, errors)
    by_level = tuple(
        tuple(
            _row(ready, stage, unit, {n: errors[_leveled(ready, stage, unit, n)] for n in (0, *_measured(ready, unit))})
            for unit in range(len(ready.units))
        )
        for stage in range(len(ready.stages))
    )
    if ready.costs.choices is None:
        return Sensitivity(by_level, None)
    steps = tuple(
        {n: 0.0 if n > most else errors[_stepped(ready, s, n)] for n in counts}
        for s, (counts, most) in enumerate(zip(ready.costs.choices, ready.base.steps, strict=True))
    )
    return Sensitivity(by_level, steps)


def _measured(ready: Study, unit: int) -> list[int]:
    """The levels of a unit that are measured: of a single unit all, of several so many of those that thin, spread from
    the first to the deepest; one is the middle one, where it is known in which proportion the others stand to it."""
    options, count = ready.units[unit].options, ready.settings.sensitivity_levels
    thin = [level for level, option in enumerate(options) if level and isinstance(option, Thin)]
    rest = [level for level, option in enumerate(options) if not isinstance(option, Thin)]
    if len(ready.units) > 1 and thin:
        if _foretold(ready):
            thin = [level for level in [_middle(ready, unit)] if level]
        else:
            places = np.linspace(0, len(thin) - 1, min(len(thin), max(count, 2))).round().astype(int)
            thin = [thin[place] for place in places]
    return [*thin, *rest]


def _middle(ready: Study, unit: int) -> int:
    """The middle one of a unit's levels that thin; 0 where none does."""
    options, layers = ready.units[unit].options, ready.units[unit].layers
    thin = [
        level
        for level, option in enumerate(options)
        if isinstance(option, Thin) and any(k < one.groups for k, one in zip(option.kept, layers, strict=True))
    ]
    return thin[(len(thin) - 1) // 2] if thin else 0


def _foretold(ready: Study) -> bool:
    """Whether one level of each of several units is measured, and the others follow from what their layers lose."""
    return ready.settings.sensitivity_levels == 1 and len(ready.units) > 1


def _smoothed(ready: Study, errors: Mapping[Candidate, float]) -> dict[Candidate, float]:
    """The errors of the levels that stand for their units, halfway to what goes without the noise of few probes.

    An error is taken for what compensation leaves, times a gain of its stage and one of its unit: a regression of the
    logarithms, in which every entry of the table says something of every other (docs/method.md, "Search").
    """
    units = [(unit, level) for unit in range(len(ready.units)) if (level := _middle(ready, unit))]
    pairs = [
        [(errors[_leveled(ready, stage, *one)], ready.left(stage, *one)) for one in units]
        for stage in range(len(ready.stages))
    ]
    table = np.array(pairs).reshape(len(ready.stages), len(units), 2)
    if len(units) < 2 or not (np.isfinite(table) & (table > 0) & (table < _WORST)).all():
        return {}
    measured, left = np.log(table[:, :, 0]), np.log(table[:, :, 1])
    gains = measured - left
    regressed = gains.mean(0, keepdims=True) + gains.mean(1, keepdims=True) - gains.mean()
    halfway = np.exp((measured + regressed + left) / 2)
    return {
        _leveled(ready, stage, *one): float(halfway[stage, place])
        for stage in range(len(ready.stages))
        for place, one in enumerate(units)
    }


def _row(ready: Study, stage: int, unit: int, errors: Mapping[int, float]) -> tuple[float, ...]:
    """The errors of all levels of a unit, from those that were measured."""
    if not _foretold(ready):
        return _filled(errors)
    base, found = _middle(ready, unit), list[float]()
    own = ready.left(stage, unit, base) if base else 0.0
    for level in range(len(ready.units[unit].options)):
        known = errors.get(level)
        if known is None and 0 < own < math.inf:
            known = errors[base] * ready.left(stage, unit, level) / own
        elif known is None:  # levels that thin nothing, or that nothing is known of
            known = errors[base] * level / base if base else 0.0
        found.append(min(known, _WORST))
    return tuple(found)


def _filled(errors: Mapping[int, float]) -> tuple[float, ...]:
    """The errors of all levels up to the last; those not measured as a power of the level between their neighbours."""
    levels = np.array(sorted(errors))
    values, known = np.arange(levels[-1] + 1), np.array([errors[level] for level in levels])
    if len(levels) < 3 or not (known[1:] > 0).all():
        return tuple(np.interp(values, levels, known).tolist())
    power = np.exp(np.interp(np.log(values[1:]), np.log(levels[1:]), np.log(known[1:])))
    # below the first measured level as well, from its own neighbour
    slope = np.log(known[2] / known[1]) / np.log(levels[2] / levels[1])
    low = values[1:] < levels[1]
    power[low] = known[1] * (values[1:][low] / levels[1]) ** slope
    return (0.0, *(errors.get(int(level), float(found)) for level, found in zip(values[1:], power, strict=True)))


def changed(ready: Study) -> list[Candidate]:
    """The schedules that change one choice of one stage, from the first stage to the last."""
    choices, found = ready.costs.choices, list[Candidate]()
    for stage in range(len(ready.stages)):
        found += [_stepped(ready, stage, n) for n in choices[stage] if n < ready.base.steps[stage]] if choices else []
        for unit in range(len(ready.units)):
            found += [_leveled(ready, stage, unit, level) for level in _measured(ready, unit)]
    return found


def _stepped(ready: Study, stage: int, count: int) -> Candidate:
    return ready.base.at_stage(stage, StageChoice(count, (0,) * len(ready.costs.options)))


def _leveled(ready: Study, stage: int, unit: int, level: int) -> Candidate:
    return ready.base.at_stage(stage, ready.base.stages[stage].at_level(unit, level))
