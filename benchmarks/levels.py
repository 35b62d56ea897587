"""Where the time of a pruned denoiser goes: latency by level, and what does not shrink.

    python benchmarks/levels.py --batch 16 32 64

Every level runs in all stages; levels are interleaved in one process. Prints the measured speed-up of one denoiser call
beside the one that its MACs promise, and a profile of the dense and of a pruned call by kind of operation.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Annotated

import torch
from common import Rounds, header, options, row
from torch.profiler import ProfilerActivity, profile

from diff_es.layers import Cut, Plan, Weights, discover
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.tracing import trace
from diff_es.pruning.granularity import Width
from diff_es.pruning.macs import MacCounter
from diff_es.routing.realise import realise
from diff_es.routing.switch import Switch


@dataclass(frozen=True)
class Options:
    model: Annotated[str, "the bundled transformer, or a folder of a DiT pipeline"] = "bundled"
    batch: Annotated[tuple[int, ...], "samples; guidance doubles them"] = (16, 32, 64)
    rounds: Rounds = 15


def main() -> None:
    asked = options(Options, __doc__)
    pipe, ladder = load(asked.model), Width()
    denoiser = pipe.transformer
    anatomy = discover(denoiser)
    counter = MacCounter(denoiser, anatomy, trace(pipe, Sampling(num_inference_steps=10)))
    widths = [tuple(ladder.kept(layer, level) for layer in anatomy.layers) for level in range(ladder.levels)]
    weights = [Weights()]
    for counts in widths[1:]:
        pairs = zip(anatomy.layers, counts, strict=True)
        cuts = {layer.name: Cut(torch.arange(kept)) for layer, kept in pairs if kept < layer.groups}
        weights.append(realise(denoiser, anatomy, Plan(cuts)))
    promised = [counter.dense() / counter.thinned(counts) for counts in widths]
    header("batch", "dense ms", *(f"level {i} ({p:.2f}x)" for i, p in enumerate(promised) if i))
    size, channels = denoiser.config.sample_size, denoiser.config.in_channels
    for batch in asked.batch:
        call = {
            "hidden_states": torch.randn(2 * batch, channels, size, size),
            "timestep": torch.full((2 * batch,), 500),
            "class_labels": torch.zeros(2 * batch, dtype=torch.long),
        }
        times, switch = [list[float]() for _ in weights], Switch(denoiser)
        with torch.no_grad():
            for _ in range(asked.rounds + 1):
                for seen, stage in zip(times, weights, strict=True):
                    switch.to(stage)
                    start = time.perf_counter()
                    denoiser(**call)
                    seen.append(time.perf_counter() - start)
        medians = [statistics.median(seen[1:]) for seen in times]
        cells = [
            f"{medians[0] / m:.2f}x ({medians[0] / m / p:.0%})" for m, p in zip(medians[1:], promised[1:], strict=True)
        ]
        row(str(batch), f"{medians[0] * 1000:.1f}", *cells)
        switch.to(Weights())
    for level in (0, 4, 7):
        switch.to(weights[level])
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(5):
                denoiser(**call)
        print(f"\nlevel {level}, batch {asked.batch[-1]}")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40))
    switch.to(Weights())


if __name__ == "__main__":
    main()
