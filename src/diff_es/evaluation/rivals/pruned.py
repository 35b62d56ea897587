"""What a search is judged beside at the same real cost: fewer steps, uniform and MosaicDiff-like pruning, chance."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...compression.compress import facts_of, open_journal
from ...compression.evaluator import Evaluator
from ...compression.final import Finalist, Found, select
from ...compression.result import Compressed
from ...compression.search_loop import by_chance, ranked
from ...compression.settings import Levers
from ...compression.starts import by_rule
from ...compression.study import Study
from ...execution import Crew
from ...pipelines.own_sampler import OwnSampler
from ...pipelines.sampling import AnyPipeline
from ...pipelines.tracing import trace
from ...pruning.budget import MacsRatio
from ...pruning.granularity import Width
from ...routing.placements import Placement, Resident
from ...scoring.timing import Runner, Way
from ...search import Candidate, NoneFits, Space, mosaic
from ...trajectory.corrections import Corrections
from ...utils.files import digest
from ...utils.locks import held_file
from ...utils.progress import Reporter
from ...utils.seeds import derive_seed
from .baselines import fewer_steps, uniform_width


@dataclass(frozen=True)
class Contender:
    """A way to sample with its name, budget and exact cost."""

    name: str
    budget: float
    macs_ratio: float
    runner: Way
    cost_ratio: float | None = None  # where it is priced in the unit of the budget
    tried: int | None = None  # schedules that the search for it ran; None: nothing was searched


def random_rival(
    study: Study,
    macs: float,
    evaluations: int,
    journals: Path | None,
    reporter: Reporter,
    crew: Crew | None = None,
) -> Found:
    """Random search, judged by the same probes and finalists.

    ``journals`` is a folder in which its scores are kept, so that a stopped evaluation goes on where it was; with
    other versions, or on another kind of device, in another file. ``crew`` scores; None: this process.
    """
    compute = study.budget.compute if study.prices else MacsRatio(macs)
    study = replace(study, budget=replace(study.budget, compute=compute))
    space, title = study.costs.space(macs), f"random search at {macs:g}"
    name = f"random-{macs:g}-{study.settings.seed}-{digest(facts_of(study))[:8]}.jsonl"
    path = None if journals is None else journals / name
    with held_file(path):
        evaluator = Evaluator(study, open_journal(study, path, reporter, resume=True), crew)
        search = by_chance(study, space, title, evaluations, evaluator, reporter)
        best = list(ranked(dict(search.ranking())))[: study.settings.finalists]
        return select(
            study, macs, list(map(Finalist, best)), evaluator, search.history, len(search.ranking()), reporter
        )


def scheduled(
    study: Study, name: str, budget: float, candidate: Candidate, corrections: Corrections | None = None
) -> Contender:
    """A schedule of the study, by its own library; ``corrections`` of its steps, by default those fitted to it."""
    plans = tuple(study.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels))
    fitted = study.corrections(candidate) if corrections is None else corrections
    timesteps, sampling = study.timesteps(candidate), study.settings.sampling
    runner = Runner(name, sampling, study.stages, plans, _placed(study), timesteps, fitted)
    return Contender(name, budget, study.macs.ratio(candidate), runner, study.costs.ratio(candidate))


def searched(study: Study, name: str, found: Found, *, corrected: bool) -> Contender:
    """What a search found, by the study's own library, with its steps corrected or not."""
    schedule = scheduled(study, name, found.limit, found.candidate, None if corrected else ())
    return replace(schedule, tried=found.evaluations)


def _uniform(study: Study, budget: float) -> Contender:
    """The same of every layer, to within one channel where MACs are counted; a level where they are not all there is:
    widths between the levels have no price."""
    free = isinstance(study.settings.method.ladder, Width) and study.costs == study.macs
    if not free or study.settings.levers is Levers.STEPS:
        return _shaped(study, "uniform", budget, "uniform", Space.uniform)
    kept = uniform_width(study.counter, study.anatomy, budget)
    plans = tuple(study.library.thinned(stage, kept) for stage in range(len(study.stages)))
    ratio = study.counter.thinned(kept) / study.counter.dense()
    runner = Runner("uniform", study.settings.sampling, study.stages, plans, _placed(study))
    return Contender("uniform", budget, ratio, runner, ratio)


def _affordable_steps(study: Study, budget: float) -> tuple[int, float]:
    """The most sampler steps within the budget and what they cost; some samplers call the denoiser more often than they
    step."""
    sampling, calls = study.settings.sampling, len(study.trace.timesteps)
    for steps in range(fewer_steps(sampling.steps, budget), 0, -1):
        ratio = len(trace(study.pipe, replace(sampling, num_inference_steps=steps)).timesteps) / calls
        if ratio <= budget:
            return steps, ratio
    return 1, len(trace(study.pipe, replace(sampling, num_inference_steps=1)).timesteps) / calls


def _like_mosaic(study: Study, budget: float) -> Contender:
    return _shaped(study, "mosaicdiff", budget, "mosaic", lambda space: mosaic(space, study.statistics.change))


def _shaped(study: Study, name: str, budget: float, purpose: str, shape: Callable[[Space], Candidate]) -> Contender:
    """A schedule of one shape, filled up to equal cost."""
    space, rng = study.costs.space(budget), np.random.default_rng(derive_seed(study.settings.seed, purpose))
    return scheduled(study, name, budget, space.repair(shape(space), rng), corrections=())


def contenders(
    study: Study, found: Found, random: Found | None = None, saved: Compressed | None = None
) -> tuple[Contender, ...]:
    """All rivals at one budget, without those that cannot be made so cheap.

    None of them has its steps corrected, which is ours, but for random search, whose scores say what it would find, and
    for the row that says what corrections alone are worth.

    ``random`` is what a random search found, if one was run. ``saved`` is what was made of ``found``; None makes it
    anew from the study's own library.
    """
    sampling, rivals, budget = study.settings.sampling, list[Contender](), found.limit
    if 0 not in study.costs.barred and _takes_steps(study.pipe):  # else the dense model's weights are too large
        steps, ratio = _affordable_steps(study, budget)
        fewer = Runner("fewer-steps", replace(sampling, num_inference_steps=steps))
        rivals.append(Contender("fewer-steps", budget, ratio, fewer, ratio))
    rivals += [scheduled(study, "trailing", budget, ruled) for ruled in by_rule(study, budget)[:1] if study.corrected]
    for pruned in (_uniform, _like_mosaic):
        with suppress(NoneFits):
            rivals.append(pruned(study, budget))
    if random is not None:
        rivals.append(searched(study, "random", random, corrected=random.corrected))
    ours = searched(study, "diff-es", found, corrected=found.corrected and saved is None)
    rivals.append(ours if saved is None else replace(ours, runner=saved.runner("diff-es", sampling, study.placement)))
    return tuple(rivals)


def _placed(study: Study) -> Placement:
    """Where the weights of a schedule wait."""
    return study.placement or Resident()


def _takes_steps(pipe: AnyPipeline) -> bool:
    """Whether it can be asked for another number of steps."""
    return not isinstance(pipe, OwnSampler) or pipe.times is not None
