"""What a machine takes for a model's calls, and for ranking and solving its layers: timed before a search begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch

from ..layers import Layer, as_matrix
from ..pipelines.denoiser import device_of
from ..pipelines.families import Pipeline
from ..pipelines.sampling import denoiser_of
from ..pruning.granularity import Width, counts_by_layer
from ..pruning.importance import column_powers
from ..pruning.moments import Moments
from ..routing.realise import output_of, weight_of
from ..scoring.speed import Speed, measured_speed
from ..utils.malloc import give_back
from ..utils.memory import held_memory, peak_memory
from .settings import Levers
from .survey import Survey

_MEASURED, _GROWTH = 2048, 2.4
"""Columns of the largest layer that is ranked and solved to see how long it takes; the power that larger ones go by,
where matrices are inverted."""


@dataclass(frozen=True)
class Machine:
    """What was measured of a model here: its calls; seconds to rank and solve all layers once, and to add up what they
    receive in a call of one sample; bytes that the process holds, and those that a call takes beside the weights,
    as far as it can be seen."""

    speed: Speed
    solving: float
    summing: float
    held: int = 0
    working: int = 0


def machine_of(surveyed: Survey) -> Machine:
    """Time a few calls, and the algebra of each shape of layer once."""
    device = device_of(denoiser_of(surveyed.pipe))
    held, before = held_memory(device), peak_memory(device)
    chosen = None if surveyed.path is None else surveyed.path.timesteps
    own = surveyed.pipe, surveyed.counter, surveyed.units, surveyed.settings.sampling
    speed = measured_speed(*own, surveyed.stages, surveyed.settings.measure, chosen)
    peak = peak_memory(device)
    slim = sum(surveyed.counter.slim_bytes(unit, len(unit.options) // 2)[0] for unit in surveyed.units)
    working, algebra = max(0, peak - held - slim) if peak > before else 0, _algebra(surveyed)
    give_back()
    return Machine(speed, *algebra, held_memory(device), working)


def thinned_counts(surveyed: Survey) -> Iterator[tuple[Layer, list[int]]]:
    """Each layer with the numbers of groups that its levels leave, most first."""
    counts = counts_by_layer(surveyed.units)
    for layer in surveyed.anatomy.layers:
        found = sorted(counts.get(layer.name, ()), reverse=True)
        yield layer, [count for count in found if count < layer.groups]


def _algebra(surveyed: Survey) -> tuple[float, float]:
    """Seconds as ``Machine`` has them."""
    method, pipe = surveyed.settings.method, surveyed.pipe
    if surveyed.settings.levers is Levers.STEPS or not isinstance(method.ladder, Width):
        return 0.0, 0.0

    growth = 1.0 if method.squares else _GROWTH

    @cache
    def solved(columns: int, rows: int, width: int, dtype: torch.dtype, shares: tuple[float, ...]) -> float:
        size = min(columns, max(width, _MEASURED // width * width))
        moments = _moments(pipe, size)
        weight = torch.randn(rows, size, dtype=dtype, device=device_of(denoiser_of(pipe)))
        began = time.perf_counter()
        order = method.ranking.order(weight, moments, width)
        if method.compensation is None:
            column_powers(weight, moments)
        else:
            along = order.repeat_interleave(width) * width + torch.arange(width, device=order.device).repeat(len(order))
            counts = [max(1, round(share * size / width)) * width for share in shares]
            method.compensation.solve(weight, None, moments, along, counts)
        return float((time.perf_counter() - began) * (columns / size) ** growth)

    solving, products = 0.0, 0
    for layer, counts in thinned_counts(surveyed):
        weight = as_matrix(weight_of(output_of(denoiser_of(pipe), layer), layer))
        shares = tuple(count / layer.groups for count in counts)
        solving += solved(layer.size, len(weight), layer.width, weight.dtype, shares)
        products += surveyed.counter.vectors(layer) * (1 if method.squares else layer.size) * layer.size
    return solving, products * _seconds_of_a_product(pipe)


def _moments(pipe: Pipeline, size: int) -> Moments:
    """Of vectors that mean nothing."""
    vectors = torch.randn(2 * size, size, device=device_of(denoiser_of(pipe)))
    return Moments(vectors.T @ vectors, vectors.sum(0), len(vectors))


def _seconds_of_a_product(pipe: Pipeline) -> float:
    """Of one multiplication of a sum of second moments."""
    vectors = torch.randn(1024, 1024, device=device_of(denoiser_of(pipe)))
    second, times = vectors.T @ vectors, [time.perf_counter()]
    for _ in range(5):
        second.addmm_(vectors.T, vectors)
        float(second[0, 0])
        times.append(time.perf_counter())
    return min(after - before for before, after in pairwise(times)) / 1024**3
