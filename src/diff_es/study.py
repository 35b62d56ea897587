"""A model made ready for a search: its structure, its prices, its statistics and its library of levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .artefact import fingerprint
from .calibrate import Statistics, calibrate, parts_of
from .cost import Costs, MacCounter
from .errors import DiffESError, UnsupportedModel
from .fitness import Fitness
from .journal import Journal
from .latency import hardware_multiple, slower_layers, time_layers
from .layers import Anatomy, discover
from .library import Depth, Library, Width
from .loading import check, origin_of
from .pipeline import AnyPipeline, Pipeline, Sampling, Trace, denoiser_of, make_probes, trace
from .progress import Reporter
from .route import routing_of
from .schedule import Stages
from .settings import Settings, value_of


@dataclass(frozen=True)
class Survey:
    """What is known of a model before anything of it has run: its structure, its stages, its prices."""

    pipe: Pipeline
    settings: Settings
    trace: Trace
    stages: Stages
    anatomy: Anatomy
    counter: MacCounter
    costs: Costs


@dataclass(frozen=True)
class Study(Survey):
    """A model made ready for searching: calibrated and ranked too."""

    statistics: Statistics
    library: Library

    def fitness(self, purpose: str, count: int) -> Fitness:
        """Closeness to the dense model on ``count`` probes of this purpose."""
        probes = make_probes(self.pipe, count, self.settings.seed, purpose)
        settings = self.settings
        return Fitness(self.pipe, self.library, self.stages, probes, settings.sampling, settings.measure)


def survey(pipe: AnyPipeline, settings: Settings, reporter: Reporter) -> Survey:
    """Discover and price, without running the model.

    Raises:
        UnsupportedModel: a pipeline that Diff-ES cannot drive, or nothing in it that can be pruned.
        DiffESError: more stages than steps, or a pipeline that is routed already.
    """
    pipe = check(pipe)
    denoiser = denoiser_of(pipe)
    if routing_of(denoiser) is not None:
        remedy = "Leave the `routed` context, or call `remove(pipe)`, first."
        raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
    anatomy = discover(denoiser)
    if not anatomy.layers or not anatomy.blocks:
        raise UnsupportedModel(
            type(denoiser).__name__,
            expected="attention heads, feed-forward channels and blocks that can be pruned",
            found="; ".join(f"{r.name}: {r.reason}" for r in anatomy.refusals[:3]) or "no layer of a known kind",
            remedy="See `diff-es inspect` for every layer.",
        )
    ladder = settings.method.ladder
    if isinstance(ladder, Width):
        settings = replace(
            settings, method=replace(settings.method, ladder=fitted(pipe, ladder, anatomy, settings.sampling, reporter))
        )
    path = trace(pipe, settings.sampling)
    stages = Stages.split(path.timesteps, settings.stages)
    counter = MacCounter(denoiser, anatomy, path)
    costs = Costs(counter.table(settings.method.ladder, reporter), stages.steps(path.timesteps))
    return Survey(pipe, settings, path, stages, anatomy, counter, costs)


def fitted(pipe: Pipeline, ladder: Width, anatomy: Anatomy, sampling: Sampling, reporter: Reporter) -> Width:
    """A ladder whose widths suit the device: channel counts that it likes, and no layer slower than dense."""
    denoiser = denoiser_of(pipe)
    ladder = replace(ladder, multiple=ladder.multiple or hardware_multiple(denoiser.device, denoiser.dtype))
    if ladder.dense is not None:
        return ladder
    return replace(ladder, dense=slower_layers(time_layers(pipe, anatomy, ladder, sampling, reporter)))


def study(surveyed: Survey, reporter: Reporter) -> Study:
    """Calibrate on the model's own trajectories and rank."""
    pipe, settings, anatomy = surveyed.pipe, surveyed.settings, surveyed.anatomy
    layers, blocks = parts_of(anatomy, depth=isinstance(settings.method.ladder, Depth))
    probes = make_probes(pipe, settings.calibration, settings.seed, "calibration")
    statistics = calibrate(pipe, probes, settings.sampling, surveyed.stages, layers, blocks, reporter)
    library = Library(denoiser_of(pipe), anatomy, statistics, settings.method, reporter)
    return Study(**vars(surveyed), statistics=statistics, library=library)


def prepare(pipe: AnyPipeline, settings: Settings, reporter: Reporter | None = None) -> Study:
    """Survey and study in one; raises as :func:`survey` does."""
    reporter = reporter or Reporter(quiet=True)
    return study(survey(pipe, settings, reporter), reporter)


def as_measured(settings: Settings, journal: Path) -> Settings:
    """The settings with what was measured when their journal began: a second measurement might differ."""
    ladder, before = settings.method.ladder, Journal.began_with(journal).get("method")
    if before is None or not isinstance(ladder, Width) or ladder.dense is not None:
        return settings
    earlier = value_of(before["ladder"])
    dense = earlier.dense if isinstance(earlier, Width) and earlier.levels == ladder.levels else None
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
