"""How many samples calibration needs: one schedule, made from more and more of them.

    python benchmarks/calibration.py --model bundled-unet --samples 64 128 256 512

The schedule of each budget is what a small search finds with the first number of samples; only the weights and which
groups stay differ. Prints the vectors that the layer with the fewest sees in a stage for each of its columns, and SNR
(dB) on noises that chose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from common import Budgets, Closeness, Model, Noises, Seed, Steps, by_study, header, options, row, searched, untimed

from diff_es import Levers, with_effort
from diff_es.compression.study import Study, prepare
from diff_es.pipelines.loading import load
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    samples: Annotated[tuple[int, ...], "samples of the calibration, one row each"] = (64, 128, 256, 512)
    budgets: Budgets = (0.75, 0.5)
    effort: Annotated[float, "of the search"] = 0.03
    noises: Noises = 64
    steps: Steps = 20
    seed: Seed = 0


def main(asked: Options) -> None:
    pipe, reporter = load(asked.model, dtype=torch.float32), Reporter()
    settings, found = with_effort(untimed(asked.steps, 2.0, Levers.PRUNE, asked.seed), asked.effort), None
    header("model", "samples", "vectors a column", *(f"at {budget:g}" for budget in sorted(asked.budgets)))
    for samples in asked.samples:
        ready = prepare(pipe, replace(settings, calibration_samples=samples), reporter)
        found = found or searched(ready, asked.budgets, reporter)
        closeness = Closeness(ready, asked.noises, reporter)
        scores = [f"{closeness(by_study(ready, one)):.2f}" for one in found]
        row(asked.model, str(samples), f"{vectors(ready):.1f}", *scores)


def vectors(ready: Study) -> float:
    """For each column of the layer and stage that see the fewest."""
    stages = ready.statistics.stages
    return min(moments[layer.name].count / layer.size for moments in stages for layer in ready.anatomy.layers)


if __name__ == "__main__":
    main(options(Options, __doc__))
