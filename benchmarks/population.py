"""What a larger population is worth where workers are many: real searches that end at the same time.

    python benchmarks/population.py --seeds 0 1

Pruning alone at one budget, the default's knapsack start and race. Scores are real; time is that of so many workers, in
units of a candidate's run on one rung of the race, of which both have as many noises: a generation takes as many units
as it takes them to score all its candidates on the first rung, and the better half on the second. A population of more
than the workers takes longer, and has fewer generations. Prints the SNR (dB) of the best schedule on noises that chose
nothing, and how many were scored.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from common import Model, Noises, Results, ResultsFile, SearchNoises, Seeds, StageCount, Steps, header, options, row

from diff_es import Levers, Sampling, Settings
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.starts import starts
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.loading import load
from diff_es.scoring.journal import Journal, Scale
from diff_es.search import Candidate, Evolution, evolutionary_search, race, usual_switches
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    macs: Annotated[float, "share of the MACs"] = 0.6
    populations: Annotated[tuple[int, ...], "candidates of a generation"] = (8, 20, 64, 128)
    workers: Annotated[int, "who score at the same time"] = 64
    units: Annotated[int, "of time: two are a generation of no more candidates than workers"] = 8
    seeds: Seeds = (0, 1)
    search_noises: SearchNoises = 8
    noises: Noises = 32
    steps: Steps = 10
    stages: StageCount = 5
    results: ResultsFile = Path("population.jsonl")


def main(asked: Options) -> None:
    results, pipe = Results(asked.results), load(asked.model, dtype=torch.float32)
    for seed in asked.seeds:
        key = {"model": asked.model, "workers": asked.workers, "units": asked.units, "seed": seed}
        if not results.holds(key):
            results.add({**key, **one} for one in measured(pipe, asked, seed))
    show(results.rows())


def measured(pipe: Any, asked: Options, seed: int) -> list[dict[str, object]]:
    """Each population's best, and what they all start from, as a population of none."""
    settings = Settings(
        sampling=Sampling(asked.steps, 2.0),
        levers=Levers.PRUNE,
        stages=asked.stages,
        search_noises=asked.search_noises,
        seed=seed,
    )
    ready = prepare(pipe, settings, Reporter())
    evaluator, space = Evaluator(ready, Journal(None, {}, resume=False)), ready.costs.space(asked.macs)
    first = starts(ready, [space], sensitivity(ready, evaluator, Reporter()), evaluator)
    held_out = ready.fitness("held-out", asked.noises)
    found: list[dict[str, object]] = [{"population": 0, "generations": 0, "scored": 1, "snr": held_out(first[0])}]
    for population in asked.populations:
        best, generations, scored = searched(ready, asked, population, first, evaluator)
        own = {"population": population, "generations": generations, "scored": scored}
        found.append({**own, "snr": held_out(best)})
    return found


def searched(
    ready: Study, asked: Options, population: int, first: Sequence[Candidate], evaluator: Evaluator
) -> tuple[Candidate, int, int]:
    """The best that a population finds in the time, its generations, and the candidates that were scored."""
    space, units = ready.costs.space(asked.macs), 0
    evolution = Evolution(population, 10_000, switches=usual_switches(space.genes), seed=ready.settings.seed)
    search = evolutionary_search(space, evolution, first[:population])

    def scores_on(rung: int, candidates: Sequence[Candidate]) -> Mapping[Candidate, float]:
        nonlocal units
        units += math.ceil(len(candidates) / asked.workers)
        return evaluator.scores(candidates, Scale.RUNG if rung == 0 else Scale.ALL)

    while units < asked.units and (cohort := search.ask()):
        search.tell(race(cohort, scores_on, (0.5,)))
    return search.best.candidate, len(search.history), search.history[-1].evaluations


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    header("model", "workers", "population", "generations", "scored", "SNR (dB) by seed", "mean")
    kept: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in rows:
        kept.setdefault((one["model"], one["workers"], one["population"]), []).append(one)
    for (model, workers, population), runs in kept.items():
        snr = [one["snr"] for one in sorted(runs, key=lambda one: int(one["seed"]))]
        means = [f"{statistics.mean(one[name] for one in runs):,.0f}" for name in ("generations", "scored")]
        shown = ", ".join(f"{one:.2f}" for one in snr)
        row(model, f"{workers}", f"{population or 'the start alone'}", *means, shown, f"{statistics.mean(snr):.2f}")


if __name__ == "__main__":
    main(options(Options, __doc__))
