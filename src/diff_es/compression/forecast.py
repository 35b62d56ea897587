"""What a search will take, before it begins: time by phase, memory, disk, and the size of its result."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from ..pipelines.denoiser import device_of
from ..pipelines.sampling import denoiser_of
from ..pruning.granularity import Thin
from ..pruning.method import title_of
from ..routing.realise import output_of, weight_of
from ..scoring.speed import Speed
from ..search import NoneFits
from ..utils.errors import DiffESError
from ..utils.memory import free_memory, held_memory, peak_memory
from ..utils.progress import Course, Reporter, duration
from .machine import Machine, machine_of, thinned_counts
from .settings import Levers
from .simulation import Work, simulate
from .study import room_for, wanted_of, weights_of
from .survey import Survey

_MATRICES = 6
"""Of second moments in double precision, that ranking and solving a layer hold at once, gaps of the heap counted."""


@dataclass(frozen=True)
class Forecast:
    """Seconds by phase, and by the names of the tasks that show how far they are, after each of their units; bytes at
    their most in memory, with what the process holds already, and of what waits on disk meanwhile; bytes of a result at
    one level in all stages, and how often calibration repeats its runs to keep within the limit of memory."""

    phases: dict[str, float]
    tasks: dict[str, tuple[float, ...]]
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


def forecast_of(surveyed: Survey, machine: Machine, memory: int | None = None, *, table: bool = False) -> Forecast:
    """What a search takes of a model that is surveyed: from timed calls, and from going through it with made-up scores.

    Args:
        memory: as :func:`study` takes it.
        table: whether the sensitivities are known.
    """
    pipe, settings, stages = surveyed.pipe, surveyed.settings, len(surveyed.stages)
    room = room_for(pipe, memory)
    work = simulate(surveyed, room, table=table)
    speed, dense, spilled = machine.speed, surveyed.counter.dense(), work.passes > 1
    (statistics, levels, largest), weights = sizes(surveyed), weights_of(room)
    waiting, far = statistics if spilled else 0, max(0, levels - weights)
    phases = {"look at the reference": speed.seconds(work.reference, dense)}
    if settings.levers is not Levers.STEPS:
        # each matrix is summed in one of the passes
        sums = machine.summing * work.calibration.calls / max(1, work.passes)
        solving = machine.solving * (stages if settings.method.stagewise else 1)
        phases["calibrate"] = speed.seconds(work.calibration, dense) + sums + speed.write * waiting
        phases[title_of(settings.method)] = solving + speed.read * waiting + speed.write * far
    tasks = {name: tuple(speed.seconds(one, dense) for one in after) for name, after in work.tasks.items()}
    tasks |= {name: (seconds,) for name, seconds in phases.items()}
    phases["sensitivity"] = speed.seconds(work.sensitivity, dense)
    phases["search"] = speed.seconds(work.search, dense)
    phases["final"] = speed.seconds(work.final, dense)
    held = statistics - waiting
    peak = max(room if spilled else statistics, held + min(levels, weights) + largest)
    laid_out = sum(phase.laid_out for phase in (work.sensitivity, work.search, work.final))
    running = max(_in_use(surveyed), min(laid_out, weights))
    searching = held + min(levels, weights) + running + work.kept
    return Forecast(
        phases,
        tasks,
        memory=machine.held + machine.working + max(peak, searching),
        disk=waiting + far,
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


def sizes(surveyed: Survey) -> tuple[int, int, int]:
    """Bytes of all statistics, of all re-solved weights, and of what the largest layer takes while it is solved."""
    if surveyed.settings.levers is Levers.STEPS:
        return 0, 0, 0
    method, sets = surveyed.settings.method, len(surveyed.stages)
    statistics = sets * sum(wanted_of(surveyed).sizes().values())
    sets = sets if method.stagewise else 1
    levels, largest = 0, 0
    for layer, counts in thinned_counts(surveyed):
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
