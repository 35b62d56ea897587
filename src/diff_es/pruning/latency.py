"""Which pruned layers would run slower than dense ones on this device: measured, layer by layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from ..layers import Anatomy, Cut, Layer, Plan
from ..pipelines.denoiser import device_of, dtype_of
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.sampling import denoiser_of
from ..pipelines.tracing import first_call
from ..routing.realise import fed_by, realise
from ..routing.switch import Content, Switch
from ..utils.calls import Args, Kwargs
from ..utils.malloc import Kept
from ..utils.progress import Reporter
from .granularity import Unit, Width, bare

_SLOWER = 1.1
"""The median ratio to dense from which a pruned layer counts as slower; in three rounds of four it has to be."""


@dataclass(frozen=True)
class LayerTime:
    """How long the layers of one shape take, relative to dense; ``layers`` are all of that shape."""

    layers: tuple[str, ...]
    kept: tuple[int, ...]  # by level
    ratios: tuple[float, ...]  # by level: median time over the dense layer's in the same round
    slower: tuple[bool, ...]  # by level


def time_layers(
    pipe: Pipeline, anatomy: Anatomy, ladder: Width, sampling: Sampling, reporter: Reporter
) -> tuple[LayerTime, ...]:
    """Time every shape of layer at every level, interleaved with the dense one, on inputs of a real call.

    The weights' values do not matter, and the denoiser is as it was afterwards.
    """
    denoiser = denoiser_of(pipe)
    classes = dict[Any, list[Layer]]()
    inputs = _inputs(pipe, anatomy, sampling)
    for layer in anatomy.layers:
        if layer.follows is not None:  # timed with the layer that it follows
            continue
        shapes = [parameter.shape for one in anatomy.family(layer) for _, _, parameter in fed_by(denoiser, one)]
        key = (layer.kind, layer.groups, layer.width, tuple(shapes), inputs[layer.name].shapes)
        classes.setdefault(key, []).append(layer)
    times = list[LayerTime]()
    with closing(Kept(device_of(denoiser))), reporter.task("time layers", len(classes) * (ladder.levels - 1)) as task:
        for layers in classes.values():
            first, kept = layers[0], [ladder.kept(layers[0], level) for level in range(ladder.levels)]
            ratios, slower = [1.0], [False]
            for count in kept[1:]:
                seen = _ratios(denoiser, anatomy, first, count, inputs[first.name]) if count < first.groups else [1.0]
                ratios.append(statistics.median(seen))
                slower.append(ratios[-1] >= _SLOWER and sorted(seen)[len(seen) // 4] > 1)
                task.advance()
            names = tuple(layer.name for layer in layers)
            times.append(LayerTime(names, tuple(kept), tuple(ratios), tuple(slower)))
    return tuple(times)


@torch.no_grad()
def time_calls(
    pipe: Pipeline, anatomy: Anatomy, unit: Unit, sampling: Sampling, reporter: Reporter
) -> tuple[float, ...]:
    """Nanoseconds of a denoiser call of a batch at each level of a unit: the median of its ratios to the dense one, of
    the median of that. The denoiser is as it was afterwards."""
    denoiser = denoiser_of(pipe)
    args, kwargs = first_call(pipe, sampling)
    run, device = partial(denoiser, *args, **kwargs), device_of(denoiser)
    ratios, levels = [1.0], range(1, len(unit.options))
    with closing(Kept(device)), reporter.task("time calls", len(levels)) as task:
        for level in levels:
            plan = bare(anatomy, [unit], level)
            ratios.append(statistics.median(plan_ratios(denoiser, anatomy, plan, run, 7, 0.5)))
            task.advance()
        dense = statistics.median(nanoseconds(device, run) for _ in range(7))
    return tuple(dense * ratio for ratio in ratios)


def slower_layers(times: Sequence[LayerTime]) -> tuple[tuple[str, int], ...]:
    """The (layer, level) pairs that pruning would slow down."""
    return tuple(
        (name, level) for shape in times for name in shape.layers for level, slow in enumerate(shape.slower) if slow
    )


def hardware_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """What channel counts are best a multiple of: the tiles of a GPU's matrix units, or a CPU's vectors."""
    if device.type == "cuda":
        return 64 if dtype.itemsize <= 2 else 32
    return 16


@dataclass(frozen=True)
class _Call:
    """Of a module, with what it receives."""

    module: nn.Module
    args: Args
    kwargs: Kwargs

    def __call__(self) -> object:
        return self.module(*self.args, **self.kwargs)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        values = (*self.args, *self.kwargs.values())
        return tuple(value.shape for value in values if isinstance(value, torch.Tensor))


@torch.no_grad()
def _inputs(pipe: Pipeline, anatomy: Anatomy, sampling: Sampling) -> dict[str, _Call]:
    """By layer: the call of the smallest module around it that the first denoiser call of a batch makes. Some modules
    are never called, such as lists."""
    denoiser, seen = denoiser_of(pipe), dict[str, _Call]()
    args, kwargs = first_call(pipe, sampling)

    def keep(name: str, module: nn.Module, given: Args, named: Kwargs) -> None:
        seen[name] = _Call(module, given, named)  # after those around it, in whose place it comes

    with ExitStack() as stack:
        for layer in anatomy.layers:
            for around in accumulate(["", *layer.home.split(".")], lambda above, own: f"{above}.{own}".strip(".")):
                hook, module = partial(keep, layer.name), denoiser.get_submodule(around)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        with torch.compiler.set_stance("force_eager"):  # compiled code would trace the hooks
            denoiser(*args, **kwargs)
    return seen


@torch.no_grad()
def _ratios(denoiser: nn.Module, anatomy: Anatomy, layer: Layer, count: int, call: _Call) -> list[float]:
    """Time with ``count`` groups over the dense time, round by round: the faster a layer, the more rounds."""
    plan = Plan({one.name: Cut(torch.arange(count)) for one in anatomy.family(layer)})
    return plan_ratios(denoiser, anatomy, plan, call, 10, 0.05)[2:]  # the first rounds warm up


def plan_ratios(
    denoiser: nn.Module, anatomy: Anatomy, plan: Plan, run: Callable[[], object], rounds: int, seconds: float
) -> list[float]:
    """How long ``run()`` takes with a plan in place over what it takes dense, timed in turn as :func:`paired` says; the
    weights are as they were afterwards."""
    switch, device = Switch(denoiser), device_of(denoiser)
    slim = switch.prepare(realise(denoiser, anatomy, plan))

    def once(content: Content) -> float:
        switch.put(content)
        return nanoseconds(device, run)

    try:
        return paired(lambda: once({}), lambda: once(slim), rounds, seconds)
    finally:
        switch.put({})


def paired(dense: Callable[[], float], slim: Callable[[], float], rounds: int, seconds: float) -> list[float]:
    """Slim times over dense ones, timed in turn: of as many pairs as :func:`rounds_within` says."""
    ratios = list[float]()
    for _ in rounds_within(rounds, seconds):
        before = dense()
        ratios.append(slim() / before)
    return ratios


def rounds_within(rounds: int, seconds: float) -> Iterator[int]:
    """So many, and up to five times as many within the seconds."""
    began = time.perf_counter()
    for done in range(5 * rounds):
        if done >= rounds and time.perf_counter() - began >= seconds:
            return
        yield done


def nanoseconds(device: torch.device, run: Callable[[], object]) -> float:
    """How long ``run()`` takes, with all that it leaves to the device."""
    finished(device)
    began = time.perf_counter_ns()
    run()
    finished(device)
    return time.perf_counter_ns() - began


def finished(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitted(pipe: Pipeline, ladder: Width, anatomy: Anatomy, sampling: Sampling, reporter: Reporter) -> Width:
    """A ladder whose widths suit the device: channel counts that it likes, and no layer slower than dense."""
    denoiser = denoiser_of(pipe)
    ladder = replace(ladder, multiple=ladder.multiple or hardware_multiple(device_of(denoiser), dtype_of(denoiser)))
    if ladder.dense is not None:
        return ladder
    return replace(ladder, dense=slower_layers(time_layers(pipe, anatomy, ladder, sampling, reporter)))
