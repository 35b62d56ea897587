"""Is what a search finds as good as random search of equal work? The promise, with small settings, over seeds.

    python benchmarks/promise.py --model bundled-unet --levers steps --seeds 10 --results promise.jsonl

For every seed one search yields the results for all budgets; random search gets as many candidates at each of them, the
same probes and the same final. Both are judged by mean SNR (dB) on noises that neither has seen, and by how far above
that the score lies which the search itself reported. Results are appended to a file, line by line, and seeds that it
holds already are passed over; the table shows all of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from common import (
    Budgets,
    Closeness,
    Generations,
    Model,
    Noises,
    Population,
    Results,
    ResultsFile,
    by_study,
    header,
    options,
    row,
    searched,
    with_error,
)

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.evaluation.rivals import random_rival
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Width
from diff_es.pruning.method import Method
from diff_es.utils.progress import Reporter

GUIDANCE = {"bundled": 2.0, "bundled-unet": 2.5}
"""What the tables were made at; None is the pipeline's own."""


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    levers: Annotated[Levers, "; ".join(Levers)] = Levers.STEPS
    seeds: Annotated[int, "how many, from the first on"] = 10
    first: Annotated[int, "the first of them"] = 0
    budgets: Budgets = (0.5, 0.7)
    noises: Noises = 32
    population: Population = 6
    generations: Generations = 3
    results: ResultsFile = Path("promise.jsonl")


def main() -> None:
    asked = options(Options, __doc__)
    pipe, reporter, results = load(asked.model, dtype=torch.float32), Reporter(quiet=True), Results(asked.results)
    for seed in range(asked.first, asked.first + asked.seeds):
        key = {"model": asked.model, "levers": asked.levers.value, "seed": seed}
        if results.holds(key):
            continue
        start = time.monotonic()
        study = prepare(pipe, settings_of(asked, seed), reporter)
        found, rows = searched(study, asked.budgets, reporter), list[Mapping[str, object]]()
        seconds, closeness = round(time.monotonic() - start), Closeness(study, asked.noises, reporter)
        for ours in found:
            rival = random_rival(study, ours.limit, ours.evaluations, None, reporter)
            fresh = {"ours": closeness(by_study(study, ours)), "random": closeness(by_study(study, rival))}
            work = {"evaluations": ours.evaluations, "seconds": seconds}
            rows.append({**key, "budget": ours.limit, **fresh, "told": ours.held_out, **work})
        results.add(rows)
    show(results.rows())


def settings_of(asked: Options, seed: int) -> Settings:
    """A search of less than a minute on one core, so small that luck has a say."""
    return Settings(
        sampling=Sampling(8, GUIDANCE.get(asked.model), batch=8),
        stages=4,
        levers=asked.levers,
        method=Method(Width(dense=())),
        calibration_samples=16,
        search_noises=4,
        first_rung=2,
        sensitivity_noises=2,
        finalists=3,
        held_out_noises=6,
        population=asked.population,
        generations=asked.generations,
        timestep_generations=3,
        timestep_offspring=6,
        seed=seed,
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A Markdown table of means over the seeds, and of their differences with the error of the mean."""
    header("model", "levers", "budget", "seeds", "ours", "random search", "ours - random", "reported - fresh")
    for model, levers, budget in dict.fromkeys((one["model"], one["levers"], one["budget"]) for one in rows):
        own = [one for one in rows if (one["model"], one["levers"], one["budget"]) == (model, levers, budget)]
        means = (f"{statistics.mean(one[name] for one in own):.2f}" for name in ("ours", "random"))
        pairs = (("ours", "random"), ("told", "ours"))
        errors = (with_error([one[a] - one[b] for one in own]) for a, b in pairs)
        row(model, levers, f"{budget:g}", str(len(own)), *means, *errors)


if __name__ == "__main__":
    main()
