"""Side by side in one process, interleaved, with spread: how long contenders take and how much weight they carry."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

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
from .pairs import LEAST, Pair, SpeedupOf, Spent


class Way(Protocol):
    """A way to sample: what is timed, and judged by its images, beside others."""

    @property
    def name(self) -> str: ...

    @property
    def sampling(self) -> Sampling: ...

    @property
    def steps(self) -> int:
        """Sampler steps that it takes."""

    def of_batch(self, batch: int) -> Way:
        """The same for batches of another size."""

    def context(self, pipe: Pipeline) -> AbstractContextManager[object]:
        """Where the pipeline samples this way; as it was, afterwards."""

    def weight_bytes(self, pipe: Pipeline) -> int:
        """The most bytes of weights on the device during a trajectory."""


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

    def of_batch(self, batch: int) -> Runner:
        """The same for batches of another size."""
        return replace(self, sampling=replace(self.sampling, batch=batch))

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

    Speed-ups are medians of the ratios to dense runs next to them; the interval is the median's, of at least nine in
    ten, from the order of these ratios. ``doubt`` says why the speed-up is not to be believed; empty where it is.
    """

    pipeline_ms: float
    pipeline_spread: float
    denoiser_ms: float
    denoiser_spread: float
    speedup: float
    speedup_low: float | None  # None: of too few runs for an interval
    speedup_high: float | None
    denoiser_speedup: float
    pairs: int
    doubt: str


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


def once(pipe: Pipeline, runner: Way) -> Spent:
    """A run of the whole pipeline, decoder included, and of its denoiser calls, weight switches included."""
    denoiser = denoiser_of(pipe)
    probes = make_probes(pipe, runner.sampling.batch, 0, "timing")
    with runner.context(pipe):
        watch = _Stopwatch(denoiser, device_of(denoiser))
        began, worked = time.perf_counter(), time.process_time()
        decode(pipe, sample(pipe, probes, runner.sampling))  # ends with images on the CPU: nothing is pending
        total, worked = time.perf_counter() - began, time.process_time() - worked
        return Spent(total * 1000, watch.stop() * 1000, worked * 1000)


def measure(
    pipe: Pipeline, runners: Sequence[Way], rounds: int, reporter: Reporter, macs: Sequence[float] | None = None
) -> list[Timing]:
    """Time runners side by side, after one round of warming up; the first one is the reference.

    Each is run once a round, in an order that rotates, right before or after a run of the reference. There are more
    rounds, up to three times as many, until the intervals of all speed-ups are narrow, while they take no longer than
    two minutes.

    Args:
        rounds: the least number of them, and all of them where they are too few for an interval.
        macs: of each runner, relative to the first: what it saves can be no more than that.
    """
    shares: Sequence[float | None] = macs or [None] * len(runners)
    heap, began, pairs = Kept(device_of(denoiser_of(pipe))), time.monotonic(), [list[Pair]() for _ in runners]
    most = rounds * _MORE if rounds >= LEAST else rounds
    runs = len(runners) + len(runners) // 2  # in a round
    with closing(heap), reporter.task("measure latency", (rounds + 1) * runs) as task:
        for turn in range(most + 1):
            if turn > rounds and (
                time.monotonic() - began > _SECONDS or all(SpeedupOf(one).narrow for one in pairs[1:])
            ):
                break
            for index, pair in _round(pipe, runners, turn, task.advance):
                if turn:
                    pairs[index].append(pair)
    reference = [(dense, dense) for of_runner in pairs for dense, _ in of_runner]
    others = [_timing(of_runner, share) for of_runner, share in zip(pairs[1:], shares[1:], strict=True)]
    return [replace(_timing(reference, None), doubt=""), *others]


_MORE, _SECONDS = 3, 120.0
"""Times the rounds that there may be of them, and how long for."""


def _round(
    pipe: Pipeline, runners: Sequence[Way], turn: int, advance: Callable[[str], None]
) -> Iterator[tuple[int, Pair]]:
    """The number of each runner but the first, once, with the reference's run next to its own, and that."""

    def run(index: int) -> Spent:
        spent = once(pipe, runners[index])
        advance(runners[index].name)
        return spent

    others, dense = deque(range(1, len(runners))), run(0)
    others.rotate(-turn)
    if not others:
        yield 0, (dense, dense)
    while others:
        first = others.popleft()
        yield first, (dense, run(first))
        if others:
            second = others.popleft()
            own, dense = run(second), run(0)
            yield second, (dense, own)


def _timing(pairs: Sequence[Pair], macs: float | None) -> Timing:
    found = SpeedupOf(pairs)
    low, high = found.interval or (None, None)
    pipeline, denoiser = [own.pipeline for _, own in found.pairs], [own.denoiser for _, own in found.pairs]
    return Timing(
        pipeline_ms=statistics.median(pipeline),
        pipeline_spread=_spread(pipeline),
        denoiser_ms=statistics.median(denoiser),
        denoiser_spread=_spread(denoiser),
        speedup=found.middle,
        speedup_low=low,
        speedup_high=high,
        denoiser_speedup=statistics.median(dense.denoiser / own.denoiser for dense, own in found.pairs),
        pairs=len(found.pairs),
        doubt="; ".join(found.doubts(macs)),
    )


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2
