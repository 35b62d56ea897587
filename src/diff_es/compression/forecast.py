"""What a search will take, before it begins: time by phase, memory, disk, and the size of its result."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import nn

from ..layers import Layer, as_matrix
from ..pipelines.denoiser import device_of
from ..pipelines.families import Pipeline
from ..pipelines.sampling import denoiser_of
from ..pruning.granularity import Thin, Width, counts_by_layer
from ..pruning.method import title_of
from ..pruning.moments import Moments
from ..routing.realise import output_of, weight_of
from ..scoring.speed import Speed, measured_speed
from ..search import NoneFits
from ..utils.errors import DiffESError
from ..utils.malloc import give_back
from ..utils.memory import free_memory, held_memory, peak_memory
from ..utils.progress import Course, Reporter, duration
from .settings import Levers
from .simulation import Work, simulate
from .study import room_for, wanted_of, weights_of
from .survey import Survey

_MEASURED, _GROWTH = 2048, 2.4
"""Columns of the largest layer that is ranked and solved to see how long it takes; the power that larger ones go by,
where matrices are inverted."""
_MATRICES = 6
"""Of second moments in double precision, that ranking and solving a layer hold at once, gaps of the heap counted."""


@dataclass(frozen=True)
class Forecast:
    """Seconds by phase, and by the names of the tasks that show how far they are; bytes at their most in memory, with
    what the process holds already, and of what waits on disk meanwhile; bytes of a result at one level in all stages,
    and how often calibration repeats its runs to keep within the limit of memory."""

    phases: dict[str, float]
    tasks: dict[str, float]
    memory: int
    disk: int
    result: int
    passes: int
    work: Work
    speed: Speed

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    def advice(self) -> dict[str, str]:
        """What would shrink each of the figures."""
        longest = max(self.phases, key=lambda name: self.phases[name])
        remedies = {
            "calibrate": "--calibration-samples, --memory (fewer passes)",
            "rank and compensate": "--ranking wanda, --stages, --shared-order",
            "sensitivity": "--sensitivity-noises, --units kind, --table of an earlier result",
            "search": "--search-noises, --generations, --population, --levers prune or steps",
            "final": "--held-out-noises, --finalists",
        }
        return {
            f"time, most of it to {longest}": remedies.get(longest, "--steps"),
            "memory": "--memory (statistics and weights of levels wait on disk), --ranking wanda --no-compensate",
            "disk": "--stages, --shared-order, or a TMPDIR with room",
            "result": "--stages, --placement compact",
        }

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        figures = {"memory": self.memory, "disk": self.disk, "result": self.result, "passes": self.passes}
        return {"seconds": self.seconds, "phases": self.phases, **figures}


def check_room(surveyed: Survey, found: Forecast) -> None:
    """Refuse what the machine has no room for.

    Raises:
        DiffESError: it takes more memory, or more of the temporary folder's disk, than is free.
    """
    device = device_of(denoiser_of(surveyed.pipe))
    free = free_memory(device) + held_memory(device)
    _check("memory", found.memory, free, "Set less with --memory (Run.memory): more then waits on disk.")
    disk, remedy = (
        shutil.disk_usage(tempfile.gettempdir()).free,
        "Let TMPDIR name a folder with room, or give --memory.",
    )
    _check(f"disk of {tempfile.gettempdir()}", found.disk, disk, remedy)


def _check(where: str, needed: int, free: int, remedy: str) -> None:
    if needed > free:
        expected, found = f"{needed / 1e9:.1f} GB, by the forecast", f"{free / 1e9:.1f} GB"
        raise DiffESError(where, expected=expected, found=found, remedy=remedy)


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


def forecast_of(surveyed: Survey, machine: Machine, memory: int | None = None, *, table: bool = False) -> Forecast:
    """What a search takes of a model that is surveyed: from timed calls, and from going through it with made-up scores.

    Args:
        memory: as :func:`study` takes it.
        table: whether the sensitivities are known.
    """
    pipe, settings, stages = surveyed.pipe, surveyed.settings, len(surveyed.stages)
    room = room_for(pipe, memory)
    work = simulate(surveyed, room, table=table)
    speed, solving, summing = machine.speed, machine.solving, machine.summing
    dense = surveyed.counter.dense()
    phases = {"look at the reference": speed.seconds(work.reference, dense)}
    if settings.levers is not Levers.STEPS:
        sums = summing * work.calibration.calls / max(1, work.passes)  # each matrix is summed in one of the passes
        phases["calibrate"] = speed.seconds(work.calibration, dense) + sums
        phases[title_of(settings.method)] = solving * (stages if settings.method.stagewise else 1)
    tasks = {**phases, **{name: speed.seconds(one, dense) for name, one in work.tasks.items()}}
    phases["sensitivity"] = speed.seconds(work.sensitivity, dense)
    phases["search"] = speed.seconds(work.search, dense)
    phases["final"] = speed.seconds(work.final, dense)
    statistics, levels, largest = sizes(surveyed)
    spilled = work.passes > 1
    held = 0 if spilled else statistics
    weights = weights_of(room)
    peak = max(room if spilled else statistics, held + min(levels, weights) + largest)
    laid_out = sum(phase.laid_out for phase in (work.sensitivity, work.search, work.final))
    running = max(_in_use(surveyed), min(laid_out, weights))
    searching = held + min(levels, weights) + running + work.kept
    return Forecast(
        phases,
        tasks,
        memory=machine.held + machine.working + max(peak, searching),
        disk=(statistics if spilled else 0) + max(0, levels - weights),
        result=_result(surveyed),
        passes=work.passes,
        work=work,
        speed=speed,
    )


def foretold(surveyed: Survey, reporter: Reporter, memory: int | None = None, *, table: bool = False) -> Forecast:
    """:func:`forecast_of` this machine; raises as :func:`check_room` does."""
    with reporter.task("forecast", 2) as task:
        machine = machine_of(surveyed)
        task.advance()
        found = forecast_of(surveyed, machine, memory, table=table)
        task.advance()
    check_room(surveyed, found)
    return found


def announced(surveyed: Survey, reporter: Reporter, memory: int | None = None, *, table: bool = False) -> Forecast:
    """The same, said, and followed from now on: beside each task stands how long all of them still take."""
    found = foretold(surveyed, reporter, memory, table=table)
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.phases.items())
    reporter.say(f"Forecast: {duration(found.seconds)} ({parts}); {found.memory / 1e9:.1f} GB of memory at the most.")
    reporter.follow(Course(found.tasks))
    return found


def compared(found: Forecast, seconds: float, denoiser: nn.Module, reporter: Reporter) -> None:
    """Say what it took, beside what was foretold."""
    peak = peak_memory(device_of(denoiser)) / 1e9
    held = f", and {peak:.1f} GB of memory at the most, of {found.memory / 1e9:.1f}" if peak else ""
    reporter.say(f"It took {duration(seconds)}, of {duration(found.seconds)} foretold{held}.")


def _counts(surveyed: Survey) -> Iterator[tuple[Layer, list[int]]]:
    """Each layer with the numbers of groups that its levels leave, most first."""
    counts = counts_by_layer(surveyed.units)
    for layer in surveyed.anatomy.layers:
        found = sorted(counts.get(layer.name, ()), reverse=True)
        yield layer, [count for count in found if count < layer.groups]


def sizes(surveyed: Survey) -> tuple[int, int, int]:
    """Bytes of all statistics, of all re-solved weights, and of what the largest layer takes while it is solved."""
    if surveyed.settings.levers is Levers.STEPS:
        return 0, 0, 0
    method, sets = surveyed.settings.method, len(surveyed.stages)
    statistics = sets * sum(wanted_of(surveyed).sizes().values())
    sets = sets if method.stagewise else 1
    levels, largest = 0, 0
    for layer, counts in _counts(surveyed):
        weight = weight_of(output_of(denoiser_of(surveyed.pipe), layer), layer)
        solved = 0 if method.compensation is None else sum(counts) / layer.groups  # in parts of the weight
        levels += sets * int(solved * weight.nbytes)
        matrices = 0 if method.squares else _MATRICES * layer.size**2
        doubles = matrices + (3 + solved) * layer.size * len(weight)
        largest = max(largest, int(8 * doubles + solved * weight.nbytes))
    return statistics, levels, largest


def _in_use(surveyed: Survey) -> int:
    """Bytes of the weights that are laid out to run, the most of one stage."""
    sizes = [[surveyed.copied_bytes(unit, level) for level in range(1, len(unit.options))] for unit in surveyed.units]
    return sum(max(row, default=0) for row in sizes)


def _result(surveyed: Survey) -> int:
    """Bytes of the re-solved weights of a schedule that prunes all alike, as far as the budget asks for it."""
    if surveyed.settings.levers is Levers.STEPS or surveyed.settings.method.compensation is None:
        return 0
    with suppress(NoneFits):
        levels, total = surveyed.costs.space(surveyed.limit).uniform().levels[0], 0
        for unit, level in zip(surveyed.units, levels, strict=True):
            option = unit.options[level]
            for layer, kept in zip(unit.layers, option.kept, strict=True) if isinstance(option, Thin) else ():
                weight = weight_of(output_of(denoiser_of(surveyed.pipe), layer), layer)
                total += weight.nbytes * kept // layer.groups if kept < layer.groups else 0
        return len(surveyed.stages) * total
    return 0


def _algebra(surveyed: Survey) -> tuple[float, float]:
    """Seconds as ``Machine`` has them."""
    method, pipe = surveyed.settings.method, surveyed.pipe
    if surveyed.settings.levers is Levers.STEPS or not isinstance(method.ladder, Width):
        return 0.0, 0.0

    growth = 1.0 if method.squares else _GROWTH

    @cache
    def solved(columns: int, rows: int, width: int, shares: tuple[float, ...]) -> float:
        size = min(columns, max(width, _MEASURED // width * width))
        moments, weight = _moments(pipe, size), torch.randn(rows, size, device=device_of(denoiser_of(pipe)))
        began = time.perf_counter()
        order = method.ranking.order(weight, moments, width)
        if method.compensation is not None:
            along = order.repeat_interleave(width) * width + torch.arange(width, device=order.device).repeat(len(order))
            counts = [max(1, round(share * size / width)) * width for share in shares]
            method.compensation.solve(weight, None, moments, along, counts)
        return float((time.perf_counter() - began) * (columns / size) ** growth)

    solving, products = 0.0, 0
    for layer, counts in _counts(surveyed):
        rows = len(as_matrix(weight_of(output_of(denoiser_of(pipe), layer), layer)))
        solving += solved(layer.size, rows, layer.width, tuple(count / layer.groups for count in counts))
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
