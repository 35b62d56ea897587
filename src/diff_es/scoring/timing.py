"""Side by side in one process, interleaved, with spread: how long contenders take and how much weight they carry."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..layers import Plan, anatomy_of
from ..pipelines.denoiser import device_of
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.probes import make_probes
from ..pipelines.sampling import decode, denoiser_of, sample
from ..routing.placements import Placement, Resident, parameter_bytes
from ..routing.routing import Routing, routed
from ..solvers.custom_timesteps import stepped
from ..trajectory.corrections import Corrections, fixed
from ..trajectory.stages import Stages
from ..utils.malloc import Kept
from ..utils.progress import Reporter


@dataclass(frozen=True)
class Runner:
    """One way to sample: a setting, and the plan of each stage (None: the dense model without any routing)."""

    name: str
    sampling: Sampling
    stages: Stages | None = None
    plans: tuple[Plan, ...] | None = None
    placement: Placement = field(default_factory=Resident)
    timesteps: tuple[float, ...] | None = None  # in place of the sampler's own
    corrections: Corrections = ()  # of the steps to these timesteps

    @property
    def steps(self) -> int:
        """Sampler steps that it takes."""
        return self.sampling.steps if self.timesteps is None else len(self.timesteps)

    @contextmanager
    def context(self, pipe: Pipeline) -> Iterator[Routing | None]:
        """Routed as this runner wants it; gives the routing, whose weights are there only inside."""
        asked, correct = self.sampling.steps, fixed(self.corrections)
        with nullcontext() if self.timesteps is None else stepped(pipe, self.timesteps, asked, correct):
            if self.stages is None or self.plans is None:
                yield None
                return
            denoiser = denoiser_of(pipe)
            anatomy = anatomy_of(denoiser)
            opened = partial(self.placement.open, denoiser, anatomy, self.plans)
            with routed(denoiser, self.stages, opened) as routing:
                yield routing

    def weight_bytes(self, pipe: Pipeline) -> int:
        """The most bytes of weights on the device during a trajectory."""
        with self.context(pipe) as routing:
            if routing is None or self.plans is None:
                return parameter_bytes(denoiser_of(pipe))
            for stage in range(len(self.plans)):
                with routing.turn(stage):
                    pass
            return routing.store.peak_bytes


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one batch: medians, and half of the interquartile range as spread.

    Speed-ups are medians of the ratios to the first runner in the same round.
    """

    pipeline_ms: float
    pipeline_spread: float
    denoiser_ms: float
    denoiser_spread: float
    speedup: float
    denoiser_speedup: float


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


class _Stopwatch:
    """Seconds of all forwards of a module, hooks that run after it included; on CUDA by events, without waiting."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._cuda, self._marks = device.type == "cuda", list[Any]()
        self._handles = (
            module.register_forward_pre_hook(self._mark, prepend=True),
            module.register_forward_hook(self._mark),
        )

    def _mark(self, *args: Any) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def stop(self) -> float:
        for handle in self._handles:
            handle.remove()
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        return float(sum(a.elapsed_time(b) / 1000 if self._cuda else b - a for a, b in pairs))


def once(pipe: Pipeline, runner: Runner) -> tuple[float, float]:
    """Milliseconds of the whole pipeline, decoder included, and of its denoiser calls, weight switches included."""
    denoiser = denoiser_of(pipe)
    probes = make_probes(pipe, runner.sampling.batch, 0, "timing")
    with runner.context(pipe):
        watch = _Stopwatch(denoiser, device_of(denoiser))
        began = time.perf_counter()
        decode(pipe, sample(pipe, probes, runner.sampling))  # ends with images on the CPU: nothing is pending
        total = time.perf_counter() - began
        return total * 1000, watch.stop() * 1000


def measure(pipe: Pipeline, runners: Sequence[Runner], rounds: int, reporter: Reporter) -> list[Timing]:
    """Time every runner once a round, after one round of warming up; the first runner is the reference."""
    times = [list[tuple[float, float]]() for _ in runners]
    heap, total = Kept(device_of(denoiser_of(pipe))), (rounds + 1) * len(runners)
    with closing(heap), reporter.task("measure latency", total) as task:
        for round_index in range(rounds + 1):
            for runner, seen in zip(runners, times, strict=True):
                result = once(pipe, runner)
                if round_index:
                    seen.append(result)
                task.advance(runner.name)
    timings = []
    for seen in times:
        pipeline, denoiser = [a for a, _ in seen], [b for _, b in seen]
        ratios = [(r[0] / t[0], r[1] / t[1]) for r, t in zip(times[0], seen, strict=True)]
        timings.append(
            Timing(
                pipeline_ms=statistics.median(pipeline),
                pipeline_spread=_spread(pipeline),
                denoiser_ms=statistics.median(denoiser),
                denoiser_spread=_spread(denoiser),
                speedup=statistics.median(a for a, _ in ratios),
                denoiser_speedup=statistics.median(b for _, b in ratios),
            )
        )
    return timings
