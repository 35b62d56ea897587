"""Steps and pruning together, against steps alone, pruning alone and what users do by hand, at equal cost.

    python benchmarks/joint.py --scheduler DPMSolverMultistepScheduler --steps 20 --seeds 0 1 2 --results joint.jsonl

For every seed one search of each kind of levers yields the results for all budgets. All contenders are judged by mean
SNR (dB) to the finely stepped dense model on noises that no search has seen; the Fréchet distance to real tiles stands
in brackets. Results are appended to a file, so that seeds can be run one by one or side by side; those that it holds
are passed over; the table shows all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from common import (
    Budgets,
    CalibrationSamples,
    Closeness,
    Generations,
    HeldOutNoises,
    Model,
    Noises,
    Population,
    Results,
    ResultsFile,
    Seeds,
    StageCount,
    Steps,
    by_study,
    header,
    options,
    row,
    searched,
    with_range,
)

from diff_es.compression.final import Found
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.starts import by_rule
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.rivals import Contender, contenders, scheduled
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter

NAMES = {Levers.PRUNE: "pruning alone", Levers.STEPS: "steps alone", Levers.BOTH: "steps and pruning"}
RIVALS = {"fewer-steps": "evenly fewer steps", "uniform": "uniform pruning"}
RULES = ("trailing", "karras", "exponential", "quadratic")


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    scheduler: Annotated[str, "class of the sampler"] = "DDIMScheduler"
    steps: Steps = 20
    budgets: Budgets = (0.75, 0.6, 0.5)
    seeds: Seeds = (0, 1, 2)
    levers: Annotated[tuple[Levers, ...], "; ".join(Levers)] = tuple(Levers)
    noises: Noises = 48
    stages: StageCount = 10
    calibration_samples: CalibrationSamples = 128
    search_noises: Annotated[int, "noises of a search; a third of them is its first rung"] = 12
    held_out_noises: HeldOutNoises = 24
    population: Population = 20
    generations: Generations = 10
    results: ResultsFile = Path("joint.jsonl")


def main() -> None:
    asked = options(Options, __doc__)
    # in float32 on a GPU too: rounding is an error like any
    pipe = load(asked.model, scheduler=asked.scheduler, dtype=torch.float32)
    real, reporter, results = load_reference(), Reporter(), Results(asked.results)
    for seed in asked.seeds:
        key = {"scheduler": asked.scheduler, "steps": asked.steps, "seed": seed}
        missing = [levers for levers in asked.levers if not results.holds({**key, "levers": levers.value})]
        if not missing:
            continue
        base = settings_of(asked, seed)
        studies = {levers: prepare(pipe, replace(base, levers=levers), reporter) for levers in missing}
        closeness = Closeness(studies.get(Levers.BOTH) or prepare(pipe, base, reporter), asked.noises, reporter)
        for levers, study in studies.items():
            rows = list[Mapping[str, object]]()
            for one in field(study, searched(study, asked.budgets, reporter)):
                snr, images = closeness.seen(one.contender)
                judged = {"cost": one.contender.budget, "name": one.name, "snr": snr, "distance": real.distance(images)}
                rows.append({**key, "levers": levers.value, **judged, **one.chosen})
            results.add(rows)
    show(results.rows())


@dataclass(frozen=True)
class Entry:
    """A row of the table: who it is, and the schedule that a search chose, if one did."""

    name: str
    contender: Contender
    chosen: Mapping[str, object]


def field(study: Study, results: Sequence[Found]) -> Iterator[Entry]:
    """Everything that is judged; rivals and rules of hand where both levers are searched."""
    own = Contender("own", 1.0, 1.0, Runner("own", study.settings.sampling))
    yield Entry("user's own setting", own, {})
    levers = study.settings.levers or Levers.BOTH
    for found in results:
        yield Entry(NAMES[levers], by_study(study, found), {"candidate": found.candidate.to_json()})
        if levers is not Levers.BOTH:
            continue
        for rival in contenders(study, found):
            if rival.name in RIVALS:
                yield Entry(RIVALS[rival.name], rival, {})
        ruled = by_rule(study, found.limit)
        for rule, candidate in zip(RULES, ruled, strict=True):
            yield Entry(f"by hand, {rule}", scheduled(study, rule, found.limit, candidate, corrections=()), {})
        yield Entry("by hand, trailing, corrected", scheduled(study, "trailing", found.limit, ruled[0]), {})


def settings_of(asked: Options, seed: int) -> Settings:
    third = asked.search_noises // 3
    return Settings(
        sampling=Sampling(asked.steps, 2.0),
        stages=asked.stages,
        calibration_samples=asked.calibration_samples,
        search_noises=asked.search_noises,
        first_rung=third,
        sensitivity_noises=third,
        held_out_noises=asked.held_out_noises,
        finalists=4,
        timestep_generations=8,
        population=asked.population,
        generations=asked.generations,
        seed=seed,
    )


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A Markdown table for each sampler and number of steps; the spread of a row is half the range over the seeds."""
    for scheduler, steps in dict.fromkeys((one["scheduler"], one["steps"]) for one in rows):
        found, seeds = dict[tuple[float, str], dict[int, tuple[float, float]]](), set[int]()
        for one in rows:
            if (one["scheduler"], one["steps"]) == (scheduler, steps):
                found.setdefault((one["cost"], one["name"]), {})[one["seed"]] = one["snr"], one["distance"]
                seeds.add(one["seed"])
        print(f"\n{scheduler}, {steps} steps\n")
        header("cost", "contender", *(f"seed {seed}" for seed in sorted(seeds)), "mean")
        for (cost, name), values in sorted(found.items(), key=lambda item: (-item[0][0], -_mean(item[1]))):
            cells = [f"{values[s][0]:.1f} ({values[s][1]:.2f})" if s in values else "" for s in sorted(seeds)]
            row(f"{cost:g}", name, *cells, with_range([snr for snr, _ in values.values()], 1))


def _mean(values: Mapping[int, tuple[float, float]]) -> float:
    return statistics.mean(snr for snr, _ in values.values())


if __name__ == "__main__":
    main()
