"""Which search finds the better schedule for the same denoiser work: pruning alone, at one budget, over seeds.

    python benchmarks/search.py --macs 0.6 --seeds 0 1 2

Random search, the paper's (mu + lambda) search, EvoPress' single-parent search, CMA-ES with margin (`pip install
cmaes`), the knapsack of sensitivities alone, and the default, with its knapsack start and races, in units of the whole
denoiser, of layer kinds and of blocks. Work is counted in denoiser calls times samples, the table of sensitivities
included, and none of it is done twice where two candidates begin alike, for any of the searches; each ends where the
work of the paper's search at `--evaluations` candidates ends. Prints held-out SNR (dB) of the best schedule when a
fifth of that work was done, and at the end.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from common import CalibrationSamples, Model, Noises, Seeds, StageCount, Steps, header, options, row
from library_search import cma_search

from diff_es.compression.evaluator import Evaluator
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.starts import starts
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.method import Method
from diff_es.scoring.fitness import Fitness
from diff_es.scoring.journal import Journal
from diff_es.search import (
    Candidate,
    Evolution,
    EvoPress,
    Search,
    Space,
    evolutionary_search,
    evopress_search,
    race,
    random_search,
    usual_switches,
)
from diff_es.utils.progress import Reporter

Made = Callable[[Space, Sequence[Candidate], int], Search]
HUGE = 10_000  # generations: the work ends a search


def paper(space: Space, first: Sequence[Candidate], seed: int) -> Search:
    return evolutionary_search(space, Evolution(generations=HUGE, seed=seed))


def ours(space: Space, first: Sequence[Candidate], seed: int) -> Search:
    evolution = Evolution(generations=HUGE, switches=usual_switches(space.genes), seed=seed)
    return evolutionary_search(space, evolution, first)


def evopress(space: Space, first: Sequence[Candidate], seed: int) -> Search:
    return evopress_search(space, EvoPress(generations=HUGE, seed=seed))


def cma(space: Space, first: Sequence[Candidate], seed: int) -> Search:
    return cma_search(space, HUGE, seed=seed)


def random(space: Space, first: Sequence[Candidate], seed: int) -> Search:
    return random_search(space, HUGE * 20, seed=seed)


@dataclass(frozen=True)
class Rival:
    """A search, how it judges, and what it chooses levels for."""

    made: Made
    races: bool = False
    table: bool = False  # starts from the knapsack of the sensitivities
    granularity: Granularity = Granularity.WHOLE


REFERENCE, KNAPSACK = "the paper's", "knapsack alone"
RIVALS = {
    REFERENCE: Rival(paper),
    "default": Rival(ours, races=True, table=True),
    "default, layer kinds": Rival(ours, races=True, table=True, granularity=Granularity.KIND),
    "default, blocks": Rival(ours, races=True, table=True, granularity=Granularity.BLOCK),
    "random": Rival(random),
    "EvoPress'": Rival(evopress, races=True),
    "CMA-ES with margin": Rival(cma),
}


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    macs: Annotated[float, "share of the MACs"] = 0.6
    seeds: Seeds = (0, 1, 2)
    evaluations: Annotated[int, "of the paper's search: 20 x 100"] = 2000
    search_noises: Annotated[int, "of searches that judge every candidate on all of them"] = 8
    racing: Annotated[int, "noises of those that judge the better half on all"] = 32
    noises: Noises = 64
    steps: Steps = 20
    stages: StageCount = 10
    calibration_samples: CalibrationSamples = 192
    rivals: Annotated[tuple[str, ...], "the searches", tuple(RIVALS)] = tuple(RIVALS)
    work: Annotated[int | None, "of the paper's search, where it is known and not among the rivals"] = None


def main() -> None:
    asked = options(Options, __doc__)
    if asked.work is None and REFERENCE not in asked.rivals:
        sys.exit(f"expected {REFERENCE!r} among --rivals, or the --work that it does, found neither")
    pipe, reporter, rows = load(asked.model, dtype=torch.float32), Reporter(), dict[str, list[tuple[float, float]]]()
    for seed in asked.seeds:
        work, studies = math.inf if asked.work is None else asked.work, dict[Granularity, Study]()
        for name in sorted(asked.rivals, key=lambda name: name != REFERENCE):
            rival = RIVALS[name]
            if rival.granularity not in studies:
                studies[rival.granularity] = prepare(pipe, settings_of(asked, rival.granularity, seed), reporter)
            ready = studies[rival.granularity]
            judge, space = ready.fitness("held-out", asked.noises), ready.costs.space(asked.macs)
            first, fitness = begun(ready, rival, space, asked, reporter)
            if first and rival.granularity is Granularity.WHOLE:
                rows.setdefault(KNAPSACK, []).append((judge(first[0]),) * 2)
                print(f"seed {seed}, {KNAPSACK}: {rows[KNAPSACK][-1]}, work {fitness.calls}", flush=True)
            evaluations = asked.evaluations if name == REFERENCE else None
            at_a_fifth, at_end, spent = run(rival.made(space, first, seed), fitness, rival.races, work, evaluations)
            work = spent if name == REFERENCE else work
            early = math.nan if at_a_fifth is None else judge(at_a_fifth)
            rows.setdefault(name, []).append((early, judge(at_end)))
            print(f"seed {seed}, {name}: {rows[name][-1]}, work {spent}, {at_end.levels}", flush=True)
    print()
    header("search", *(f"seed {seed}: a fifth, all" for seed in asked.seeds), "mean")
    for name, values in rows.items():
        means = [statistics.mean(value[i] for value in values) for i in (0, 1)]
        row(name, *(f"{early:.2f}, {late:.2f}" for early, late in (*values, means)))


def settings_of(asked: Options, granularity: Granularity, seed: int) -> Settings:
    return Settings(
        sampling=Sampling(asked.steps, 2.0),
        stages=asked.stages,
        levers=Levers.PRUNE,
        method=Method(granularity=granularity),
        calibration_samples=asked.calibration_samples,
        search_noises=asked.racing,
        seed=seed,
    )


def begun(
    ready: Study, rival: Rival, space: Space, asked: Options, reporter: Reporter
) -> tuple[tuple[Candidate, ...], Fitness]:
    """What a search starts from, and how it judges; where it starts from the table, that is counted as work."""
    if not rival.table:
        noises = asked.racing if rival.races else asked.search_noises
        return (), ready.fitness("search", noises, ready.settings.rung_noises if rival.races else 0)
    scores = Evaluator(ready, Journal(None, {}, resume=False))
    first = starts(ready, [space], sensitivity(ready, scores, reporter), scores)
    fitness = scores.scorer.fitness
    fitness.calls += scores.scorer.alone.calls
    return first, fitness


def run(
    search: Search, fitness: Fitness, races: bool, work: float, evaluations: int | None
) -> tuple[Candidate | None, Candidate, int]:
    """The best schedule when a fifth of the work was done, None if the table alone took more, the best at its end, and
    the work in calls times samples.

    For a search of so many ``evaluations``, whose work is not known before, a fifth of these counts.
    """
    count, limit = 0, work if evaluations is None else evaluations

    def done() -> int:
        return fitness.calls if evaluations is None else count

    best = {done(): search.ask()[0]}  # the first candidate, unseen
    while (cohort := search.ask()) and done() < limit:
        if races:
            heats = dict[Candidate, float]()

            def judge(
                rung: int, candidates: Sequence[Candidate], heats: dict[Candidate, float] = heats
            ) -> dict[Candidate, float]:
                if rung == 0:
                    heats |= {candidate: fitness.first(candidate) for candidate in candidates}
                    return heats
                return {candidate: fitness.second(candidate, heats[candidate]) for candidate in candidates}

            search.tell(race(cohort, judge, (0.5,)))
        else:
            search.tell({candidate: fitness(candidate) for candidate in cohort})
        count += len(cohort)
        best[done()] = search.best.candidate
    early = [None, *(candidate for spent, candidate in best.items() if spent <= limit / 5)]
    *_, late = best.values()
    return early[-1], late, fitness.calls


if __name__ == "__main__":
    main()
