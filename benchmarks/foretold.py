"""What searches take beside what was foretold of them: time, and the memory of a process of its own for each.

    python benchmarks/foretold.py

The searches are small; their phases and settings are those of large ones.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import torch
from common import (
    CalibrationSamples,
    Generations,
    Guidance,
    SearchNoises,
    StageCount,
    Steps,
    header,
    in_its_own_process,
    options,
    row,
)

from diff_es import Granularity, Levers, Method, Run, Sampling, Settings, Wanda, compress, forecast
from diff_es.compression.survey import survey
from diff_es.pipelines.bundled import MODELS
from diff_es.pipelines.loading import load
from diff_es.pruning.budget import Budget
from diff_es.utils.memory import peak_memory
from diff_es.utils.progress import Reporter

SETTINGS: dict[str, tuple[dict[str, Any], float | None]] = {
    "pruning": ({"levers": Levers.PRUNE}, None),
    "pruning, 20 MB": ({"levers": Levers.PRUNE}, 0.02),
    "pruning whole, Wanda alone": (
        {"levers": Levers.PRUNE, "method": Method(ranking=Wanda(), compensation=None, granularity=Granularity.WHOLE)},
        None,
    ),
    "steps": ({"levers": Levers.STEPS}, None),
    "steps and pruning": ({"levers": Levers.BOTH}, None),
}
"""Changes of the settings, and the limit of memory, in GB."""


@dataclass(frozen=True)
class Options:
    model: Annotated[tuple[str, ...], "bundled models, or folders or names to load"] = tuple(MODELS)
    settings: Annotated[tuple[str, ...], "which of the searches", tuple(SETTINGS)] = tuple(SETTINGS)
    steps: Steps = 10
    guidance: Guidance = 2.0
    stages: StageCount = 5
    calibration_samples: CalibrationSamples = 16
    search_noises: SearchNoises = 8
    generations: Generations = 2
    alone: Annotated[bool, "print the figures of the one search, as a process of its own does"] = False


def main(asked: Options) -> None:
    if asked.alone:
        print(json.dumps(measured(asked)))
        return
    header("model, search", "foretold", "took", "off by", "memory foretold", "held", "off by")
    for model in asked.model:
        for name in asked.settings:
            one = replace(asked, model=(model,), settings=(name,), alone=True)
            found = json.loads(in_its_own_process(__file__, one))
            times = [f"{found[key]:.0f} s" for key in ("foretold", "took")]
            sizes = [f"{found[key]:.2f} GB" for key in ("memory", "held")]
            off = [f"{found[a] / found[b] - 1:+.0%}" for a, b in (("foretold", "took"), ("memory", "held"))]
            row(f"{model}, {name}", *times, off[0], *sizes, off[1])


def measured(asked: Options) -> dict[str, float]:
    """Seconds and GB of one search, foretold and real."""
    (model,), (name,) = asked.model, asked.settings
    changes, memory = SETTINGS[name]
    small = Settings(
        sampling=Sampling(asked.steps, asked.guidance, 8),
        stages=asked.stages,
        calibration_samples=asked.calibration_samples,
        search_noises=asked.search_noises,
        sensitivity_noises=2,
        held_out_noises=asked.search_noises,
        finalists=2,
        population=8,
        generations=asked.generations,
        timestep_generations=2,
    )
    pipe, settings, run = load(model), replace(small, **changes), Run(memory=memory)
    foretold, times = forecast(pipe, 0.7, settings, run), [time.monotonic()]
    survey(pipe, settings, Reporter(quiet=True), Budget.of(0.7))
    times.append(time.monotonic())
    compress(pipe, 0.7, settings, run)
    times.append(time.monotonic())
    (surveying, whole), held = (after - before for before, after in pairwise(times)), peak_memory(torch.device("cpu"))
    took = whole - surveying  # a forecast comes after it
    return {"foretold": foretold.seconds, "took": took, "memory": foretold.memory / 1e9, "held": held / 1e9}


if __name__ == "__main__":
    main(options(Options, __doc__))
