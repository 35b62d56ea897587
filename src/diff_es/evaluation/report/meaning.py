"""What a schedule and a table of sensitivities mean, in a sentence or two that follow from their numbers."""

from collections.abc import Sequence
from itertools import groupby

from diff_es.evaluation.report.data import Heat, Sensed
from diff_es.evaluation.report.heat import percent

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def of_schedule(heat: Heat) -> str:
    """Which stages are pruned and how far, which run dense and which not at all, and where the steps are."""
    stages = range(len(heat.steps))
    runs = [(state, list(run)) for state, run in groupby(stages, key=lambda stage: _state(heat, stage))]
    told = [f"{_place(run, len(stages))} {_does(heat, state, run)}" for state, run in runs]
    sentence = _and(told)
    return f"{sentence[0].upper()}{sentence[1:]}. {_density(heat)}"


def of_sensitivities(sensed: Sensed) -> str:
    """Where pruning hurts most, and least."""
    stages = [sum(stage) for stage in sensed.shares]
    most, least = (pick(range(len(stages)), key=stages.__getitem__) for pick in (max, min))
    told = f"Stage {most} makes {percent(stages[most])}% of the error"
    told += f" and stage {least} only {percent(stages[least])}%" if len(stages) > 1 else ""
    if len(sensed.units) > 1:
        columns = [sum(column) for column in zip(*sensed.shares, strict=True)]
        unit = max(range(len(columns)), key=columns.__getitem__)
        told += f"; by unit, {sensed.units[unit]} makes most, {percent(columns[unit])}%"
    return f"{told}. The more a cell has, the more it pays to leave it dense."


def _state(heat: Heat, stage: int) -> str:
    return "idle" if not heat.steps[stage] else "pruned" if any(heat.levels[stage]) else "dense"


def _does(heat: Heat, state: str, run: Sequence[int]) -> str:
    if state == "idle":
        return "is not run" if len(run) == 1 else "are not run"
    verb = "runs" if len(run) == 1 else "run"
    if state == "dense":
        return f"{verb} dense"
    levels = [level for stage in run for level in heat.levels[stage]]
    low, high = min(levels), max(levels)
    return f"{verb} at level{'s' * (low != high)} {low if low == high else f'{low} to {high}'} of {heat.most}"


def _place(run: Sequence[int], stages: int) -> str:
    """A stretch of stages, by where it lies."""
    if len(run) == stages:
        return "every stage" if stages == 1 else f"all {_number(stages)} stages"
    end = "first" if run[0] == 0 else "last" if run[-1] == stages - 1 else ""
    if end:
        return f"the {end} stage" if len(run) == 1 else f"the {end} {_number(len(run))} stages"
    return f"stage {run[0]}" if len(run) == 1 else f"stages {run[0]} to {run[-1]}"


def _density(heat: Heat) -> str:
    total, most = sum(heat.steps), max(heat.steps)
    fullest = [stage for stage, steps in enumerate(heat.steps) if steps == most]
    if len(fullest) > 1 or len(heat.steps) == 1:
        return f"{total} step{'s' * (total != 1)} in all."
    return f"Of {total} steps, most are in stage {fullest[0]}: {most}."


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
