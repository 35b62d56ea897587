"""What each part of the method is worth, on the bundled model: the table of docs/decisions.md.

    python benchmarks/ablation.py --noises 40

Every method prunes all stages by the same level, so that the methods of a column cost the same to the last MAC (but for
the linear maps of skipped blocks); the figure is the mean SNR in dB of the final latent against the dense one, on
noises that calibration never saw.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pruning.calibration import calibrate
from diff_es.pruning.compensation import Ridge
from diff_es.pruning.granularity import Depth
from diff_es.pruning.importance import Activation, Magnitude, Obs, Wanda
from diff_es.pruning.library import Library, Method
from diff_es.pruning.macs import MacCounter
from diff_es.scoring.fidelity import LatentSNR
from diff_es.scoring.fitness import Fitness
from diff_es.search import Candidate
from diff_es.utils.progress import Reporter

WIDTH = {
    "magnitude, no compensation": Method(ranking=Magnitude(), compensation=None),
    "activation, no compensation": Method(ranking=Activation(), compensation=None),
    "Wanda, no compensation": Method(ranking=Wanda(), compensation=None),
    "OBS order, no compensation": Method(compensation=None),
    "magnitude, ridge": Method(ranking=Magnitude()),
    "Wanda, ridge": Method(ranking=Wanda()),
    "OBS, ridge, statistics shared by all stages": Method(stagewise=False),
    "OBS, ridge without intercept": Method(compensation=Ridge(intercept=False)),
    "OBS in 128 rounds, ridge": Method(ranking=Obs(rounds=128)),
    "OBS, ridge, damping 0.1": Method(ranking=Obs(damping=0.1), compensation=Ridge(damping=0.1)),
    "OBS, ridge, damping 0.001": Method(ranking=Obs(damping=0.001), compensation=Ridge(damping=0.001)),
    "OBS, ridge (the default)": Method(),
}
DEPTH = {
    "blocks left out, nothing in their place": Method(ladder=Depth(bypass=False)),
    "blocks left out, fitted linear map": Method(ladder=Depth()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", type=int, default=40, help="held-out noises")
    parser.add_argument("--calibration-samples", type=int, default=192, help="samples of the calibration")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    reporter, pipe, sampling = Reporter(), load("bundled"), Sampling(args.steps, args.guidance)
    settings = Settings(sampling=sampling, levers=Levers.PRUNE, calibration_samples=args.calibration, seed=args.seed)
    study = prepare(pipe, replace(settings, method=Method(ranking=Magnitude(), compensation=None)), reporter)
    probes = make_probes(pipe, args.calibration, args.seed, "calibration")
    layers, blocks = study.anatomy.layers, study.anatomy.blocks
    everything = calibrate(pipe, probes, sampling, study.stages, layers, blocks, reporter)
    judged = make_probes(pipe, args.noises, args.seed, "ablation")
    for title, methods, levels in (("width", WIDTH, (1, 2, 3, 4)), ("depth", DEPTH, (1, 2, 3, 4))):
        print(f"\n| {title}: SNR dB (MACs) | " + " | ".join(f"level {level}" for level in levels) + " |")
        print("|---" * (len(levels) + 1) + "|")
        for name, method in methods.items():
            library = Library(pipe.transformer, study.anatomy, everything, method, reporter)
            fitness = Fitness(pipe, library, study.stages, judged, sampling, LatentSNR(), memory=0)
            scores = [fitness(Candidate.of([[level]] * len(study.stages))) for level in levels]
            bypass = method.depth is None or method.depth.bypass
            counter = MacCounter(pipe.transformer, study.anatomy, study.trace, bypass=bypass)
            ratios = [counter.option(library.units[0], level) / counter.dense() for level in levels]
            cells = [f"{score:.2f} ({ratio:.3f})" for score, ratio in zip(scores, ratios, strict=True)]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
