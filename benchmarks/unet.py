"""Is the evolved schedule better than its rivals on the bundled U-Net, and what is compensation worth there?

    python benchmarks/unet.py --seeds 0 1 2

For every seed: two searches among levels alone, one of them without compensation, and the rivals at the same MACs;
judged by mean SNR (dB) against the dense model's own steps, on noises that no search has seen, and by the Fréchet
distance of the same images to real tiles. No layer is timed, so that all depends on the seed alone. Prints a line for
every result and then a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from diff_es.compression.evaluator import Judge
from diff_es.compression.evolve import evolve
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.evaluation.evaluate import Contender, contenders, sampled
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Width
from diff_es.pruning.library import Method
from diff_es.scoring.journal import Journal
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter

NAMES = {
    "fewer-steps": "evenly fewer steps of the dense model",
    "uniform": "uniform pruning",
    "mosaicdiff": "MosaicDiff-like schedule",
    "diff-es": "evolved schedule",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=0.7, help="share of the MACs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", type=int, default=128, help="held-out noises, of which the images are too")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("--population", type=int, default=8)
    parser.add_argument("--generations", type=int, default=7)
    args = parser.parse_args()
    pipe, real, reporter = load("bundled-unet", dtype=torch.float32), load_reference(), Reporter()
    scores, distances = dict[str, list[float]](), dict[str, list[float]]()
    for seed in args.seeds:
        start = time.monotonic()
        compensated = Settings(
            sampling=Sampling(args.steps, args.guidance),
            stages=args.stages,
            levers=Levers.PRUNE,
            method=Method(Width(dense=())),
            calibration_samples=args.calibration,
            search_noises=12,
            first_rung=4,
            sensitivity_noises=4,
            finalists=3,
            held_out_noises=24,
            population=args.population,
            generations=args.generations,
            seed=seed,
        )
        method = replace(compensated.method, compensation=None)
        goal = None
        for settings, note in ((compensated, ""), (compensated.changed(method=method), ", no compensation")):
            study = prepare(pipe, settings, reporter)
            judge = Judge(study, Journal(None, {}, resume=False))
            table = sensitivity(study, judge, reporter)
            found = evolve(study, (args.budget,), judge, table, reporter)[args.budget]
            rivals = {rival.name: rival for rival in contenders(study, args.budget, found, found)}
            field = {f"{name}{note}": rivals[key] for key, name in NAMES.items() if not (note and key == "fewer-steps")}
            if goal is None:
                dense = Contender("dense", 1.0, 1.0, Runner("dense", settings.sampling))
                goal, images = sampled(study, dense, args.noises, reporter)
                distances.setdefault("dense model", []).append(real.distance(images))
            for name, rival in field.items():
                latents, images = sampled(study, rival, args.noises, reporter)
                scores.setdefault(name, []).append(float(snr_db(goal, latents).mean()))
                distances.setdefault(name, []).append(real.distance(images))
                row = f"{name}: {scores[name][-1]:.2f} dB, distance {distances[name][-1]:.2f}"
                print(f"seed {seed}, {row}, {rival.macs_ratio:.4f} of the MACs", flush=True)
        print(f"seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"\n| SNR in dB (Fréchet distance) at {args.budget:g} of the MACs | ", end="")
    print(" | ".join(f"seed {seed}" for seed in args.seeds) + " | mean |")
    print("|---" * (len(args.seeds) + 2) + "|")
    for name, far in distances.items():
        near = scores.get(name)
        cells = [f"{near[i]:.1f} ({far[i]:.2f})" if near else f"({far[i]:.2f})" for i in range(len(far))]
        mean = f"{statistics.mean(near):.1f} ({statistics.mean(far):.2f})" if near else f"({statistics.mean(far):.2f})"
        print(f"| {name} | " + " | ".join([*cells, mean]) + " |")


if __name__ == "__main__":
    main()
