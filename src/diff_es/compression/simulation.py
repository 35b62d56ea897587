"""A search without a model's arithmetic: how much of it there would be, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from ..execution import Crew
from ..pipelines.probes import Probe
from ..pipelines.sampling import denoiser_of
from ..pruning.library import Library
from ..pruning.statistics import Statistics
from ..pruning.wanted import Part, parts_within
from ..scoring.fidelity import LatentSNR
from ..scoring.fitness import Comparison, Fitness
from ..scoring.imagined import Imagined, ImaginedWeights, Tally
from ..scoring.journal import Journal
from ..utils.progress import Reporter, Task
from .evaluator import Evaluator
from .evolve import evolve
from .sensitivity import sensitivity
from .settings import Levers
from .study import Study, room_for, wanted_of, weights_of
from .survey import Survey


@dataclass(frozen=True)
class Work:
    """What a search runs, by phase, and its part behind calibration by the names of its tasks as well, up to each of
    their units; ``passes`` are the times that calibration repeats its runs, ``kept`` the bytes of known steps in the
    end."""

    reference: Tally  # of the one sample that is looked at before anything else
    calibration: Tally
    sensitivity: Tally
    search: Tally
    final: Tally
    passes: int
    kept: int
    tasks: Mapping[str, Sequence[Tally]]

    @property
    def macs(self) -> int:
        """Of the denoiser, in all."""
        phases = (self.reference, self.calibration, self.sensitivity, self.search, self.final)
        return sum(phase.macs for phase in phases)


@dataclass(frozen=True)
class _Imagination(Study):
    """A study without statistics whose scores are made up and whose calls are counted."""

    tally: Tally
    weight_bytes: int  # of weights that are laid out

    @cached_property
    def _weights(self) -> ImaginedWeights:
        def size(unit: int, level: int) -> tuple[int, int]:
            total, _ = self.counter.slim_bytes(self.units[unit], level)
            return total, self.copied_bytes(self.units[unit], level)

        return ImaginedWeights(self.pipe, self.library, self.weight_bytes, self.tally, size, len(self.stages))

    def left(self, stage: int, unit: int, level: int) -> float:
        """Made up, as the scores are."""
        return float(level)

    def _fitness(self, probes: Sequence[Probe], comparison: Comparison) -> Fitness:
        settings, each = self.settings, 1 if self.path is None else self.trace.calls
        comparison = replace(comparison, corrections=self.directions, known=self.known)
        own = (self.pipe, self.library, self.stages, probes, settings.sampling, settings.measure)

        def macs(levels: Sequence[int]) -> int:
            return self.macs.call(levels) // each

        return Imagined(
            *own, comparison, self._weights, tally=self.tally, trace=self.trace, macs=macs, own=self.costs.steps
        )


class _Noted:
    """A task that notes what has run up to each of its units."""

    def __init__(self, ran: Callable[[], Tally]) -> None:
        self._ran, self.after = ran, list[Tally]()

    def advance(self, note: str = "") -> None:
        self.after.append(self._ran())


class _Titles(Reporter):
    """Notes by its name what each task runs, with what runs between the last one and it; no two have the same."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(quiet=True)
        self._tally, self._before, self.found = tally, Tally(), dict[str, list[Tally]]()

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        before = self._before
        task = _Noted(lambda: self._tally - before)
        yield task
        del task.after[max(0, total - 1) :]  # what follows the last unit belongs to it
        missing = max(1, total) - len(task.after)  # of a search that came to its end early
        self.found[description] = [*task.after, *[self._tally - before] * missing]
        self._before = copy(self._tally)


def simulate(
    surveyed: Survey,
    memory: int | None = None,
    *,
    table: bool = False,
    crew: Callable[[Callable[[Tally], Study]], Crew] | None = None,
) -> Work:
    """Count what a search would run, by going through it with made-up scores.

    Args:
        memory: bytes that statistics may take while they are gathered; None: as many as there are.
        table: whether the sensitivities are known.
        crew: makes who answers the pieces, of what opens the study as one of them would, to be counted by a tally of
            its own; what is told here is then what is left to the process that asks. None: this process.
    """
    tally, settings = Tally(), surveyed.settings
    quiet = _Titles(tally)
    nothing = Statistics(({},) * len(surveyed.stages), (1.0,) * len(surveyed.stages))
    library = Library(denoiser_of(surveyed.pipe), surveyed.anatomy, nothing, settings.method, quiet, ())
    library.units = surveyed.units
    facts = {**vars(surveyed), "settings": replace(settings, measure=LatentSNR())}
    room = room_for(surveyed.pipe, memory)
    ready = _Imagination(
        **facts,
        statistics=nothing,
        library=library,
        known_bytes=room // 4,
        tally=tally,
        weight_bytes=weights_of(room),
    )
    counts, front = [Tally()], [share for share in settings.front if ready.costs.attainable(share)]
    asked = None if crew is None else crew(lambda own: replace(ready, tally=own))
    evaluator = Evaluator(ready, Journal(None, {}, resume=False), asked)
    errors = sensitivity(ready, evaluator, quiet)
    counts.append(copy(ready.tally))
    found = evolve(ready, (ready.limit, *front), evaluator, errors, quiet)
    counts.append(copy(ready.tally))
    for one in () if ready.refers_to_own else found:
        ready.fresh.plain(ready.own)
        ready.fresh_to_own.each(one.candidate, corrected=one.corrected)
    counts.append(copy(ready.tally))
    sensed, searched, finals = (after - before for before, after in pairwise(counts))
    parts = _parts(surveyed, memory)
    return Work(
        reference=_dense(ready, 1, len(ready.reference or ready.trace.timesteps)),
        calibration=sum(
            (_dense(ready, surveyed.calibration_samples, calls) for calls in _calls(surveyed, parts)), Tally()
        ),
        sensitivity=Tally() if table else sensed,
        search=searched,
        final=finals,
        passes=len(parts),
        kept=ready.known.held_bytes,
        tasks={name: one for name, one in quiet.found.items() if not (table and name == "measure sensitivity")},
    )


def _parts(surveyed: Survey, memory: int | None) -> list[Part]:
    """What calibration gathers in each of its passes."""
    if surveyed.settings.levers is Levers.STEPS:
        return []
    return parts_within(memory, len(surveyed.stages), wanted_of(surveyed).sizes())


def _calls(surveyed: Survey, parts: Sequence[Part]) -> Iterator[int]:
    """Denoiser calls of a trajectory in each pass, of which all but the last end where their stages do."""
    reached = [surveyed.stages.index(timestep) for timestep in surveyed.trace.timesteps]
    for place, part in enumerate(parts):
        last = len(surveyed.stages) if place + 1 == len(parts) else part[-1][0]
        yield sum(stage <= last for stage in reached)


def _dense(ready: Study, samples: int, calls: int) -> Tally:
    """Of dense trajectories."""
    macs, batch = ready.counter.dense(), ready.settings.sampling.batch
    return Tally(samples * calls, -(-samples // batch) * calls, samples * calls * macs)
