"""What a search takes beside what was foretold of it, for each lever, in one process.

    python benchmarks/foretold.py --model bundled-unet

The search is small; the phases and settings are those of a large one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from common import (
    CalibrationSamples,
    Generations,
    Guidance,
    Model,
    SearchNoises,
    StageCount,
    Steps,
    header,
    options,
    row,
)

from diff_es import Levers, Run, Sampling, Settings, compress, forecast
from diff_es.pipelines.loading import load
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    steps: Steps = 10
    guidance: Guidance = 2.0
    stages: StageCount = 5
    calibration_samples: CalibrationSamples = 16
    search_noises: SearchNoises = 8
    generations: Generations = 2


def main(asked: Options) -> None:
    pipe = load(asked.model)
    header("levers", "foretold", "took", "off by", "time to foretell")
    for levers in Levers:
        settings = Settings(
            sampling=Sampling(asked.steps, asked.guidance, 8),
            stages=asked.stages,
            levers=levers,
            calibration_samples=asked.calibration_samples,
            search_noises=asked.search_noises,
            sensitivity_noises=2,
            held_out_noises=asked.search_noises,
            finalists=2,
            population=8,
            generations=asked.generations,
            timestep_generations=2,
        )
        times = [time.monotonic()]
        found = forecast(pipe, 0.7, settings)
        times.append(time.monotonic())
        compress(pipe, 0.7, settings, Run(reporter=Reporter()))
        spent = time.monotonic() - times[1]
        off = found.seconds / spent - 1
        row(levers.value, f"{found.seconds:.0f} s", f"{spent:.0f} s", f"{off:+.0%}", f"{times[1] - times[0]:.1f} s")


if __name__ == "__main__":
    main(options(Options, __doc__))
