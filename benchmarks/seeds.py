"""Is the evolved schedule better than its rivals at equal cost? Pruning alone, with one level a stage, over seeds.

    python benchmarks/seeds.py --seeds 0 1 2

For every seed: one calibration, and one search among levels alone for both budgets; for every budget the rivals at the
same MACs, and random search with the same number of evaluations; judged by mean SNR (dB) against the dense model's own
steps on noises that no search has seen. Prints Markdown tables.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from common import (
    Budgets,
    CalibrationSamples,
    Closeness,
    Generations,
    Guidance,
    HeldOutNoises,
    Model,
    Noises,
    Population,
    SearchNoises,
    Seeds,
    StageCount,
    Steps,
    header,
    options,
    row,
    searched,
)

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.evaluation.rivals import contenders, random_rival
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.method import Method
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    budgets: Budgets = (0.7, 0.5)
    seeds: Seeds = (0, 1, 2)
    noises: Noises = 64
    steps: Steps = 20
    guidance: Guidance = 2.0
    stages: StageCount = 10
    calibration_samples: CalibrationSamples = 192
    search_noises: SearchNoises = 8
    held_out_noises: HeldOutNoises = 32
    population: Population = 10
    generations: Generations = 10


def main() -> None:
    asked = options(Options, __doc__)
    reporter, pipe = Reporter(), load(asked.model)
    scores = dict[tuple[float, str], list[float]]()
    for seed in asked.seeds:
        study = prepare(pipe, settings_of(asked, seed), reporter)
        closeness = Closeness(study, asked.noises, reporter)
        for found in searched(study, asked.budgets, reporter):
            random = random_rival(study, found.limit, found.evaluations, None, reporter)
            for rival in contenders(study, found, random):
                scores.setdefault((found.limit, rival.name), []).append(closeness(rival))
    for budget in asked.budgets:
        print()
        header(f"SNR in dB at {budget:g} of the MACs", *(f"seed {seed}" for seed in asked.seeds), "mean")
        for (at, name), values in scores.items():
            if at == budget:
                row(name, *(f"{value:.2f}" for value in (*values, statistics.mean(values))))


def settings_of(asked: Options, seed: int) -> Settings:
    return Settings(
        sampling=Sampling(asked.steps, asked.guidance),
        stages=asked.stages,
        levers=Levers.PRUNE,
        method=Method(granularity=Granularity.WHOLE),
        calibration_samples=asked.calibration_samples,
        search_noises=asked.search_noises,
        first_rung=0,
        sensitivity_noises=asked.search_noises,
        finalists=8,
        held_out_noises=asked.held_out_noises,
        population=asked.population,
        generations=asked.generations,
        seed=seed,
    )


if __name__ == "__main__":
    main()
