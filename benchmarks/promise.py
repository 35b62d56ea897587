"""Is what a search finds as good as random search of equal work? The promise, with small settings, over seeds.

    python benchmarks/promise.py --model bundled-unet --levers steps --seeds 10 --results promise.jsonl

For every seed one search yields the results for all budgets; random search gets as many candidates at each of them, the
same probes and the same final. Both are judged by mean SNR (dB) on noises that neither has seen, and by how far above
that the score lies which the search itself reported. Results are appended to a file, line by line, and seeds that it
holds already are passed over; the table shows all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diff_es.compression.evaluator import Judge
from diff_es.compression.evolve import evolve
from diff_es.compression.final import Found
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.evaluate import Contender, random_rival, sampled, scheduled
from diff_es.pipelines.bundled import MODELS
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Width
from diff_es.pruning.library import Method
from diff_es.scoring.journal import Journal
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter

GUIDANCE = {"bundled": 2.0, "bundled-unet": 2.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="bundled")
    parser.add_argument("--levers", type=Levers, default=Levers.STEPS, help="; ".join(Levers))
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--noises", type=int, default=32, help="that neither search has seen")
    parser.add_argument("--results", type=Path, default=Path("promise.jsonl"))
    args = parser.parse_args()
    pipe, reporter = load(args.model, dtype=torch.float32), Reporter(quiet=True)
    for seed in range(args.first, args.first + args.seeds):
        key = {"model": args.model, "levers": args.levers.value, "seed": seed}
        known = args.results.read_text().splitlines() if args.results.exists() else []
        if any(key.items() <= json.loads(line).items() for line in known):
            continue
        start, settings = time.monotonic(), chosen(args.model, args.levers, seed)
        study = prepare(pipe, settings, reporter)
        judge = Judge(study, Journal(None, {}, resume=False))
        found = evolve(study, args.budgets, judge, sensitivity(study, judge, reporter), reporter)
        searched = time.monotonic() - start
        dense = Runner("reference", settings.sampling, timesteps=study.reference)
        goal, _ = sampled(study, Contender("reference", 1.0, 1.0, dense), args.noises, reporter)

        def fresh(one: Found, study: Study = study, goal: Tensor = goal) -> float:
            contender = scheduled(study, "found", 1.0, one.candidate, None if one.corrected else ())
            latents, _ = sampled(study, contender, args.noises, reporter)
            return float(snr_db(goal, latents).mean())

        rows = list[dict[str, Any]]()
        for budget, ours in found.items():
            rival = random_rival(study, budget, ours.evaluations, None, reporter)
            scores = {"ours": fresh(ours), "random": fresh(rival), "told": ours.held_out}
            work = {"evaluations": ours.evaluations, "seconds": round(searched)}
            rows.append({**key, "budget": budget, **scores, **work})
        with args.results.open("a") as file:  # all of a seed or nothing
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    show([json.loads(line) for line in args.results.read_text().splitlines()])


def chosen(model: str, levers: Levers, seed: int) -> Settings:
    """A search of less than a minute on one core, so small that luck has a say."""
    return Settings(
        sampling=Sampling(8, GUIDANCE[model], batch=8),
        stages=4,
        levers=levers,
        method=Method(Width(dense=())),
        calibration_samples=16,
        search_noises=4,
        first_rung=2,
        sensitivity_noises=2,
        finalists=3,
        held_out_noises=6,
        population=6,
        generations=3,
        timestep_generations=3,
        timestep_offspring=6,
        seed=seed,
    )


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A Markdown table of means over the seeds, and of their differences with the error of the mean."""
    print("| model | levers | budget | seeds | ours | random search | ours - random | reported - fresh |")
    print("|---" * 8 + "|")
    for model, levers, budget in dict.fromkeys((row["model"], row["levers"], row["budget"]) for row in rows):
        own = [row for row in rows if (row["model"], row["levers"], row["budget"]) == (model, levers, budget)]
        means = [f"{statistics.mean(row[name] for row in own):.2f}" for name in ("ours", "random")]
        cells = [_mean([row[a] - row[b] for row in own]) for a, b in (("ours", "random"), ("told", "ours"))]
        print(f"| {model} | {levers} | {budget:g} | {len(own)} | " + " | ".join([*means, *cells]) + " |")


def _mean(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
