"""What compact placement costs in fidelity and saves in memory, with orders of the stages' own and with a shared one.

    python benchmarks/compact.py --noises 32

On the bundled model: SNR in dB of the final latent against the dense model's, on noises that calibration never saw, and
the most bytes of weights on the device, relative to the dense model's. The corrections' ranks stand beside them, as
medians relative to a layer's outputs; an eight-bit factor of such a rank is what is kept of each correction.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import Study, prepare
from diff_es.layers import Kind, Plan
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pruning.compaction import Compaction
from diff_es.pruning.library import Library
from diff_es.routing.placements import Compact, Placement, Resident, Streamed
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter

SCHEDULES = {
    "half everywhere": (4,) * 10,
    "an eighth everywhere": (1,) * 10,
    "falling from 7/8 to 1/8": (7, 6, 6, 5, 4, 4, 3, 2, 2, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", type=int, default=32, help="held-out noises")
    parser.add_argument("--calibration-samples", type=int, default=192, help="samples of the calibration")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.1, 0.3, 0.5, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    reporter, pipe = Reporter(), load("bundled")
    settings = Settings(
        sampling=Sampling(20, 2.0), levers=Levers.PRUNE, calibration_samples=args.calibration, seed=args.seed
    )
    ready = prepare(pipe, settings, reporter)
    probes = make_probes(pipe, args.noises, args.seed, "compact")
    dense = sample(pipe, probes, settings.sampling)
    bytes_dense = sum(parameter.nbytes for parameter in pipe.transformer.parameters())

    def judged(plans: Sequence[Plan], placement: Placement) -> str:
        runner = Runner("", settings.sampling, ready.stages, tuple(plans), placement)
        with runner.context(pipe) as store:
            assert store is not None
            score = float(snr_db(dense, sample(pipe, probes, settings.sampling)).mean())
            return f"{score:.2f} ({store.peak_bytes / bytes_dense:.2f}x)"

    columns = ("whole, resident", "whole, streamed", *(f"compact, {t:g}" for t in args.tolerances), "ranks")
    print("| order | schedule: SNR dB (memory) | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for shared in (False, True):
        method = replace(ready.settings.method, shared_order=shared)
        library = Library(pipe.transformer, ready.anatomy, ready.statistics, method, reporter)
        for name, levels in SCHEDULES.items():
            whole = [library.plan(stage, (level,)) for stage, level in enumerate(levels)]
            cells, ranks = [judged(whole, Resident()), judged(whole, Streamed())], list[str]()
            for tolerance in args.tolerances:
                compaction = Compaction(library, tolerance)
                plans = [compaction.plan(stage, (level,)) for stage, level in enumerate(levels)]
                cells.append(judged(plans, Compact()))
                ranks.append("/".join(f"{rank:.2f}" for rank in ranks_of(ready, plans)))
            order = "one for all stages" if shared else "each stage its own"
            print(f"| {order} | {name} | " + " | ".join((*cells, ", ".join(ranks))) + " |", flush=True)


def ranks_of(ready: Study, plans: Sequence[Plan]) -> tuple[float, float]:
    """Median rank of a stage's own correction over its layer's outputs, of attention and of feed-forward layers."""
    found: dict[Kind, list[float]] = {Kind.ATTENTION: [], Kind.FEEDFORWARD: []}
    for plan in plans:
        for layer in ready.anatomy.layers:
            if layer.name in plan.cuts:
                factors = plan.cuts[layer.name].factors
                outputs = ready.pipe.transformer.get_submodule(layer.output).out_features
                found[layer.kind].append(sum(len(factor.left_scale) for factor in factors) / outputs)
    attention, feedforward = (statistics.median(values) for values in found.values())
    return attention, feedforward


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
