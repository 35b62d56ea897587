"""Is the evolved schedule better than its rivals on the bundled U-Net, and what is compensation worth there?

    python benchmarks/unet.py --seeds 0 1 2

For every seed: two searches among levels alone, one of them without compensation, and the rivals at the same MACs;
judged by mean SNR (dB) against the dense model's own steps, on noises that no search has seen, and by the Fréchet
distance of the same images to real tiles. No layer is timed, so that all depends on the seed alone. Prints a line for
every result and then a Markdown table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from common import (
    CalibrationSamples,
    Closeness,
    Generations,
    Guidance,
    HeldOutNoises,
    Model,
    Population,
    Seeds,
    StageCount,
    Steps,
    header,
    options,
    row,
    searched,
)

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.rivals import Contender, contenders
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Width
from diff_es.pruning.method import Method
from diff_es.utils.progress import Reporter

NAMES = {
    "fewer-steps": "evenly fewer steps of the dense model",
    "uniform": "uniform pruning",
    "mosaicdiff": "MosaicDiff-like schedule",
    "diff-es": "evolved schedule",
}


@dataclass(frozen=True)
class Options:
    model: Model = "bundled-unet"
    budget: Annotated[float, "share of the MACs"] = 0.7
    seeds: Seeds = (0, 1, 2)
    noises: Annotated[int, "held-out noises, of which the images are too"] = 128
    steps: Steps = 20
    guidance: Guidance = 2.5
    stages: StageCount = 10
    calibration_samples: CalibrationSamples = 128
    held_out_noises: HeldOutNoises = 24
    population: Population = 8
    generations: Generations = 7


def main() -> None:
    asked = options(Options, __doc__)
    pipe, real, reporter = load(asked.model, dtype=torch.float32), load_reference(), Reporter()
    scores, distances = dict[str, list[float]](), dict[str, list[float]]()
    for seed in asked.seeds:
        start, compensated = time.monotonic(), settings_of(asked, seed)
        plain = replace(compensated, method=replace(compensated.method, compensation=None))
        closeness: Closeness | None = None
        for settings in (compensated, plain):
            study = prepare(pipe, settings, reporter)
            if closeness is None:
                closeness = Closeness(study, asked.noises, reporter)
                distances.setdefault("dense model", []).append(real.distance(closeness.images))
            for name, rival in field(study, asked.budget, reporter):
                snr, images = closeness.seen(rival)
                scores.setdefault(name, []).append(snr)
                distances.setdefault(name, []).append(real.distance(images))
                found = f"{name}: {snr:.2f} dB, distance {distances[name][-1]:.2f}"
                print(f"seed {seed}, {found}, {rival.macs_ratio:.4f} of the MACs", flush=True)
        print(f"seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    print()
    title = f"SNR in dB (Fréchet distance) at {asked.budget:g} of the MACs"
    header(title, *(f"seed {seed}" for seed in asked.seeds), "mean")
    for name, far in distances.items():
        if near := scores.get(name):
            near, far = [*near, statistics.mean(near)], [*far, statistics.mean(far)]
            row(name, *(f"{snr:.1f} ({distance:.2f})" for snr, distance in zip(near, far, strict=True)))
        else:
            row(name, *(f"({distance:.2f})" for distance in [*far, statistics.mean(far)]))


def field(study: Study, budget: float, reporter: Reporter) -> Iterator[tuple[str, Contender]]:
    """What a search finds, and its rivals; fewer steps are the same without compensation, and are left out there."""
    note = "" if study.settings.method.compensation else ", no compensation"
    (found,) = searched(study, (budget,), reporter)
    rivals = {rival.name: rival for rival in contenders(study, found)}
    for key, name in NAMES.items():
        if not (note and key == "fewer-steps"):
            yield f"{name}{note}", rivals[key]


def settings_of(asked: Options, seed: int) -> Settings:
    return Settings(
        sampling=Sampling(asked.steps, asked.guidance),
        stages=asked.stages,
        levers=Levers.PRUNE,
        method=Method(Width(dense=())),
        calibration_samples=asked.calibration_samples,
        search_noises=12,
        first_rung=4,
        sensitivity_noises=4,
        finalists=3,
        held_out_noises=asked.held_out_noises,
        population=asked.population,
        generations=asked.generations,
        seed=seed,
    )


if __name__ == "__main__":
    main()
