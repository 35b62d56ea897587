"""A model made ready for a search: surveyed, its statistics and its library of levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from ..execution import Crew
from ..pipelines.denoiser import device_of
from ..pipelines.families import Pipeline
from ..pipelines.finite import check_finite
from ..pipelines.probes import Probe, make_probes
from ..pipelines.sampling import AnyPipeline, denoiser_of, sample
from ..pruning.budget import Budget, MeasuredPrices
from ..pruning.calibration import calibrate
from ..pruning.granularity import Width
from ..pruning.library import Library
from ..pruning.solving import by_itself, by_workers
from ..pruning.statistics import Statistics
from ..pruning.wanted import Wanted
from ..scoring.fitness import Comparison, Fitness, timesteps_of
from ..scoring.weight_cache import WeightCache
from ..search import Candidate
from ..solvers.custom_timesteps import correctable, stepped
from ..solvers.prefix_cache import PrefixCache
from ..trajectory.corrections import Corrections
from ..utils.memory import free_memory
from ..utils.progress import Reporter
from .settings import Levers, Settings
from .survey import Survey, survey

PARTS = 4
"""The most parts of held-out probes, ``Settings.held_out`` each, that a choice among finalists takes."""


@dataclass(frozen=True)
class Study(Survey):
    """A model made ready for searching: calibrated and ranked too."""

    statistics: Statistics
    library: Library
    known_bytes: int  # of steps that need not be run again, for all that is scored

    def fitness(self, purpose: str, count: int, rung: int = 0) -> Fitness:
        """Closeness to the reference on ``count`` probes of this purpose, ``rung`` of them on a first rung."""
        return self._fitness(self._probes(purpose, count), Comparison(self.path, self.reference, rung))

    @cached_property
    def searching(self) -> Fitness:
        """The same on the search's probes, where candidates race on the first of them."""
        return self.fitness("search", self.settings.search_noises, self.settings.rung_noises)

    def part(self, index: int) -> Fitness:
        """Closeness to the reference on so many probes that no search sees, and the next, and the next; steps are
        corrected as in the search."""
        if index not in self._parts:
            self._parts[index] = self._on_part(index, self.reference, lambda one: self.searching.corrections(one))
        return self._parts[index]

    @cached_property
    def fresh(self) -> Fitness:
        """The same on the part behind those that choose: what is reported comes from it, with the corrections of a
        result."""
        return self._on_part(PARTS, self.reference, self.corrections)

    @cached_property
    def fresh_to_own(self) -> Fitness:
        """Closeness to the user's own setting, on the same probes."""
        return self._on_part(PARTS, None, self.corrections)

    def _on_part(
        self, index: int, reference: Sequence[float] | None, fitted: Callable[[Candidate], Corrections]
    ) -> Fitness:
        count = self.settings.held_out_noises
        probes = self._probes("held-out", (index + 1) * count)[index * count :]
        return self._fitness(probes, Comparison(self.path, reference, fitted=fitted))

    def corrections(self, candidate: Candidate) -> Corrections:
        """What the steps of a result are corrected by: fitted on a batch of the search's probes, or of more like them,
        where candidates of a race have those of its first rung; empty where steps are not corrected."""
        return self._lessons.corrections(candidate) if self.corrected else ()

    @cached_property
    def _lessons(self) -> Fitness:
        batch = self.settings.sampling.batch
        probes = self._probes("search", max(self.settings.search_noises, batch))[:batch]
        return self._fitness(probes, Comparison(self.path, self.reference))

    @cached_property
    def _parts(self) -> dict[int, Fitness]:
        return {}

    @property
    def directions(self) -> int:
        """The most along which steps are corrected: where that was asked for, and the sampler adds no noise of its
        own; else 0."""
        return (self.settings.corrections or 0) if self.path is not None and correctable(self.pipe) else 0

    @property
    def corrected(self) -> bool:
        """Whether steps are corrected."""
        return self.directions > 0

    def fitness_alone(self) -> Fitness:
        """Closeness to the base of sensitivities, on the first of the search's probes."""
        probes, reference = self._probes("search", self.settings.sensed_noises), self.timesteps(self.base)
        return self._fitness(probes, Comparison(self.path, reference))

    def left(self, stage: int, unit: int, level: int) -> float:
        """As :meth:`Library.left`."""
        return self.library.left(stage, unit, level)

    def for_scoring(self, workers: int) -> Study:
        """What each of so many workers needs to score candidates: its part of the memory, since all may be on one
        machine, and no statistics, unless levels are made of them on the way."""
        own = replace(self, library=self.library.for_scoring(workers), known_bytes=self.known_bytes // workers)
        if self.settings.method.depth is not None:
            return own
        return replace(own, statistics=Statistics((), self.statistics.change))

    @cached_property
    def _weights(self) -> WeightCache:
        return WeightCache(self.pipe, self.library)

    @cached_property
    def known(self) -> PrefixCache:
        """Steps that need not be run again."""
        return PrefixCache(self.known_bytes)

    def _fitness(self, probes: Sequence[Probe], comparison: Comparison) -> Fitness:
        settings = self.settings
        comparison = replace(comparison, corrections=self.directions, known=self.known)
        own = (self.pipe, self.library, self.stages, probes, settings.sampling, settings.measure)
        return Fitness(*own, comparison, self._weights)

    def _probes(self, purpose: str, count: int) -> tuple[Probe, ...]:
        return make_probes(self.pipe, count, self.settings.seed, purpose, self.settings.prompts)

    def timesteps(self, candidate: Candidate) -> tuple[float, ...] | None:
        """What the sampler takes under a schedule; None: the user's own."""
        return None if self.path is None else timesteps_of(self.path, self.stages, candidate)

    def steps(self, candidate: Candidate) -> tuple[int, ...]:
        """Sampler steps of each stage under a schedule."""
        return candidate.steps if candidate.chooses_steps else self.costs.steps

    @property
    def base(self) -> Candidate:
        """What sensitivities are measured against: all dense, and, where steps are a choice, twice the user's own, as
        far as there is room."""
        if self.costs.choices is None:
            return self.own
        pairs = zip(self.costs.choices, self.own.steps, strict=True)
        return Candidate.of(self.own.levels, [max(n for n in counts if n <= 2 * own) for counts, own in pairs])


def study(surveyed: Survey, reporter: Reporter, memory: int | None = None, crew: Crew | None = None) -> Study:
    """Calibrate on the model's own trajectories and rank; neither where nothing is pruned.

    Args:
        crew: who calibrates and ranks; None: this process.
        memory: bytes that statistics may take while they are gathered. After that a quarter of it is for steps that
            need not be run again, and the rest for weights of levels, half of it as the library keeps them and half
            laid out to run; what is more waits on disk. None: half of what is free.
    """
    pipe, settings, anatomy = surveyed.pipe, surveyed.settings, surveyed.anatomy
    method, stages = settings.method, len(surveyed.stages)
    room = room_for(pipe, memory)
    _check_reference(surveyed)
    if settings.levers is Levers.STEPS:
        statistics = Statistics(({},) * stages, (0.0,) * stages)
        library = Library(denoiser_of(pipe), anatomy, statistics, method, reporter, surveyed.units)
        return Study(**vars(surveyed), statistics=statistics, library=library, known_bytes=room // 4)
    probes = make_probes(pipe, surveyed.calibration_samples, settings.seed, "calibration", settings.prompts)
    own = (settings.sampling, surveyed.stages, wanted_of(surveyed))
    statistics = calibrate(pipe, probes, *own, reporter, room, crew)
    solve = by_itself if crew is None or crew.size == 1 else partial(by_workers, pipe, crew)
    given = (statistics, method, reporter, surveyed.units, weights_of(room))
    library = Library(denoiser_of(pipe), anatomy, *given, solve)
    return Study(**vars(surveyed), statistics=statistics, library=library, known_bytes=room // 4)


def wanted_of(surveyed: Survey) -> Wanted:
    """What calibration gathers for the method's ladder, ranking and compensation."""
    method, anatomy = surveyed.settings.method, surveyed.anatomy
    layers = anatomy.layers if isinstance(method.ladder, Width) else ()
    return Wanted(layers, anatomy.blocks if method.depth is not None else (), method.squares)


def room_for(pipe: Pipeline, memory: int | None) -> int:
    """Bytes for statistics and weights of levels: those asked for, or half of what is free."""
    return free_memory(device_of(denoiser_of(pipe))) // 2 if memory is None else memory


def weights_of(room: int) -> int:
    """Bytes of it for weights of levels, as the library keeps them, and as many again laid out to run."""
    return 3 * room // 8


def _check_reference(surveyed: Survey) -> None:
    """Whether the dense run that results are compared with is finite, on one probe, before much is made of it.

    Raises:
        DiffESError: it is not; as :func:`check_finite` says.
    """
    pipe, settings, reference = surveyed.pipe, surveyed.settings, surveyed.reference
    probes = make_probes(pipe, 1, settings.seed, "search", settings.prompts)
    chosen = nullcontext() if reference is None else stepped(pipe, reference, settings.sampling.steps)
    with chosen, torch.compiler.set_stance("force_eager"):  # what is compiled is compiled for the user's own calls
        shown = settings.measure.view(pipe, sample(pipe, probes, settings.sampling))
        check_finite(pipe, probes, settings.sampling, shown)


def prepare(
    pipe: AnyPipeline,
    settings: Settings,
    reporter: Reporter | None = None,
    budget: Budget | None = None,
    priced: MeasuredPrices | None = None,
) -> Study:
    """Survey and study in one; raises as :func:`survey` does."""
    reporter = reporter or Reporter(quiet=True)
    return study(survey(pipe, settings, reporter, budget, priced), reporter)
