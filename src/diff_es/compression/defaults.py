"""What is set where the user says nothing, by how the pipeline samples."""

from __future__ import annotations

from dataclasses import replace

from ..pipelines.families import Pipeline
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.sampling import sampler_name
from ..pipelines.tracing import Trace
from ..solvers.samplers import is_deterministic, repeats, takes_timesteps
from ..trajectory.corrections import DIRECTIONS
from ..utils.errors import DiffESError
from ..utils.progress import Reporter
from .own_settings import own_settings
from .settings import Levers, Settings

STAGES = 10
"""Of a trajectory of so many steps or more; of a shorter one, each step is a stage."""
_FINER = 4
"""Times the user's own steps that results are compared with, where these are no fewer than stages by default. Fewer are
what a model was distilled to, and more of them lead it elsewhere."""


def of_pipeline(pipe: Pipeline, settings: Settings, reporter: Reporter) -> Settings:
    """With the sampling that the pipeline has by itself, and levers that its sampler can take."""
    if not isinstance(pipe, OwnSampler):
        settings = replace(settings, sampling=settings.sampling.of(pipe))
    if settings.levers is None:
        settings = replace(settings, levers=_levers(pipe, settings, reporter))
    if settings.corrections is None:
        settings = replace(settings, corrections=0 if settings.levers is Levers.PRUNE else DIRECTIONS)
    if settings.levers is Levers.PRUNE and settings.corrections and (why := _steps_stay(pipe, settings)):
        found, remedy = f"{settings.corrections} for one that {why}", "Leave them out."
        raise DiffESError("corrections", expected="none for this sampler", found=found, remedy=remedy)
    return own_settings(pipe, settings) if isinstance(pipe, OwnSampler) else settings


def of_trajectory(settings: Settings, traced: Trace) -> tuple[Settings, int, int]:
    """With stages and a reference that suit the number of steps, which are given, too."""
    steps = len(set(traced.timesteps))
    stages = min(STAGES, steps) if settings.stages is None else settings.stages
    finer = settings.reference_multiple or (1 if steps < STAGES else _FINER)
    return replace(settings, stages=stages, reference_multiple=finer), stages, finer


def _levers(pipe: Pipeline, settings: Settings, reporter: Reporter) -> Levers:
    if not (why := _steps_stay(pipe, settings)):
        return Levers.BOTH
    reporter.say(f"{sampler_name(pipe)} {why}: levels alone are searched.")
    return Levers.PRUNE


def _steps_stay(pipe: Pipeline, settings: Settings) -> str:
    """Why the steps of a sampler had better stay as they are; empty where they need not."""
    if isinstance(pipe, OwnSampler):
        takes = pipe.times is not None
    elif not is_deterministic(pipe.scheduler):
        return "draws noise on the way"
    else:
        takes, steps = takes_timesteps(pipe.scheduler), settings.sampling.steps
        if takes and repeats(pipe.scheduler, steps):
            return f"takes a timestep twice in {steps} steps"
    return "" if takes else "takes no timesteps but its own"
