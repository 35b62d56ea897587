"""What compact placement costs in fidelity and saves in memory, with orders of the stages' own and with a shared one.

    python benchmarks/compact.py --noises 32

On the bundled model: SNR in dB of the final latent against the dense model's, on noises that calibration never saw, and
the most bytes of weights on the device, relative to the dense model's. The corrections' ranks stand beside them, as
medians relative to a layer's outputs; an eight-bit factor of such a rank is what is kept of each correction.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from common import CalibrationSamples, Guidance, Model, Noises, Seed, Steps, header, options, row, snr

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.layers import Kind, Plan
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pruning.compaction import Compaction
from diff_es.pruning.library import Library
from diff_es.routing.placements import Compact, Placement, Resident, Streamed
from diff_es.routing.realise import output_of, weight_of
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter

SCHEDULES = {  # levels of the ten stages
    "half everywhere": (4,) * 10,
    "an eighth everywhere": (1,) * 10,
    "falling from 7/8 to 1/8": (7, 6, 6, 5, 4, 4, 3, 2, 2, 1),
}


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    noises: Noises = 32
    calibration_samples: CalibrationSamples = 192
    steps: Steps = 20
    guidance: Guidance = 2.0
    tolerances: Annotated[tuple[float, ...], "of what is left out of a correction"] = (0.1, 0.3, 0.5, 1.0)
    seed: Seed = 0


@torch.no_grad()
def main() -> None:
    asked = options(Options, __doc__)
    reporter, pipe = Reporter(), load(asked.model)
    settings = Settings(
        sampling=Sampling(asked.steps, asked.guidance),
        levers=Levers.PRUNE,
        calibration_samples=asked.calibration_samples,
        seed=asked.seed,
    )
    ready, denoiser = prepare(pipe, settings, reporter), denoiser_of(pipe)
    probes = make_probes(pipe, asked.noises, asked.seed, "compact")
    dense = sample(pipe, probes, settings.sampling)
    bytes_dense = sum(parameter.nbytes for parameter in denoiser.parameters())

    def judged(plans: Sequence[Plan], placement: Placement) -> str:
        runner = Runner("", settings.sampling, ready.stages, tuple(plans), placement)
        with runner.context(pipe) as routing:
            assert routing is not None
            score = snr(dense, sample(pipe, probes, settings.sampling))
            return f"{score:.2f} ({routing.store.peak_bytes / bytes_dense:.2f}x)"

    compact = [f"compact, {tolerance:g}" for tolerance in asked.tolerances]
    header("order", "schedule: SNR dB (memory)", "whole, resident", "whole, streamed", *compact, "ranks")
    for shared in (False, True):
        method = replace(ready.settings.method, shared_order=shared)
        library = Library(denoiser, ready.anatomy, ready.statistics, method, reporter)
        for name, levels in SCHEDULES.items():
            whole = [library.plan(stage, (level,)) for stage, level in enumerate(levels)]
            cells, ranks = [judged(whole, Resident()), judged(whole, Streamed())], list[str]()
            for tolerance in asked.tolerances:
                compaction = Compaction(library, tolerance)
                plans = [compaction.plan(stage, (level,)) for stage, level in enumerate(levels)]
                cells.append(judged(plans, Compact()))
                ranks.append("/".join(f"{rank:.2f}" for rank in ranks_of(ready, plans)))
            order = "one for all stages" if shared else "each stage its own"
            row(order, name, *cells, ", ".join(ranks))


def ranks_of(ready: Study, plans: Sequence[Plan]) -> tuple[float, float]:
    """Median rank of a stage's own correction over its layer's outputs, of attention and of feed-forward layers."""
    found: dict[Kind, list[float]] = {Kind.ATTENTION: [], Kind.FEEDFORWARD: []}
    for plan in plans:
        for layer in ready.anatomy.layers:
            if layer.name in plan.cuts:
                factors = plan.cuts[layer.name].factors
                outputs = len(weight_of(output_of(denoiser_of(ready.pipe), layer), layer))
                found[layer.kind].append(sum(len(factor.left_scale) for factor in factors) / outputs)
    attention, feedforward = (statistics.median(values) for values in found.values())
    return attention, feedforward


if __name__ == "__main__":
    main()
