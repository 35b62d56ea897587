"""The dense model, routing and a result side by side in one process: how long they take, how much memory they hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from ..compression.result import Compressed
from ..layers import DENSE, anatomy_of
from ..pipelines.denoiser import device_of, dtype_of
from ..pipelines.families import Pipeline
from ..pipelines.sampling import denoiser_of
from ..pruning.latency import finished
from ..routing.placements import Compact, Placement, Resident, Stitched, Streamed, parameter_bytes
from ..routing.routing import Routing
from ..scoring.timing import Runner, measure, once
from ..utils.progress import Reporter


def switch_ms(routing: Routing, stages: int, device: torch.device) -> float:
    """Median milliseconds of going to the next stage, device work included, once everything has been seen."""
    times = list[float]()
    for round_index in range(3):
        for stage in range(stages):
            finished(device)
            began = time.perf_counter()
            with routing.turn(stage):
                pass
            finished(device)
            if round_index:
                times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def compare(
    pipe: Pipeline, fast: Compressed, batches: Sequence[int], rounds: int, reporter: Reporter, *, compiled: bool = False
) -> dict[str, Any]:
    """The dense model, routing that prunes nothing, and the result in every placement that it allows, as JSON values.

    ``weight_bytes`` is the most bytes of weights on the device during a trajectory, counted; ``peak_bytes`` the
    device's own count of its peak memory during one pipeline call, None on the CPU. ``stitched`` runs a network of
    its own for every stage, as MosaicDiff does. ``compiled`` compiles the denoiser's blocks in place first.
    """
    fast.check(pipe)
    denoiser, stages = denoiser_of(pipe), fast.schedule.stages
    if compiled:
        for block in anatomy_of(denoiser).blocks:
            denoiser.get_submodule(block.name).compile()
    whole = any(cut.weight is not None for plan in fast.plans for cut in plan.cuts.values())
    places: dict[str, Placement] = {"resident": Resident(), "streamed": Streamed()}
    places |= {"stitched": Stitched()} if whole else {"compact": Compact(), "stitched": Stitched()}
    rows = list[dict[str, Any]]()
    for batch in batches:
        sampling = replace(fast.sampling, batch=batch)
        runners = [
            Runner("dense", sampling),
            Runner("routed at level 0", sampling, stages, (DENSE,) * len(stages)),
            *(fast.runner(f"diff-es, {name}", sampling, placement) for name, placement in places.items()),
        ]
        ratios = [1.0, 1.0, *[fast.report.macs_ratio] * len(places)]
        timings = measure(pipe, runners, rounds, reporter, ratios)
        for runner, timing, ratio in zip(runners, timings, ratios, strict=True):
            peak = _peak_bytes(pipe, runner)
            row = {"runner": runner.name, "batch": batch, "macs_ratio": ratio, **asdict(timing), "peak_bytes": peak}
            with runner.context(pipe) as routing:  # going through all stages shows the peak too
                row["switch_ms"] = None if routing is None else switch_ms(routing, len(stages), device_of(denoiser))
                row["weight_bytes"] = parameter_bytes(denoiser) if routing is None else routing.store.peak_bytes
            rows.append(row)
    device = device_of(denoiser)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype_of(denoiser)),
        "threads": torch.get_num_threads(),
        "stages": len(stages),
        "steps": fast.sampling.steps,
        "guidance": fast.sampling.guidance,
        "rounds": rounds,
        "compiled": compiled,
        "rows": rows,
    }


def _peak_bytes(pipe: Pipeline, runner: Runner) -> int | None:
    device = device_of(denoiser_of(pipe))
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    once(pipe, runner)
    return int(torch.cuda.max_memory_allocated(device))
