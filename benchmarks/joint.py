"""Steps and pruning together, against steps alone, pruning alone and what users do by hand, at equal cost.

    python benchmarks/joint.py --scheduler DPMSolverMultistepScheduler --steps 20 --seeds 0 1 2 --results joint.jsonl

For every seed one search of each kind of levers yields the results for all budgets. All contenders are judged by mean
SNR (dB) to the finely stepped dense model on noises that no search has seen; the Fréchet distance to real tiles stands
in brackets. Results are appended to a file, so that seeds can be run one by one or side by side; the table shows all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diff_es.compression.evaluator import Judge
from diff_es.compression.evolve import evolve
from diff_es.compression.sensitivity import by_rule, sensitivity
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.evaluate import Contender, contenders, sampled, scheduled
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.scoring.journal import Journal
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.search import Candidate
from diff_es.utils.progress import Reporter

RIVALS = {"fewer-steps": "evenly fewer steps", "uniform": "uniform pruning"}
RULES = ("trailing", "karras", "exponential", "quadratic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheduler", default="DDIMScheduler")
    parser.add_argument("--steps", type=int, default=20, help="the user's own")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.6, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--levers", type=Levers, nargs="+", default=list(Levers), help="; ".join(Levers))
    parser.add_argument("--noises", type=int, default=48, help="held-out noises")
    parser.add_argument(
        "--search-noises", type=int, default=12, help="noises of a search; a third of them is its first heat"
    )
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("joint.jsonl"))
    args = parser.parse_args()
    pipe = load("bundled", scheduler=args.scheduler, dtype=torch.float32)  # on a GPU too: rounding is an error like any
    real, reporter = load_reference(), Reporter()
    for seed in args.seeds:
        base = Settings(
            sampling=Sampling(args.steps, 2.0),
            calibration_samples=128,
            search_noises=args.probes,
            first_rung=args.probes // 3,
            sensitivity_noises=args.probes // 3,
            held_out_noises=24,
            finalists=4,
            timestep_generations=8,
            population=args.population,
            generations=args.generations,
            seed=seed,
        )
        studies = {levers: prepare(pipe, base.changed(levers=levers), reporter) for levers in args.levers}
        joint = studies.get(Levers.BOTH) or prepare(pipe, base, reporter)
        fine = Runner("reference", base.sampling, timesteps=joint.reference)
        goal, _ = sampled(joint, Contender("reference", 1.0, 1.0, fine), args.noises, reporter)

        def judge(
            budget: float,
            name: str,
            contender: Contender,
            goal: Tensor = goal,
            study: Study = joint,
            candidate: Candidate | None = None,
            seed: int = seed,
        ) -> None:
            latents, images = sampled(study, contender, args.noises, reporter)
            snr, distance = float(snr_db(goal, latents).mean()), real.distance(images)
            chosen = {} if candidate is None else {"candidate": candidate.to_json()}
            row = {"cost": budget, "name": name, "seed": seed, "snr": snr, "distance": distance, **chosen}
            with args.results.open("a") as file:
                file.write(json.dumps({"scheduler": args.scheduler, "steps": args.steps, **row}) + "\n")

        judge(1.0, "user's own setting", Contender("own", 1.0, 1.0, Runner("own", base.sampling)))
        for levers, study in studies.items():
            scores = Judge(study, Journal(None, {}, resume=False))
            found = evolve(study, args.budgets, scores, sensitivity(study, scores, reporter), reporter)
            for budget, result in found.items():
                name = {Levers.PRUNE: "pruning alone", Levers.STEPS: "steps alone"}.get(levers, "steps and pruning")
                ours = scheduled(study, name, budget, result.candidate, None if result.corrected else ())
                judge(budget, name, ours, study=study, candidate=result.candidate)
                if levers is Levers.BOTH:
                    for rival in contenders(study, budget, result, result):
                        if rival.name in RIVALS:
                            judge(budget, RIVALS[rival.name], rival)
                    for rule, candidate in zip(RULES, by_rule(study, budget), strict=True):
                        by_hand = scheduled(study, rule, budget, candidate, corrections=())
                        judge(budget, f"by hand, {rule}", by_hand)
                    evenly = scheduled(study, "trailing", budget, by_rule(study, budget)[0])
                    judge(budget, "by hand, trailing, corrected", evenly)
    show([json.loads(line) for line in args.results.read_text().splitlines()])


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A Markdown table for each sampler and number of steps; the spread of a row is half the range over the seeds."""
    for scheduler, steps in dict.fromkeys((row["scheduler"], row["steps"]) for row in rows):
        found, seeds = dict[tuple[float, str], dict[int, tuple[float, float]]](), set[int]()
        for row in rows:
            if (row["scheduler"], row["steps"]) == (scheduler, steps):
                found.setdefault((row["cost"], row["name"]), {})[row["seed"]] = row["snr"], row["distance"]
                seeds.add(row["seed"])
        print(f"\n{scheduler}, {steps} steps\n")
        print("| cost | contender | " + " | ".join(f"seed {seed}" for seed in sorted(seeds)) + " | mean |")
        print("|---" * (len(seeds) + 3) + "|")
        for (cost, name), values in sorted(found.items(), key=lambda item: (-item[0][0], -_mean(item[1]))):
            cells = [f"{values[s][0]:.1f} ({values[s][1]:.2f})" if s in values else "" for s in sorted(seeds)]
            spread = (max(snr for snr, _ in values.values()) - min(snr for snr, _ in values.values())) / 2
            print(f"| {cost:g} | {name} | " + " | ".join(cells) + f" | {_mean(values):.1f} ± {spread:.1f} |")


def _mean(values: Mapping[int, tuple[float, float]]) -> float:
    return statistics.mean(snr for snr, _ in values.values())


if __name__ == "__main__":
    main()
