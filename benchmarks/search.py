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

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from library_search import cma_search

from diff_es.compression.evaluator import Judge
from diff_es.compression.sensitivity import sensitivity, starts
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.library import Method
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
    grain: Granularity = Granularity.WHOLE


REFERENCE = "the paper's"
RIVALS = {
    REFERENCE: Rival(paper),
    "default": Rival(ours, races=True, table=True),
    "default, layer kinds": Rival(ours, races=True, table=True, granularity=Granularity.KIND),
    "default, blocks": Rival(ours, races=True, table=True, granularity=Granularity.BLOCK),
    "random": Rival(random),
    "EvoPress'": Rival(evopress, races=True),
    "CMA-ES with margin": Rival(cma),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=2000, help="of the paper's search: 20 x 100")
    parser.add_argument(
        "--search-noises", type=int, default=8, help="of searches that judge every candidate on all of them"
    )
    parser.add_argument("--racing", type=int, default=32, help="probes of those that judge the better half on all")
    parser.add_argument("--noises", type=int, default=64, help="held-out noises")
    parser.add_argument("--rivals", nargs="+", choices=tuple(RIVALS), default=tuple(RIVALS))
    parser.add_argument("--work", type=int, help="of the paper's search, where it is known and not among the rivals")
    args = parser.parse_args()
    if args.work is None and REFERENCE not in args.rivals:
        parser.error(f"expected {REFERENCE!r} among --rivals, or the --work that it does, found neither")
    pipe, reporter, rows = load("bundled", dtype=torch.float32), Reporter(), dict[str, list[tuple[float, float]]]()
    for seed in args.seeds:
        work, studies = math.inf if args.work is None else args.work, dict[Granularity, Study]()
        for name in sorted(args.rivals, key=lambda name: name != REFERENCE):
            rival = RIVALS[name]
            if rival.grain not in studies:
                studies[rival.grain] = prepare(pipe, settings_of(rival.grain, args.racing, seed), reporter)
            ready = studies[rival.grain]
            judge, space = ready.fitness("held-out", args.noises), ready.costs.space(args.macs)
            heat = ready.settings.rung_noises if rival.races else 0
            first: tuple[Candidate, ...] = ()
            if not rival.table:
                fitness = ready.fitness("search", args.racing if rival.races else args.probes, heat)
            else:
                scores = Judge(ready, Journal(None, {}, resume=False))
                first, fitness = starts(ready, [space], sensitivity(ready, scores, reporter)), scores.scorer.fitness
                fitness.calls += scores.scorer.alone.calls  # the table's
                if rival.grain is Granularity.WHOLE:
                    rows.setdefault("knapsack alone", []).append((judge(first[0]),) * 2)
                    print(
                        f"seed {seed}, knapsack alone: {rows['knapsack alone'][-1]}, work {fitness.calls}", flush=True
                    )
            evaluations = args.evaluations if name == REFERENCE else None
            at_a_fifth, at_end, spent = run(rival.made(space, first, seed), fitness, rival.races, work, evaluations)
            work = spent if name == REFERENCE else work
            early = math.nan if at_a_fifth is None else judge(at_a_fifth)
            rows.setdefault(name, []).append((early, judge(at_end)))
            print(f"seed {seed}, {name}: {rows[name][-1]}, work {spent}, {at_end.levels}", flush=True)
    print("\n| search | " + " | ".join(f"seed {seed}: a fifth, all" for seed in args.seeds) + " | mean |")
    print("|---" * (len(args.seeds) + 2) + "|")
    for name, values in rows.items():
        cells = [f"{early:.2f}, {late:.2f}" for early, late in values]
        means = [statistics.mean(value[i] for value in values) for i in (0, 1)]
        print(f"| {name} | " + " | ".join(cells) + f" | {means[0]:.2f}, {means[1]:.2f} |")


def settings_of(grain: Granularity, probes: int, seed: int) -> Settings:
    method = Method(granularity=grain)
    return Settings(
        sampling=Sampling(20, 2.0),
        levers=Levers.PRUNE,
        method=method,
        calibration_samples=192,
        search_noises=probes,
        seed=seed,
    )


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
