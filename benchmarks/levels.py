"""Where the time of a pruned denoiser goes: latency by level, and what does not shrink.

    python benchmarks/levels.py --batch 16 32 64

Every level runs in all stages; levels are interleaved in one process. Prints the measured speed-up of one denoiser call
beside the one that its MACs promise, and a profile of the dense and of a pruned call by kind of operation.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from diff_es.layers import Cut, Plan, Weights, discover
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.tracing import trace
from diff_es.pruning.granularity import Width
from diff_es.pruning.macs import MacCounter
from diff_es.routing.realise import realise
from diff_es.routing.switch import Switch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32, 64], help="samples; guidance doubles it")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    pipe, ladder = load(args.model), Width()
    denoiser = pipe.transformer
    anatomy, counter = (
        discover(denoiser),
        MacCounter(denoiser, discover(denoiser), trace(pipe, Sampling(num_inference_steps=10))),
    )
    widths = [tuple(ladder.kept(layer, level) for layer in anatomy.layers) for level in range(ladder.levels)]
    weights = [Weights()]
    for counts in widths[1:]:
        pairs = zip(anatomy.layers, counts, strict=True)
        cuts = {layer.name: Cut(torch.arange(kept)) for layer, kept in pairs if kept < layer.groups}
        weights.append(realise(denoiser, anatomy, Plan(cuts)))
    promised = [counter.dense() / counter.thinned(counts) for counts in widths]
    print("| batch | dense ms | " + " | ".join(f"level {i} ({p:.2f}x)" for i, p in enumerate(promised) if i) + " |")
    print("|---" * (ladder.levels + 1) + "|")
    size, channels = denoiser.config.sample_size, denoiser.config.in_channels
    for batch in args.batch:
        call = {
            "hidden_states": torch.randn(2 * batch, channels, size, size),
            "timestep": torch.full((2 * batch,), 500),
            "class_labels": torch.zeros(2 * batch, dtype=torch.long),
        }
        times, switch = [list[float]() for _ in weights], Switch(denoiser)
        with torch.no_grad():
            for _ in range(args.rounds + 1):
                for seen, stage in zip(times, weights, strict=True):
                    switch.to(stage)
                    start = time.perf_counter()
                    denoiser(**call)
                    seen.append(time.perf_counter() - start)
        medians = [statistics.median(seen[1:]) for seen in times]
        cells = [
            f"{medians[0] / m:.2f}x ({medians[0] / m / p:.0%})" for m, p in zip(medians[1:], promised[1:], strict=True)
        ]
        print(f"| {batch} | {medians[0] * 1000:.1f} | " + " | ".join(cells) + " |", flush=True)
        switch.to(Weights())
    for level in (0, 4, 7):
        switch.to(weights[level])
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(5):
                denoiser(**call)
        print(f"\nlevel {level}, batch {args.batch[-1]}")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40))
    switch.to(Weights())


if __name__ == "__main__":
    main()
