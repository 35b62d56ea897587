"""Steps and pruning together, against steps alone, pruning alone and what users do by hand, at equal cost.

    python benchmarks/joint.py --scheduler DPMSolverMultistepScheduler --steps 20 --seeds 0 1 2

For every seed one search of each kind of levers yields the results for all budgets. All contenders are judged by mean
SNR (dB) to the finely stepped dense model on noises that no search has seen; the Fréchet distance to real tiles stands
in brackets.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence

from torch import Tensor

from diff_es.benchmark import Runner
from diff_es.compress import evolve
from diff_es.evaluate import Contender, contenders, sampled, scheduled
from diff_es.journal import Journal
from diff_es.judge import Judge
from diff_es.loading import load
from diff_es.metrics import snr_db
from diff_es.pipeline import Sampling
from diff_es.progress import Reporter
from diff_es.sensitivity import by_rule, sensitivity
from diff_es.settings import Levers, Settings
from diff_es.study import Study, prepare
from diff_es.tiles import load_reference

RULES = ("trailing", "karras", "exponential", "quadratic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheduler", default="DDIMScheduler")
    parser.add_argument("--steps", type=int, default=20, help="the user's own")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.6, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", type=int, default=64, help="held-out noises")
    parser.add_argument("--calibration", type=int, default=192)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=16)
    args = parser.parse_args()
    pipe, real, reporter = load("bundled", scheduler=args.scheduler), load_reference(), Reporter()
    rows = dict[tuple[float, str], list[tuple[float, float]]]()
    for seed in args.seeds:
        base = Settings(
            sampling=Sampling(args.steps, 2.0),
            calibration=args.calibration,
            population=args.population,
            generations=args.generations,
            seed=seed,
        )
        studies = {levers: prepare(pipe, base.changed(levers=levers), reporter) for levers in Levers}
        joint = studies[Levers.BOTH]
        fine = Runner("reference", base.sampling, timesteps=joint.reference)
        goal, _ = sampled(joint, Contender("reference", 1.0, 1.0, fine), args.noises, reporter)

        def judge(budget: float, name: str, contender: Contender, goal: Tensor = goal, study: Study = joint) -> None:
            latents, images = sampled(study, contender, args.noises, reporter)
            found = float(snr_db(goal, latents).mean()), real.distance(images)
            rows.setdefault((budget, name), []).append(found)
            print(f"{budget} {name}: {found[0]:.2f} dB", flush=True)

        judge(1.0, "user's own setting", Contender("own", 1.0, 1.0, Runner("own", base.sampling)))
        for levers, study in studies.items():
            scores = Judge(study, Journal(None, {}, resume=False))
            found = evolve(study, args.budgets, scores, sensitivity(study, scores, reporter), reporter)
            for budget, result in found.items():
                name = {Levers.PRUNE: "pruning alone", Levers.STEPS: "steps alone"}.get(levers, "steps and pruning")
                judge(budget, name, scheduled(study, name, budget, result.levels), study=study)
                print(result.levels, flush=True)
                if levers is Levers.BOTH:
                    fewer, uniform, *_ = contenders(study, budget, result, result)
                    judge(budget, "evenly fewer steps", fewer)
                    judge(budget, "uniform pruning", uniform)
                    for rule, levels in zip(RULES, by_rule(study, budget), strict=True):
                        judge(budget, f"by hand, {rule}", scheduled(study, rule, budget, levels))
    show(rows, args.seeds)


def show(rows: dict[tuple[float, str], list[tuple[float, float]]], seeds: Sequence[int]) -> None:
    """A Markdown table; the spread of a row is half the range over the seeds."""
    print("\n| cost | contender | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---" * (len(seeds) + 3) + "|")
    for (budget, name), found in sorted(rows.items(), key=lambda item: (-item[0][0], -_mean(item[1]))):
        cells = [f"{snr:.1f} ({distance:.2f})" for snr, distance in found]
        spread = (max(snr for snr, _ in found) - min(snr for snr, _ in found)) / 2
        print(f"| {budget:g} | {name} | " + " | ".join(cells) + f" | {_mean(found):.1f} ± {spread:.1f} |")


def _mean(found: Sequence[tuple[float, float]]) -> float:
    return statistics.mean(snr for snr, _ in found) if found else -math.inf


if __name__ == "__main__":
    main()
