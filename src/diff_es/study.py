"""A model made ready for a search: its structure, its prices, its statistics and its library of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

from .artefact import fingerprint
from .budget import Budget, Prices, measured_prices, within_memory
from .calibrate import Statistics, calibrate, parts_of
from .conditioning import Probe, conditions_of
from .cost import Costs, MacCounter
from .errors import DiffESError, UnsupportedModel
from .finite import check_finite
from .fitness import Bank, Fitness, timesteps_of
from .latency import fitted
from .layers import Anatomy, Declared, anatomy_of, declared, remember
from .library import Library, Method
from .loading import check, origin_of
from .pipeline import AnyPipeline, Pipeline, Trace, denoiser_of, make_probes, sample, trace
from .placements import Streamed, parameter_bytes
from .progress import Reporter
from .route import routing_of
from .samplers import is_deterministic, trajectory
from .schedule import Stages
from .search import Levels
from .settings import Levers, Settings, value_of
from .stepping import stepped
from .trajectory import Trajectory, placed, step_choices
from .units import Depth, Grain, Unit, Width, never_thinned, undivided, units_of, usual_grain

_WORTH_IT = 1.05
"""A gain below which the user is told before the search."""
PARTS = 4
"""The most parts of held-out probes, ``Settings.held_out`` each, that a choice among finalists takes."""


@dataclass(frozen=True)
class Survey:
    """What is known of a model before anything of it has run: its structure, its stages, its prices."""

    pipe: Pipeline
    settings: Settings
    trace: Trace
    stages: Stages
    anatomy: Anatomy
    counter: MacCounter
    macs: Costs  # counted
    costs: Costs  # in the unit of the budget
    share: float  # of the user's own cost that may be spent
    prices: Prices | None  # measured, for a budget of time
    units: tuple[Unit, ...]
    path: Trajectory | None  # the user's own, where the steps of a stage are a choice
    declared: Declared | None  # what was declared of the denoiser, if anything
    budget: Budget  # that was asked for

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy in another process has a denoiser of its own, of which the same is declared."""
        vars(self).update(state)
        if self.declared is not None:
            remember(denoiser_of(self.pipe), self.declared)

    @property
    def placement(self) -> Streamed | None:
        """Where weights wait, if the budget limits those on the device."""
        limit = self.budget.weights_gb
        return None if limit is None else Streamed(limit * 1e9 / parameter_bytes(denoiser_of(self.pipe)))

    @property
    def reference(self) -> tuple[float, ...] | None:
        """The timesteps of the dense run that results are compared with: the finest that a schedule may take, where
        steps are a choice; None: the user's own.

        They are placed as a schedule's are, not by the sampler for another number of steps: DDIM's stride is a whole
        number of timesteps, so that of its own 80 steps of 1000 (12, for spaces of 12.5) leads elsewhere.
        """
        if self.path is None:
            return None
        return placed(self.path, self.stages, [row[0] for row in self.finest])

    @property
    def finest(self) -> Levels:
        """The schedule of the most steps, all of them dense."""
        if self.costs.choices is None:
            return self.own
        return tuple((counts[-1], *own[1:]) for counts, own in zip(self.costs.choices, self.own, strict=True))

    @property
    def own(self) -> Levels:
        """The schedule that is the user's own setting."""
        dense = (0,) * len(self.units)
        return tuple(dense if self.path is None else (n, *dense) for n in self.costs.steps)


@dataclass(frozen=True)
class Study(Survey):
    """A model made ready for searching: calibrated and ranked too."""

    statistics: Statistics
    library: Library

    def fitness(self, purpose: str, count: int, heat: int = 0) -> Fitness:
        """Closeness to the reference on ``count`` probes of this purpose, ``heat`` of them in a first heat."""
        return self._fitness(self._probes(purpose, count), self.reference, heat=heat)

    @cached_property
    def held_out(self) -> Fitness:
        """Closeness to the reference on probes that no search sees; corrections are fitted on a batch of the search's,
        or of more like them."""
        lessons = max(self.settings.probes, self.settings.sampling.batch) if self.corrected else 0
        probes = self._probes("held-out", self.settings.held_out)
        return self._fitness(probes, self.reference, lessons=self._probes("search", lessons))

    def part(self, index: int) -> Fitness:
        """The same on the next so many probes, and the next: part 0 is ``held_out``."""
        if index not in self._parts:
            self._parts[index] = self._on_part(index, self.reference) if index else self.held_out
        return self._parts[index]

    @property
    def fresh(self) -> Fitness:
        """The same on the first part that chooses nothing: what is reported comes from it."""
        return self.part(PARTS)

    @cached_property
    def fresh_to_own(self) -> Fitness:
        """Closeness to the user's own setting, on the same probes."""
        return self._on_part(PARTS, None)

    def _on_part(self, index: int, reference: Sequence[float] | None) -> Fitness:
        count = self.settings.held_out
        probes = self._probes("held-out", (index + 1) * count)[index * count :]
        return self._fitness(probes, reference, taught=self.held_out.corrections, memory=1 << 29)

    @cached_property
    def _parts(self) -> dict[int, Fitness]:
        return {}

    @property
    def corrected(self) -> bool:
        """Whether steps are corrected: where they are a choice, and the sampler adds no noise of its own."""
        return self.path is not None and self.settings.corrections > 0 and is_deterministic(self.pipe.scheduler)

    def fitness_alone(self) -> Fitness:
        """Closeness to the base of sensitivities, on the first of the search's probes."""
        reference = None if self.path is None else placed(self.path, self.stages, [row[0] for row in self.base])
        return self._fitness(self._probes("search", self.settings.sensed_probes), reference)

    @cached_property
    def _bank(self) -> Bank:
        return Bank(self.pipe, self.library)

    def _fitness(self, probes: Sequence[Probe], reference: Sequence[float] | None, **others: Any) -> Fitness:
        settings = self.settings
        own = (self.pipe, self.library, self.stages, probes, settings.sampling, settings.measure)
        others |= {"corrections": settings.corrections if self.corrected else 0, "bank": self._bank}
        return Fitness(*own, path=self.path, reference=reference, **others)

    def _probes(self, purpose: str, count: int) -> tuple[Probe, ...]:
        return make_probes(self.pipe, count, self.settings.seed, purpose, self.settings.prompts)

    def rows(self, levels: Levels) -> Levels:
        """The levels of a schedule's units, without the numbers of steps."""
        return levels if self.path is None else tuple(row[1:] for row in levels[: len(self.stages)])

    def timesteps(self, levels: Levels) -> tuple[float, ...] | None:
        """What the sampler takes under a schedule; None: the user's own."""
        return None if self.path is None else timesteps_of(self.path, self.stages, levels)

    def steps(self, levels: Levels) -> tuple[int, ...]:
        """Sampler steps of each stage under a schedule."""
        return self.costs.steps if self.path is None else tuple(row[0] for row in levels[: len(self.stages)])

    @property
    def base(self) -> Levels:
        """What sensitivities are measured against: all dense, and, where steps are a choice, twice the user's own, as
        far as there is room."""
        if self.costs.choices is None:
            return self.own
        chosen = zip(self.costs.choices, self.own, strict=True)
        return tuple((max(n for n in counts if n <= 2 * own), *dense) for counts, (own, *dense) in chosen)


def survey(
    pipe: AnyPipeline,
    settings: Settings,
    reporter: Reporter,
    budget: Budget | None = None,
    priced: Mapping[str, Any] | None = None,
) -> Survey:
    """Discover and price; of the model only single calls run, to be timed.

    Args:
        budget: what is to be kept; None: nothing.
        priced: prices that were measured before, from ``Prices.to_json``.

    Raises:
        BudgetOutOfReach: no schedule keeps the budget; says what is attainable.
        UnsupportedModel: a pipeline that Diff-ES cannot drive, or nothing in it that can be pruned.
        DiffESError: more stages than steps, or a pipeline that is routed already.
    """
    pipe = check(pipe)
    denoiser = denoiser_of(pipe)
    conditions_of(pipe, settings.prompts)
    if routing_of(denoiser) is not None:
        remedy = "Leave the `routed` context, or call `remove(pipe)`, first."
        raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
    anatomy, levers = anatomy_of(denoiser), settings.levers
    skips = isinstance(settings.method.ladder, Depth) or settings.method.depth is not None
    if levers is not Levers.STEPS and (not anatomy.layers or (skips and not anatomy.blocks)):
        raise UnsupportedModel(
            type(denoiser).__name__,
            expected="attention heads, feed-forward channels and blocks that can be pruned",
            found="; ".join(f"{r.name}: {r.reason}" for r in anatomy.refusals[:3])
            or ("no block to skip" if anatomy.layers else "no layer of a known kind"),
            remedy="See `diff-es inspect` for every layer.",
        )
    ladder = settings.method.ladder
    if isinstance(ladder, Width):
        if levers is Levers.STEPS:  # nothing is pruned, so nothing need be timed
            ladder = replace(ladder, dense=ladder.dense or ())
        settings = replace(
            settings, method=replace(settings.method, ladder=fitted(pipe, ladder, anatomy, settings.sampling, reporter))
        )
    traced, budget = trace(pipe, settings.sampling), budget or Budget(macs=1.0)
    path, choices = None, None
    grain = settings.method.grain or usual_grain(settings.method.ladder)
    if levers is Levers.STEPS or (settings.method.grain is None and budget.weights_gb is not None):
        grain = Grain.WHOLE
    method = replace(settings.method, grain=grain)
    settings = replace(settings, method=method)
    stages = Stages.split(traced.timesteps, settings.stages)
    units = undivided(anatomy) if levers is Levers.STEPS else units_of(anatomy, method.ladder, grain)
    if isinstance(method.ladder, Width) and levers is not Levers.STEPS:
        for name in never_thinned(anatomy.layers, method.ladder):
            reporter.warn(f"{name} keeps all of its groups at every level: it runs no faster with fewer here.")
    if levers is not Levers.PRUNE:
        if pipe.scheduler.order != 1:
            remedy = "Search levels alone (--levers prune), or sample with a scheduler that calls the denoiser once."
            found = f"{type(pipe.scheduler).__name__}, which calls it {pipe.scheduler.order} times"
            raise DiffESError("scheduler", expected="one denoiser call a step", found=found, remedy=remedy)
        path = trajectory(pipe.scheduler, traced.timesteps)
        stages = path.stages(settings.stages)
        choices = step_choices(stages.steps(path.timesteps), settings.fine, path.room(stages))
    counter = MacCounter(denoiser, anatomy, traced, bypass=method.depth is None or method.depth.bypass)
    table, own, each = counter.table(units, reporter), stages.steps(traced.timesteps), 1
    if path is not None:  # steps are counted, not calls
        own, each = stages.steps(path.timesteps), traced.calls
    macs = Costs.tabled([[each * cost for cost in row] for row in table], own, choices)
    costs, share, prices = macs, budget.share, None
    if budget.speedup is not None:
        prices = Prices.restored(priced, macs) if priced else None
        prices = prices or measured_prices(pipe, counter, units, macs, settings.sampling, reporter)
        if prices.best < _WORTH_IT:
            reporter.say(f"Whatever the schedule, the pipeline gains no more than {prices.best:.2f}x here.")
        costs, share = prices.costs, prices.share(budget.speedup)
    if budget.weights_gb is not None:
        costs = within_memory(costs, counter, units, budget.weights_gb * 1e9)
    costs.space(share)  # an impossible budget is refused before anything runs
    known = declared(denoiser)
    return Survey(
        pipe, settings, traced, stages, anatomy, counter, macs, costs, share, prices, units, path, known, budget
    )


def study(surveyed: Survey, reporter: Reporter) -> Study:
    """Calibrate on the model's own trajectories and rank; neither where nothing is pruned."""
    pipe, settings, anatomy = surveyed.pipe, surveyed.settings, surveyed.anatomy
    method, stages = settings.method, len(surveyed.stages)
    _check_reference(surveyed)
    if settings.levers is Levers.STEPS:
        statistics = Statistics(({},) * stages, (0.0,) * stages)
        library = Library(denoiser_of(pipe), anatomy, statistics, method, reporter, surveyed.units)
        return Study(**vars(surveyed), statistics=statistics, library=library)
    layers, blocks = parts_of(anatomy, thin=isinstance(method.ladder, Width), skip=method.depth is not None)
    probes = make_probes(pipe, settings.calibration, settings.seed, "calibration", settings.prompts)
    statistics = calibrate(pipe, probes, settings.sampling, surveyed.stages, layers, blocks, reporter)
    library = Library(denoiser_of(pipe), anatomy, statistics, method, reporter, surveyed.units)
    return Study(**vars(surveyed), statistics=statistics, library=library)


def _check_reference(surveyed: Survey) -> None:
    """Whether the dense run that results are compared with is finite, on one probe, before much is made of it.

    Raises:
        DiffESError: it is not; as :func:`check_finite` says.
    """
    pipe, settings, reference = surveyed.pipe, surveyed.settings, surveyed.reference
    probes = make_probes(pipe, 1, settings.seed, "search", settings.prompts)
    with nullcontext() if reference is None else stepped(pipe, reference, settings.sampling.steps):
        shown = settings.measure.view(pipe, sample(pipe, probes, settings.sampling))
        check_finite(pipe, probes, settings.sampling, shown)


def prepare(
    pipe: AnyPipeline,
    settings: Settings,
    reporter: Reporter | None = None,
    budget: Budget | None = None,
    priced: Mapping[str, Any] | None = None,
) -> Study:
    """Survey and study in one; raises as :func:`survey` does."""
    reporter = reporter or Reporter(quiet=True)
    return study(survey(pipe, settings, reporter, budget, priced), reporter)


def as_measured(settings: Settings, earlier: Mapping[str, Any]) -> Settings:
    """The settings with what was measured when an earlier run began: a second measurement might differ.

    Args:
        earlier: settings as ``describe`` wrote them.

    Raises:
        DiffESError: it did not.
    """
    ladder, method = settings.method.ladder, earlier.get("method")
    if method is None or not isinstance(ladder, Width) or ladder.dense is not None:
        return settings
    made = value_of(method, "method")
    before = made.ladder if isinstance(made, Method) else None
    dense = before.dense if isinstance(before, Width) and before.levels == ladder.levels else None
    return replace(settings, method=replace(settings.method, ladder=replace(ladder, dense=dense)))


def identity(pipe: Pipeline) -> dict[str, Any]:
    """What else scores depend on: the model, its sampler and the arithmetic."""
    origin, denoiser = origin_of(pipe), denoiser_of(pipe)
    return {
        "model": fingerprint(denoiser),
        "dtype": origin["dtype"],
        "device": denoiser.device.type,
        "versions": {name: version(name) for name in ("diff-es", "diffusers", "torch")},
        "scheduler": origin["scheduler"],
    }
