"""How long a pipeline's calls take here, from a few that are timed: what a forecast is made from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from ..layers import Plan, Weights
from ..pipelines.denoiser import device_of
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.probes import make_probes
from ..pipelines.sampling import denoiser_of, intercepted, sample
from ..pipelines.tracing import first_call
from ..pruning.granularity import Unit, bare
from ..pruning.latency import nanoseconds, paired, rounds_within
from ..pruning.macs import MacCounter
from ..routing.realise import realise
from ..routing.switch import Switch
from ..utils.malloc import Kept
from .imagined import Tally

_ROUNDS, _SECONDS = 3, 1.0
"""Calls of each kind that are timed, and up to five times as many within the seconds."""


@dataclass(frozen=True)
class Speed:
    """Of a pipeline on its device, in seconds.

    A dense denoiser call takes ``call`` and ``sample`` for each of its samples; ``fixed`` is the share of both that
    pruning leaves. A step of the pipeline takes ``step`` besides, and a byte of weights that is laid out ``byte``.
    """

    call: float
    sample: float
    fixed: float
    step: float
    byte: float

    def seconds(self, work: Tally, dense: int) -> float:
        """How long some work takes, where a dense call of one sample computes ``dense`` MACs."""
        spent = work.macs / max(1, work.calls * dense)
        calls = self.call * work.batches + self.sample * work.calls
        return calls * (self.fixed + (1 - self.fixed) * spent) + self.step * work.batches + self.byte * work.laid_out


@torch.no_grad()
def measured_speed(pipe: Pipeline, counter: MacCounter, units: Sequence[Unit], sampling: Sampling) -> Speed:
    """Time a dense call and one with all units at their middle levels, in turn, a call of one sample, and a run whose
    calls answer at once.

    The pipeline is as it was afterwards.
    """
    denoiser, device = denoiser_of(pipe), device_of(denoiser_of(pipe))
    args, kwargs = first_call(pipe, sampling)
    plan, saved = Plan(), 0
    for unit in units:
        level = len(unit.options) // 2
        own = bare(counter.anatomy, [unit], level)
        plan = Plan({**plan.cuts, **own.cuts}, {**plan.bypasses, **own.bypasses})
        saved += counter.dense() - counter.option(unit, level)
    switch, seen, laid_out = Switch(denoiser), list[float](), list[Weights]()
    with closing(Kept(device)):
        for _ in range(2):  # the first time memory is new, as it is only once in a search
            laid_out.clear()
            laying = nanoseconds(device, lambda: laid_out.append(realise(denoiser, counter.anatomy, plan)))
        slim = switch.prepare(laid_out[0])
        answer = denoiser(*args, **kwargs)

        def dense() -> float:
            switch.put({})
            seen.append(nanoseconds(device, lambda: denoiser(*args, **kwargs)))
            return seen[-1]

        def pruned() -> float:
            switch.put(slim)
            return nanoseconds(device, lambda: denoiser(*args, **kwargs))

        try:
            ratio = statistics.median(paired(dense, pruned, _ROUNDS, _SECONDS)) if saved else 1.0
        finally:
            switch.put({})
        if not seen:
            seen = [dense() for _ in rounds_within(_ROUNDS, _SECONDS)]
        whole = alone = statistics.median(seen) / 1e9
        if sampling.batch > 1:
            args, kwargs = first_call(pipe, replace(sampling, batch=1))
            denoiser(*args, **kwargs)
            seen = [dense() for _ in rounds_within(_ROUNDS, _SECONDS)]
            alone = min(whole, statistics.median(seen) / 1e9)
        step = _idle(pipe, sampling, answer)
    share = saved / counter.dense()
    fixed = 1.0 if not saved else min(1.0, max(0.0, 1 - (1 - ratio) / share))
    each = whole / sampling.batch
    if sampling.batch > 1:
        each = min(each, (whole - alone) / (sampling.batch - 1))  # more than that were noise
    byte = laying / 1e9 / max(1, laid_out[0].bytes)
    return Speed(whole - each * sampling.batch, each, fixed, step, byte)


def _idle(pipe: Pipeline, sampling: Sampling, answer: object) -> float:
    """Seconds of a step whose denoiser call gives ``answer`` at once."""
    denoiser, steps = denoiser_of(pipe), 0
    probes, device = make_probes(pipe, sampling.batch, 0, "timing"), device_of(denoiser)

    def at_once(*args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        return answer

    with intercepted(denoiser, lambda _: at_once):
        idle = min(nanoseconds(device, lambda: sample(pipe, probes, sampling)) for _ in range(_ROUNDS))
    return idle / 1e9 / (steps / _ROUNDS)
