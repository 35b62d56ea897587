"""How long a pipeline's calls take here, from a few that are timed: what a forecast is made from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..layers import Anatomy, Plan, Weights
from ..pipelines.denoiser import device_of
from ..pipelines.encodings import Encodings, encoded_once
from ..pipelines.families import Denoiser, Pipeline, Sampling
from ..pipelines.probes import make_probes
from ..pipelines.sampling import denoiser_of, intercepted, sample
from ..pipelines.tracing import first_call
from ..pruning.granularity import Unit, bare
from ..pruning.latency import nanoseconds, paired, rounds_within
from ..pruning.macs import MacCounter
from ..routing.placements import ResidentStore
from ..routing.realise import realise
from ..routing.routing import Routing, attached
from ..routing.switch import Content, Switch
from ..solvers.custom_timesteps import stepped
from ..trajectory.stages import Stages
from ..trajectory.timesteps import Timesteps
from ..utils.calls import Args, Kwargs
from ..utils.malloc import Kept
from ..utils.spill import Spill
from .fidelity import Measure
from .imagined import Tally

_ROUNDS, _SECONDS = 3, 1.0
"""Calls of each kind that are timed, and up to five times as many within the seconds."""
_WAITING = 1 << 24
"""Bytes that are written to disk and read, to see how long it takes."""


@dataclass(frozen=True)
class Speed:
    """Of a pipeline on its device, in seconds.

    A dense denoiser call takes ``call`` and ``sample`` for each of its samples, of which pruning leaves ``fixed_call``
    and ``fixed_sample`` at the least, were no MACs left. A step of the routed pipeline takes ``step`` besides, weights
    that are laid out ``unit`` for each unit and ``byte`` for each byte, and a result that is compared ``look``,
    decoding included where images are. A byte that waits on disk takes ``write``, and ``read`` each time that it is
    asked for.
    """

    call: float
    sample: float
    fixed_call: float
    fixed_sample: float
    step: float
    unit: float
    byte: float
    look: float
    write: float
    read: float

    def seconds(self, work: Tally, dense: int) -> float:
        """How long some work takes, where a dense call of one sample computes ``dense`` MACs."""
        spent = work.macs / max(1, work.calls * dense)
        dense_calls = self.call * work.batches + self.sample * work.calls
        fixed = self.fixed_call * work.batches + self.fixed_sample * work.calls
        calls = fixed + (dense_calls - fixed) * spent
        weights = self.unit * work.units + self.byte * work.laid_out + self.read * work.read
        return calls + self.step * work.batches + weights + self.look * work.compared


@torch.no_grad()
def measured_speed(
    pipe: Pipeline,
    counter: MacCounter,
    units: Sequence[Unit],
    sampling: Sampling,
    stages: Stages,
    measure: Measure,
    chosen: Timesteps | None = None,
) -> Speed:
    """Time a dense call and one with all units at their middle levels, in turn, of a batch and of one sample, and a run
    as a search makes it whose calls answer at once: routed, and with timesteps of its own where these are ``chosen``;
    and what ``measure`` takes to compare its results.

    The pipeline is as it was afterwards.
    """
    denoiser, device = denoiser_of(pipe), device_of(denoiser_of(pipe))
    plan, parts, saved = Plan(), list[Plan](), 0
    for unit in units:
        level = len(unit.options) // 2
        parts.append(own := bare(counter.anatomy, [unit], level))
        plan = Plan({**plan.cuts, **own.cuts}, {**plan.bypasses, **own.bypasses})
        saved += counter.dense() - counter.option(unit, level)
    switch, laid_out = Switch(denoiser), list[Weights]()
    with closing(Kept(device)):
        for _ in range(2):  # the first time memory is new, as it is only once in a search
            laid_out.clear()
            laying = nanoseconds(device, lambda: laid_out.append(realise(denoiser, counter.anatomy, plan)))
            apart = nanoseconds(device, lambda: _laid_out(switch, denoiser, counter.anatomy, parts))
        slim, (args, kwargs) = switch.prepare(laid_out[0]), first_call(pipe, sampling)
        timed, answer = partial(_timed, denoiser, switch, slim if saved else None), denoiser(*args, **kwargs)
        whole = alone = timed(args, kwargs)
        if sampling.batch > 1:
            alone = timed(*first_call(pipe, replace(sampling, batch=1)))
        store = ResidentStore(denoiser, laid_out * len(stages))
        step, latents = _idle(pipe, sampling, answer, Routing(denoiser, stages, lambda: store), chosen)
        look = _look(pipe, measure, latents)
    share = saved / counter.dense()
    dense, pruned = (_parts(many, one, sampling.batch) for many, one in zip(whole, alone, strict=True))
    fixed_call, fixed_sample = (_fixed(own, left, share) for own, left in zip(dense, pruned, strict=True))
    byte, each = laying / 1e9 / max(1, laid_out[0].bytes), max(0.0, apart - laying) / 1e9 / max(1, len(parts))
    return Speed(*dense, fixed_call, fixed_sample, step, each, byte, look, *_waiting(device))


def _laid_out(switch: Switch, denoiser: Denoiser, anatomy: Anatomy, plans: Sequence[Plan]) -> None:
    """One plan after the other, as those of units are in a search."""
    for plan in plans:
        switch.prepare(realise(denoiser, anatomy, plan))


def _timed(denoiser: Denoiser, switch: Switch, slim: Content | None, args: Args, kwargs: Kwargs) -> tuple[float, float]:
    """Seconds of a call, dense and with slim weights if there are any."""
    device, seen = device_of(denoiser), list[float]()
    denoiser(*args, **kwargs)

    def dense() -> float:
        switch.put({})
        seen.append(nanoseconds(device, lambda: denoiser(*args, **kwargs)))
        return seen[-1]

    def pruned() -> float:
        switch.put(slim or {})
        return nanoseconds(device, lambda: denoiser(*args, **kwargs))

    try:
        ratio = 1.0 if slim is None else statistics.median(paired(dense, pruned, _ROUNDS, _SECONDS))
    finally:
        switch.put({})
    if not seen:
        seen = [dense() for _ in rounds_within(_ROUNDS, _SECONDS)]
    own = statistics.median(seen) / 1e9
    return own, own * ratio


def _fixed(own: float, left: float, share: float) -> float:
    """What stays of some time were all MACs gone, if ``left`` stays where a share of them is."""
    return max(0.0, own - (own - left) / share) if left < own else own


def _parts(many: float, one: float, batch: int) -> tuple[float, float]:
    """What calls of a batch and of one sample take, as a part of each call and one of each of its samples."""
    each = many / batch
    if batch > 1:
        each = min(each, (many - min(many, one)) / (batch - 1))  # more than that were noise
    return many - each * batch, each


def _look(pipe: Pipeline, measure: Measure, latents: Tensor) -> float:
    """Seconds of a result that is compared, one of a batch."""
    device, reference = device_of(denoiser_of(pipe)), measure.view(pipe, latents)
    taken = [nanoseconds(device, lambda: measure.closeness(reference, measure.view(pipe, latents))) for _ in range(2)]
    return min(taken) / 1e9 / len(latents)


def _waiting(device: torch.device) -> tuple[float, float]:
    """Seconds of a byte that is left on disk, and of one that is read again."""
    spill, data = Spill(), torch.ones(_WAITING, dtype=torch.uint8, device=device)
    put = [nanoseconds(device, lambda: spill.put("data", data)) for _ in range(_ROUNDS)]
    got = [nanoseconds(device, lambda: spill.get("data").to(device)) for _ in range(_ROUNDS)]
    written, read = (statistics.median(times) / 1e9 / _WAITING for times in (put, got))
    return written, read


def _idle(
    pipe: Pipeline, sampling: Sampling, answer: object, routing: Routing, chosen: Timesteps | None
) -> tuple[float, Tensor]:
    """Seconds of a step whose denoiser call gives ``answer`` at once; and what comes out of it."""
    denoiser, steps, encodings, latents = denoiser_of(pipe), 0, Encodings(), torch.empty(0)
    probes, device = make_probes(pipe, sampling.batch, 0, "timing"), device_of(denoiser)

    def at_once(*args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        return answer

    def run() -> None:
        nonlocal latents
        with ExitStack() as stack:
            if chosen is not None:
                stack.enter_context(stepped(pipe, chosen, sampling.steps))
            stack.enter_context(attached(routing))
            stack.enter_context(intercepted(denoiser, lambda _: at_once))
            stack.enter_context(encoded_once(pipe, encodings))
            latents = sample(pipe, probes, sampling)

    idle = min(nanoseconds(device, run) for _ in range(_ROUNDS))
    return idle / 1e9 / (steps / _ROUNDS), latents
