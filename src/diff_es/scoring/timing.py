"""Side by side in one process, interleaved, with spread: how long contenders take and how much weight they carry."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

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


@dataclass(frozen=True)
class Spent:
    """What one run took."""

    pipeline: float  # ms
    denoiser: float  # ms
    processor: float  # ms of processors, of all threads of the process

    @property
    def busy(self) -> float:
        """Processors at a time."""
        return self.processor / self.pipeline


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


Pair: TypeAlias = tuple[Spent, Spent]
"""A run of the reference, and one of a runner right before or after it."""


def once(pipe: Pipeline, runner: Runner) -> Spent:
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
    pipe: Pipeline, runners: Sequence[Runner], rounds: int, reporter: Reporter, macs: Sequence[float] | None = None
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
    most = rounds * _MORE if rounds >= _LEAST else rounds
    runs = len(runners) + len(runners) // 2  # in a round
    with closing(heap), reporter.task("measure latency", (rounds + 1) * runs) as task:
        for turn in range(most + 1):
            if turn > rounds and (time.monotonic() - began > _SECONDS or all(map(_narrow, pairs[1:]))):
                break
            for index, pair in _round(pipe, runners, turn, task.advance):
                if turn:
                    pairs[index].append(pair)
    reference = [(dense, dense) for of_runner in pairs for dense, _ in of_runner]
    others = [_timing(of_runner, share) for of_runner, share in zip(pairs[1:], shares[1:], strict=True)]
    return [replace(_timing(reference, None), doubt=""), *others]


_LEAST, _MORE, _SECONDS, _WIDE = 5, 3, 120.0, 0.1
"""Pairs that an interval takes; times the rounds that there may be of them; how long for; how far a speed-up may be
off, relative to itself."""
_DISTURBED = 1.25
"""Times by which a run has fewer processors than others of its kind where something else is at work."""


def _round(
    pipe: Pipeline, runners: Sequence[Runner], turn: int, advance: Callable[[str], None]
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


def _undisturbed(pairs: Sequence[Pair]) -> list[Pair]:
    """Those of which neither run had fewer processors than others of its kind."""
    most = [max(one.busy for one in kind) for kind in zip(*pairs, strict=True)]
    return [pair for pair in pairs if all(one.busy * _DISTURBED >= best for one, best in zip(pair, most, strict=True))]


def _ratios(pairs: Sequence[Pair]) -> list[float]:
    return sorted(dense.pipeline / own.pipeline for dense, own in pairs)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """What holds the median of what values are drawn from, in nine of ten cases: from one of them, sorted, to another,
    by the binomial distribution of how many lie below it. Of fewer than five there is none."""
    count, outside, missed = len(values), -1, 0.0
    while (missed := missed + 2 * math.comb(count, outside + 1) / 2**count) <= 0.1:
        outside += 1
    return None if outside < 0 else (values[outside], values[-1 - outside])


def _narrow(pairs: Sequence[Pair]) -> bool:
    found = interval(ratios := _ratios(_undisturbed(pairs)))
    return found is not None and found[1] - found[0] <= _WIDE * statistics.median(ratios)


def _timing(pairs: Sequence[Pair], macs: float | None) -> Timing:
    clean = _undisturbed(pairs)
    used = clean if len(clean) >= _LEAST else pairs
    ratios = _ratios(used)
    middle, found = statistics.median(ratios), interval(ratios)
    return Timing(
        pipeline_ms=statistics.median(own.pipeline for _, own in used),
        pipeline_spread=_spread([own.pipeline for _, own in used]),
        denoiser_ms=statistics.median(own.denoiser for _, own in used),
        denoiser_spread=_spread([own.denoiser for _, own in used]),
        speedup=middle,
        speedup_low=None if found is None else found[0],
        speedup_high=None if found is None else found[1],
        denoiser_speedup=statistics.median(dense.denoiser / own.denoiser for dense, own in used),
        pairs=len(used),
        doubt="; ".join(_doubts(pairs, clean, macs)),
    )


def _doubts(pairs: Sequence[Pair], clean: Sequence[Pair], macs: float | None) -> Iterator[str]:
    """Why a speed-up is not to be believed."""
    if len(clean) < _LEAST <= len(pairs):
        yield f"in {len(pairs) - len(clean)} of {len(pairs)} pairs of runs something else used the processors"
    ratios = _ratios(clean if len(clean) >= _LEAST else pairs)
    middle, found = statistics.median(ratios), interval(ratios)
    if found is None:
        yield f"{len(ratios)} pairs of runs are too few"
    elif found[1] - found[0] > _WIDE * middle:
        yield f"it lies anywhere from {found[0]:.2f} to {found[1]:.2f}"
    if macs and middle > (1 + _WIDE) / macs:
        yield f"{middle:.2f} is more than its MACs can give, {1 / macs:.2f}"


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2
