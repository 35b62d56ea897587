"""What each part of the method is worth, on the bundled model: the table of docs/decisions.md.

    python benchmarks/ablation.py --noises 40

Every method prunes all stages by the same level, so that the methods of a column cost the same to the last MAC (but for
the linear maps of skipped blocks); the figure is the mean SNR in dB of the final latent against the dense one, on
noises that calibration never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from common import CalibrationSamples, Guidance, Model, Noises, Seed, Steps, header, options, row

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.calibration import calibrate
from diff_es.pruning.compensation import Ridge
from diff_es.pruning.granularity import Depth
from diff_es.pruning.importance import Activation, Magnitude, Obs, Wanda
from diff_es.pruning.library import Library
from diff_es.pruning.macs import MacCounter
from diff_es.pruning.method import Method
from diff_es.pruning.wanted import Wanted
from diff_es.scoring.fidelity import LatentSNR
from diff_es.scoring.fitness import Comparison, Fitness
from diff_es.search import Candidate
from diff_es.solvers.prefix_cache import PrefixCache
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
    "OBS one by one, ridge": Method(ranking=Obs(rounds=1024)),
    "OBS, ridge, damping 0.1": Method(ranking=Obs(damping=0.1), compensation=Ridge(damping=0.1)),
    "OBS, ridge, damping 0.001": Method(ranking=Obs(damping=0.001), compensation=Ridge(damping=0.001)),
    "OBS, ridge (the default)": Method(),
}
DEPTH = {
    "blocks left out, nothing in their place": Method(ladder=Depth(bypass=False)),
    "blocks left out, fitted linear map": Method(ladder=Depth()),
}


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    noises: Noises = 40
    calibration_samples: CalibrationSamples = 192
    steps: Steps = 20
    guidance: Guidance = 2.0
    levels: Annotated[tuple[int, ...], "of all stages, a column for each"] = (1, 2, 3, 4)
    methods: Annotated[tuple[str, ...], "the rows", (*WIDTH, *DEPTH)] = (*WIDTH, *DEPTH)
    seed: Seed = 0


def main() -> None:
    asked = options(Options, __doc__)
    reporter, pipe, sampling = Reporter(), load(asked.model), Sampling(asked.steps, asked.guidance)
    plain, samples = Method(ranking=Magnitude(), compensation=None), asked.calibration_samples
    settings = Settings(
        sampling=sampling, levers=Levers.PRUNE, method=plain, calibration_samples=samples, seed=asked.seed
    )
    study, denoiser = prepare(pipe, settings, reporter), denoiser_of(pipe)
    probes = make_probes(pipe, samples, asked.seed, "calibration")
    wanted = Wanted(study.anatomy.layers, study.anatomy.blocks)
    everything = calibrate(pipe, probes, sampling, study.stages, wanted, reporter)
    judged = make_probes(pipe, asked.noises, asked.seed, "ablation")
    for title, methods in (("width", WIDTH), ("depth", DEPTH)):
        print()
        header(f"{title}: SNR dB (MACs)", *(f"level {level}" for level in asked.levels))
        for name, method in methods.items():
            if name not in asked.methods:
                continue
            library = Library(denoiser, study.anatomy, everything, method, reporter)
            fitness = Fitness(
                pipe, library, study.stages, judged, sampling, LatentSNR(), Comparison(known=PrefixCache(0))
            )
            scores = [fitness(Candidate.of([[level]] * len(study.stages))) for level in asked.levels]
            bypass = method.depth is None or method.depth.bypass
            counter = MacCounter(denoiser, study.anatomy, study.trace, bypass=bypass)
            ratios = [counter.option(library.units[0], level) / counter.dense() for level in asked.levels]
            cells = [f"{score:.2f} ({ratio:.3f})" for score, ratio in zip(scores, ratios, strict=True)]
            row(name, *cells)


if __name__ == "__main__":
    main()
