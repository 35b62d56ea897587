"""Which search finds the better schedule for the same denoiser work: pruning alone, at one budget, over seeds.

    python benchmarks/search.py --macs 0.6 --seeds 0 1 2 --evaluations 400

Random search, the paper's (mu + lambda) search, EvoPress' single-parent search, CMA-ES with margin (`pip install
cmaes`), the knapsack of sensitivities alone, and the default: knapsack start, races. Work is counted in denoiser calls
times samples, the table of sensitivities included; a search ends where the work of the paper's search at
`--evaluations` candidates ends. Prints held-out SNR (dB) when a fifth of that work was done, and at the end.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

from library_search import cma_search

from diff_es.fitness import Fitness
from diff_es.journal import Journal
from diff_es.loading import load
from diff_es.pipeline import Sampling
from diff_es.progress import Reporter
from diff_es.search import (
    Evolution,
    EvoPress,
    Levels,
    Search,
    Space,
    evolutionary_search,
    evopress_search,
    race,
    random_search,
)
from diff_es.sensitivity import sensitivity, starts
from diff_es.settings import Levers, Settings
from diff_es.study import prepare

Made = Callable[[Space, Sequence[Levels], int], Search]
HUGE = 10_000  # generations: the work ends a search


def paper(space: Space, first: Sequence[Levels], seed: int) -> Search:
    return evolutionary_search(space, Evolution(generations=HUGE, seed=seed))


def ours(space: Space, first: Sequence[Levels], seed: int) -> Search:
    return evolutionary_search(space, Evolution(generations=HUGE, seed=seed), first)


def evopress(space: Space, first: Sequence[Levels], seed: int) -> Search:
    return evopress_search(space, EvoPress(generations=HUGE, seed=seed))


def cma(space: Space, first: Sequence[Levels], seed: int) -> Search:
    return cma_search(space, HUGE, seed=seed)


def random(space: Space, first: Sequence[Levels], seed: int) -> Search:
    return random_search(space, HUGE * 20, seed=seed)


SEARCHES: dict[str, tuple[Made, bool, bool]] = {  # (search, races, takes the table)
    "random": (random, False, False),
    "the paper's": (paper, False, False),
    "EvoPress'": (evopress, True, False),
    "CMA-ES with margin": (cma, False, False),
    "default": (ours, True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=2000, help="of the paper's search: 20 x 100")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--noises", type=int, default=64, help="held-out noises")
    args = parser.parse_args()
    pipe, reporter, rows = load("bundled"), Reporter(), dict[str, list[tuple[float, float]]]()
    for seed in args.seeds:
        settings = Settings(
            sampling=Sampling(20, 2.0), levers=Levers.PRUNE, calibration=192, probes=args.probes, seed=seed
        )
        ready = prepare(pipe, settings, reporter)
        judge = ready.fitness("held-out", args.noises)
        space, work = ready.costs.space(args.macs), float("inf")
        for name, (made, races, table) in sorted(SEARCHES.items(), key=lambda item: item[0] != "the paper's"):
            fitness, first = ready.fitness("search", args.probes, settings.heat), tuple[Levels, ...]()
            if table:
                found = sensitivity(ready, fitness, Journal(None, {}, resume=False), reporter)
                first = starts(ready, [space], found)
                rows.setdefault("knapsack alone", []).append((judge(first[0]), judge(first[0])))
            evaluations = args.evaluations if name == "the paper's" else None
            at_a_fifth, at_end, spent = run(made(space, first, seed), fitness, races, work, evaluations)
            work = min(work, spent)
            rows.setdefault(name, []).append((judge(at_a_fifth), judge(at_end)))
            print(f"seed {seed}, {name}: {rows[name][-1]}, work {spent}", flush=True)
    print("\n| search | " + " | ".join(f"seed {seed}: a fifth, all" for seed in args.seeds) + " | mean |")
    print("|---" * (len(args.seeds) + 2) + "|")
    for name, values in rows.items():
        cells = [f"{early:.2f}, {late:.2f}" for early, late in values]
        means = [statistics.mean(value[i] for value in values) for i in (0, 1)]
        print(f"| {name} | " + " | ".join(cells) + f" | {means[0]:.2f}, {means[1]:.2f} |")


def run(
    search: Search, fitness: Fitness, races: bool, work: float, evaluations: int | None
) -> tuple[Levels, Levels, int]:
    """The best schedule when a fifth of the work was done, the best at its end, and the work in calls times samples.

    For a search of so many ``evaluations``, whose work is not known before, a fifth of these counts.
    """
    best, count = dict[int, Levels](), 0
    while (cohort := search.ask()) and (fitness.calls < work if evaluations is None else count < evaluations):
        if races:
            heats = dict[Levels, float]()

            def judge(
                rung: int, candidates: Sequence[Levels], heats: dict[Levels, float] = heats
            ) -> dict[Levels, float]:
                if rung == 0:
                    heats |= {levels: fitness.first(levels) for levels in candidates}
                    return heats
                return {levels: fitness.second(levels, heats[levels]) for levels in candidates}

            search.tell(race(cohort, judge, (0.5,)))
        else:
            search.tell({levels: fitness(levels) for levels in cohort})
        count += len(cohort)
        best[count if evaluations is not None else fitness.calls] = search.best.levels
    limit = (evaluations if evaluations is not None else work) / 5
    early = [levels for spent, levels in best.items() if spent <= limit] or [next(iter(best.values()))]
    return early[-1], search.best.levels, fitness.calls


if __name__ == "__main__":
    main()
