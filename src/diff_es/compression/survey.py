"""What is known of a model before anything of it has run: its structure, its stages, its prices."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from itertools import accumulate

import torch
from torch import nn

from ..layers import Anatomy, anatomy_of, fingerprint
from ..pipelines.denoiser import device_of
from ..pipelines.families import Pipeline
from ..pipelines.loading import origin_of
from ..pipelines.probes import conditions_of
from ..pipelines.sampling import AnyPipeline, denoiser_of
from ..pipelines.supported import check
from ..pipelines.tracing import Trace, trace
from ..pruning.budget import Budget, MacsRatio, MeasuredPrices, Prices, Speedup, measured_prices, within_memory
from ..pruning.costs import Costs
from ..pruning.granularity import Depth, Granularity, Unit, Width, never_thinned, undivided, units_of, usual_granularity
from ..pruning.latency import fitted
from ..pruning.macs import MacCounter
from ..pruning.method import Method
from ..routing.placements import Streamed, parameter_bytes
from ..routing.routing import routing_of
from ..scoring.distribution import OfSets, feature_network
from ..scoring.fitness import timesteps_of
from ..search import Candidate
from ..solvers.custom_timesteps import own_path
from ..trajectory.stages import Stages
from ..trajectory.timesteps import Trajectory, step_choices
from ..utils.errors import DiffESError, UnsupportedModel
from ..utils.progress import Reporter
from .defaults import of_pipeline, of_trajectory
from .settings import Levers, Settings

_WORTH_IT = 1.05
"""A gain below which the user is told before the search."""

_TABLE, _NOISES = 600, (2, 8)
"""Runs of single noises that measure the levels of all units and stages, where so many noises as that takes are no
fewer and no more than these: the more entries there are, the more each says of the others. Where sets are compared, it
is the most at once."""
_VECTORS, _SAMPLES = 16, (64, 256)
"""Vectors that calibration is to see of most layers in a stage, for each entry of one; its fewest and most samples."""


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
    limit: float  # the most that a schedule may cost, relative to the user's own setting
    prices: Prices | None  # measured, for a budget of time
    units: tuple[Unit, ...]
    path: Trajectory | None  # the user's own, where the steps of a stage are a choice
    budget: Budget  # that was asked for

    def __getstate__(self) -> dict[str, object]:
        """Without what was worked out on the way."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def calibration_samples(self) -> int:
        """That calibration runs."""
        samples = self.settings.calibration_samples
        assert samples is not None  # since `surveyed`
        return samples

    @property
    def placement(self) -> Streamed | None:
        """Where weights wait, if the budget limits those on the device."""
        memory = self.budget.memory
        return None if memory is None else Streamed(memory.bytes / parameter_bytes(denoiser_of(self.pipe)))

    def copied_bytes(self, unit: Unit, level: int) -> int:
        """Of the weights that are laid out for a level: what is re-solved runs as the library holds it."""
        total, copied = self.counter.slim_bytes(unit, level)
        return total if self.settings.method.compensation is None else copied

    @property
    def reference(self) -> tuple[float, ...] | None:
        """The timesteps of the dense run that results are compared with: the finest that a schedule may take, where
        steps are a choice; None: the user's own.

        They are placed as a schedule's are, not by the sampler for another number of steps: DDIM's stride is a whole
        number of timesteps, so that of its own 80 steps of 1000 (12, for spaces of 12.5) leads elsewhere.
        """
        if self.path is None:
            return None
        return timesteps_of(self.path, self.stages, self.finest)

    @property
    def refers_to_own(self) -> bool:
        """Whether results are compared with the user's own setting, not with a finer run."""
        return self.path is None or self.reference == self.path.timesteps

    @property
    def finest(self) -> Candidate:
        """The schedule of the most steps, all of them dense."""
        if self.costs.choices is None:
            return self.own
        return Candidate.of(self.own.levels, [counts[-1] for counts in self.costs.choices])

    @property
    def own(self) -> Candidate:
        """The schedule that is the user's own setting."""
        dense = ((0,) * len(self.units),) * len(self.stages)
        return Candidate.of(dense, None if self.costs.choices is None else self.costs.steps)


def survey(
    pipe: AnyPipeline,
    settings: Settings,
    reporter: Reporter,
    budget: Budget | None = None,
    priced: MeasuredPrices | None = None,
) -> Survey:
    """Discover and price; of the model only single calls run, to be timed.

    Args:
        budget: what is to be kept; None: nothing.
        priced: prices that were measured before.

    Raises:
        BudgetOutOfReach: no schedule keeps the budget; says what is attainable.
        UnsupportedModel: a pipeline that Diff-ES cannot drive, or nothing in it that can be pruned.
        DiffESError: more stages than steps, or a pipeline that is routed already.
    """
    return surveyed(check(pipe), settings, reporter, budget or Budget(MacsRatio(1.0)), priced)


def surveyed(
    pipe: Pipeline, settings: Settings, reporter: Reporter, budget: Budget, priced: MeasuredPrices | None = None
) -> Survey:
    """:func:`survey` of a pipeline that is known to be one that Diff-ES can drive; its weights are looked at only where
    calls are timed."""
    denoiser, settings = denoiser_of(pipe), of_pipeline(pipe, settings, reporter)
    conditions_of(pipe, settings.prompts)
    anatomy = _anatomy(denoiser, settings)
    settings = _settled(pipe, anatomy, settings, budget, reporter)
    method, traced = settings.method, trace(pipe, settings.sampling)
    settings, count, finer = of_trajectory(settings, traced)
    stages, path, choices = Stages.split(traced.timesteps, count), None, None
    units = _units(anatomy, settings, reporter)
    if settings.sensitivity_noises is None:
        fewest, most = _NOISES if settings.measure.least == 1 else (_NOISES[1], _NOISES[1])
        wanted = round(_TABLE / (count * len(units)))
        settings = replace(settings, sensitivity_noises=min(most, max(fewest, wanted)))
    _check_sets(settings)
    if settings.levers is not Levers.PRUNE or settings.corrections:
        path = own_path(pipe, traced.timesteps, traced.calls)
        stages = path.stages(count)
    if path is not None and settings.levers is not Levers.PRUNE:
        choices = step_choices(stages.steps(path.timesteps), finer, path.room(stages))
    counter = MacCounter(denoiser, anatomy, traced, bypass=method.depth is None or method.depth.bypass)
    table, own, each = counter.table(units, reporter), stages.steps(traced.timesteps), 1
    if settings.calibration_samples is None:
        settings = replace(settings, calibration_samples=_samples(counter, min(filter(None, own))))
    if path is not None:  # steps are counted, not calls
        own, each = stages.steps(path.timesteps), traced.calls
    macs = Costs.tabled([[each * cost for cost in row] for row in table], own, choices)
    costs, prices = macs, None
    if isinstance(budget.compute, Speedup):
        prices = Prices.restored(priced, macs) if priced else None
        prices = prices or measured_prices(pipe, counter, units, macs, settings.sampling, reporter)
        if prices.best < _WORTH_IT:
            reporter.say(f"Whatever the schedule, the pipeline gains no more than {prices.best:.2f}x here.")
        costs, limit = prices.costs, prices.share(budget.compute.times)
    else:
        limit = budget.compute.ratio
    if budget.memory is not None:
        costs = within_memory(costs, counter, units, budget.memory.bytes)
    costs.space(limit)  # an impossible budget is refused before anything runs
    return Survey(pipe, settings, traced, stages, anatomy, counter, macs, costs, limit, prices, units, path, budget)


def _check_sets(settings: Settings) -> None:
    """Whether as many samples run at once as a measure compares, and its features are there.

    Raises:
        DiffESError: a number of them is too small, or as :func:`feature_network` says.
    """
    if isinstance(settings.measure, OfSets) and settings.measure.features is not None:
        feature_network(settings.measure.features)
    first, least = settings.rung_noises, settings.measure.least
    counts = {
        "batch": (settings.sampling.batch, 2 * least - 1),  # so that what is left over makes a set, too
        "first_rung": (first or least, least),
        "search_noises": (settings.search_noises - first, least),
        "sensitivity_noises": (settings.sensed_noises, least),
        "held_out_noises": (settings.held_out_noises, least),
    }
    for name, (count, fewest) in counts.items():
        if count < fewest:
            expected = f"at least {fewest} samples at once for {type(settings.measure).__name__}"
            more = " that are not of the first rung" if name == "search_noises" else ""
            raise DiffESError(name, expected=expected, found=f"{count}{more}", remedy="Raise it, or take LatentSNR().")


def _samples(counter: MacCounter, calls: int) -> int:
    """That calibrate a stage of so many calls, for layers that hold half of all columns; streams of few tokens, such as
    those of a prompt, would ask for many."""
    fewest, most = _SAMPLES
    seen = [(counter.vectors(layer) * calls, layer.size) for layer in counter.anatomy.layers]
    asked = sorted((size / vectors, size) for vectors, size in seen if vectors)
    reached = accumulate(size for _, size in asked)
    enough = sum(size for _, size in asked) / 2
    share = next((share for (share, _), columns in zip(asked, reached, strict=True) if columns >= enough), 0.0)
    return min(most, max(fewest, math.ceil(_VECTORS * share)))


def _units(anatomy: Anatomy, settings: Settings, reporter: Reporter) -> tuple[Unit, ...]:
    """What carries its own level; the user is told of layers that no level thins."""
    ladder, method = settings.method.ladder, settings.method
    if settings.levers is Levers.STEPS:
        return undivided(anatomy)
    for name in never_thinned(anatomy.layers, ladder) if isinstance(ladder, Width) else ():
        reporter.warn(f"{name} keeps all of its groups at every level: it runs no faster with fewer here.")
    return units_of(anatomy, ladder, method.granularity or usual_granularity(ladder))


def _anatomy(denoiser: nn.Module, settings: Settings) -> Anatomy:
    """What can be pruned in a dense denoiser, if there is what these settings need, and nothing around the call lowers
    the precision of what is summed and solved."""
    kind = device_of(denoiser).type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        remedy = "Leave the context; load the pipeline in the type that it is to compute in. Results run in autocast."
        raise DiffESError("compress", expected="no autocast around it", found="torch.autocast", remedy=remedy)
    if routing_of(denoiser) is not None:
        remedy = "Leave the `routed` context, or call `remove(pipe)`, first."
        raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
    anatomy = anatomy_of(denoiser)
    skips = isinstance(settings.method.ladder, Depth) or settings.method.depth is not None
    if settings.levers is not Levers.STEPS and (not anatomy.layers or (skips and not anatomy.blocks)):
        raise UnsupportedModel(
            type(denoiser).__name__,
            expected="attention heads, feed-forward channels and blocks that can be pruned",
            found="; ".join(f"{r.name}: {r.reason}" for r in anatomy.refusals[:3])
            or ("no block to skip" if anatomy.layers else "no layer of a known kind"),
            remedy="See `diff-es inspect` for every layer.",
        )
    return anatomy


def _settled(pipe: Pipeline, anatomy: Anatomy, settings: Settings, budget: Budget, reporter: Reporter) -> Settings:
    """With a ladder that suits the device, and the granularity that is usual where none is asked for."""
    ladder, method = settings.method.ladder, settings.method
    if isinstance(ladder, Width):
        if settings.levers is Levers.STEPS:  # nothing is pruned, so nothing need be timed
            ladder = replace(ladder, dense=ladder.dense or ())
        ladder = fitted(pipe, ladder, anatomy, settings.sampling, reporter)
    granularity = method.granularity or usual_granularity(ladder)
    if settings.levers is Levers.STEPS or (method.granularity is None and budget.memory is not None):
        granularity = Granularity.WHOLE
    return replace(settings, method=replace(method, ladder=ladder, granularity=granularity))


def as_measured(settings: Settings, earlier: Method) -> Settings:
    """The settings with what was measured when an earlier run began: a second measurement might differ."""
    ladder, before = settings.method.ladder, earlier.ladder
    if not isinstance(ladder, Width) or ladder.dense is not None:
        return settings
    dense = before.dense if isinstance(before, Width) and before.levels == ladder.levels else None
    return replace(settings, method=replace(settings.method, ladder=replace(ladder, dense=dense)))


def identity(pipe: Pipeline) -> dict[str, object]:
    """What else scores depend on: the model, its sampler and the arithmetic."""
    origin, denoiser = origin_of(pipe), denoiser_of(pipe)
    return {
        "model": fingerprint(denoiser),
        "dtype": origin.dtype,
        "device": device_of(denoiser).type,
        "versions": {name: version(name) for name in ("diff-es", "diffusers", "torch")},
        "scheduler": origin.scheduler,
    }
