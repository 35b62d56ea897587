"""The comparison with all baselines, at equal real cost, on noises that no search has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from ..compression.compress import open_journal
from ..compression.evaluator import Evaluator
from ..compression.final import Finalist, Found, select
from ..compression.reopening import asked_again, found_again
from ..compression.result import Compressed
from ..compression.search_loop import by_chance, ranked
from ..compression.sensitivity import by_rule
from ..compression.settings import Levers
from ..compression.study import Study, prepare
from ..pipelines.encodings import Encodings, encoded_once
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.probes import make_probes
from ..pipelines.sampling import AnyPipeline, decode, sample
from ..pipelines.tracing import trace
from ..pruning.budget import MacsRatio
from ..pruning.granularity import Width
from ..scoring import metrics
from ..scoring.timing import Runner, Timing, measure
from ..search import Candidate, NoneFits, Space, mosaic
from ..trajectory.corrections import Corrections
from ..utils.arguments import checked
from ..utils.limits import Batch, Count, Rounds, Several
from ..utils.locks import held_file
from ..utils.progress import Reporter
from ..utils.seeds import derive_seed
from .baselines import fewer_steps, uniform_width
from .report import Row
from .tiles_reference import Reference


@checked("")
@dataclass(frozen=True)
class Extent:
    """How much the evaluation runs."""

    noises: Several = 64  # held-out noises for SNR and PSNR
    images: Count = 128  # images for the Fréchet distance
    rounds: Rounds = 5  # of timing, or more (scoring/timing.py)
    batch: Batch = 32  # samples per timed pipeline call; small batches time the overhead of small operations
    strip: Count = 8  # images shown of each contender
    random: Count | None = None  # candidates of the random search; None: as many as our own search ran


@dataclass(frozen=True)
class Contender:
    """A runner with its name, budget and exact cost."""

    name: str
    budget: float
    macs_ratio: float
    runner: Runner
    cost_ratio: float | None = None  # where it is priced in the unit of the budget


@dataclass(frozen=True)
class Alone:
    """What the search of levels alone, the paper's, found for the same budgets."""

    study: Study
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Evaluation:
    """Rows for the table, images for the eye, and the random search's course for the plot."""

    rows: tuple[Row, ...]
    images: tuple[Tensor, ...]  # (strip, 3, H, W) in [0, 1], one for each row; of a loop without a decoder none
    random: tuple[Found, ...]  # of each budget


def random_rival(study: Study, macs: float, evaluations: int, journals: Path | None, reporter: Reporter) -> Found:
    """Random search, judged by the same probes and finalists.

    ``journals`` is a folder in which its scores are kept, so that a stopped evaluation goes on where it was.
    """
    path = None if journals is None else journals / f"random-{macs:g}-{study.settings.seed}.jsonl"
    compute = study.budget.compute if study.prices else MacsRatio(macs)
    study = replace(study, budget=replace(study.budget, compute=compute))
    space, title = study.costs.space(macs), f"random search at {macs:g}"
    with held_file(path):
        evaluator = Evaluator(study, open_journal(study, path, reporter, resume=True))
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
    fitted = study.held_out.corrections(candidate) if corrections is None else corrections
    timesteps, sampling = study.timesteps(candidate), study.settings.sampling
    runner = Runner(name, sampling, study.stages, plans, timesteps=timesteps, corrections=fitted)
    return Contender(name, budget, study.macs.ratio(candidate), runner, study.costs.ratio(candidate))


def _uniform(study: Study, budget: float) -> Contender:
    """The same of every layer, to within one channel where MACs are counted; a level where they are not all there is:
    widths between the levels have no price."""
    free = isinstance(study.settings.method.ladder, Width) and study.costs == study.macs
    if not free or study.settings.levers is Levers.STEPS:
        return _shaped(study, "uniform", budget, "uniform", Space.uniform)
    kept = uniform_width(study.counter, study.anatomy, budget)
    plans = tuple(study.library.thinned(stage, kept) for stage in range(len(study.stages)))
    ratio = study.counter.thinned(kept) / study.counter.dense()
    return Contender("uniform", budget, ratio, Runner("uniform", study.settings.sampling, study.stages, plans), ratio)


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
        rivals.append(scheduled(study, "random", budget, random.candidate, None if random.corrected else ()))
    ours = scheduled(study, "diff-es", budget, found.candidate, () if saved or not found.corrected else None)
    rivals.append(ours if saved is None else replace(ours, runner=saved.runner("diff-es", sampling)))
    if study.placement is None:
        return tuple(rivals)
    return tuple(replace(one, runner=replace(one.runner, placement=study.placement)) for one in rivals)


def evaluate(
    study: Study,
    found: Sequence[Found],
    real: Reference | None,
    extent: Extent,
    journals: Path | None,
    reporter: Reporter,
    saved: Compressed | None = None,
    alone: Alone | None = None,
) -> Evaluation:
    """Run every contender at every budget on the same held-out noises, and time them side by side.

    Args:
        found: the search's results.
        real: statistics of real data for the Fréchet distance; None leaves it out.
        journals: where the random search keeps its scores, if anywhere.
        saved: a result, which is then judged as it was saved.
        alone: what pruning alone comes to, for rows of its own.
    """
    random = tuple(
        random_rival(study, one.limit, extent.random or one.evaluations, journals, reporter) for one in found
    )
    field = [Contender("dense", 1.0, 1.0, Runner("dense", study.settings.sampling))]
    for one, rival in zip(found, random, strict=True):
        field += contenders(study, one, rival, saved)
    field += (
        []
        if alone is None
        else [scheduled(alone.study, "pruning", one.limit, one.candidate, ()) for one in alone.found]
    )
    timed = [replace(c.runner, sampling=replace(c.runner.sampling, batch=extent.batch)) for c in field]
    timings = measure(study.pipe, timed, extent.rounds, reporter, [contender.macs_ratio for contender in field])
    count = max(extent.noises, extent.images if real else 0, extent.strip)
    n, rows, shows = extent.noises, list[Row](), _gives_images(study.pipe)
    with encoded_once(study.pipe, Encodings()):
        results = [sampled(study, contender, count, reporter) for contender in field]
        (own, _), (goal, goal_images) = results[0], results[0]
        if not study.refers_to_own:
            finest = Runner("reference", study.settings.sampling, timesteps=study.reference)
            reference = Contender("reference", 1.0, 1.0, finest)
            goal, goal_images = sampled(study, reference, n, reporter)
    for contender, timing, seen in zip(field, timings, results, strict=True):
        is_goal = contender.name == "dense" and study.refers_to_own
        snr, to_own = (float(metrics.snr_db(truth[:n], seen[0][:n]).mean()) for truth in (goal, own))
        psnr = float(metrics.psnr_db(goal_images[:n], seen[1][:n]).mean()) if shows and not is_goal else None
        rows.append(
            replace(
                _row(study, contender, timing),
                snr_db=None if is_goal else snr,
                own_snr_db=None if contender.name == "dense" else to_own,
                psnr_db=psnr,
                frechet_distance=real.distance(seen[1]) if real else None,
            )
        )
    strip = extent.strip if shows else 0
    return Evaluation(tuple(rows), tuple(images[:strip] for _, images in results), random)


def _row(study: Study, contender: Contender, timing: Timing) -> Row:
    """What a contender costs; how close it comes is not said yet."""
    return Row(
        contender=contender.name,
        budget=contender.budget,
        steps=contender.runner.steps,
        macs_ratio=contender.macs_ratio,
        latency_ms=timing.pipeline_ms,
        latency_spread=timing.pipeline_spread,
        speedup=timing.speedup,
        speedup_low=timing.speedup_low,
        speedup_high=timing.speedup_high,
        denoiser_speedup=timing.denoiser_speedup,
        doubt=timing.doubt,
        snr_db=None,
        own_snr_db=None,
        psnr_db=None,
        frechet_distance=None,
        weight_bytes=contender.runner.weight_bytes(study.pipe),
    )


def evaluated(
    pipe: AnyPipeline,
    fast: Compressed,
    extent: Extent | None = None,
    *,
    folder: str | PurePath | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """The same of a result that was saved, or that ``compress`` just gave: its model is surveyed and calibrated anew.

    Args:
        folder: where the random search keeps its scores, such as that of the result; None: nothing is kept.

    Raises:
        ArtefactError: made for another base model, or by hand.
    """
    fast.check(pipe)
    report, place, reporter = fast.report, None if folder is None else Path(folder), reporter or Reporter(quiet=True)
    ready = prepare(pipe, report.settings, reporter, *asked_again(fast, pipe))
    return evaluate(ready, (found_again(report),), None, extent or Extent(), place, reporter, fast)


def _takes_steps(pipe: AnyPipeline) -> bool:
    """Whether it can be asked for another number of steps."""
    return not isinstance(pipe, OwnSampler) or pipe.times is not None


def _gives_images(pipe: AnyPipeline) -> bool:
    return not isinstance(pipe, OwnSampler) or pipe.decode is not None


def sampled(study: Study, contender: Contender, count: int, reporter: Reporter) -> tuple[Tensor, Tensor]:
    """Final latents and images of the first ``count`` evaluation probes."""
    pipe, sampling = study.pipe, contender.runner.sampling
    settings, latents = study.settings, list[Tensor]()
    probes = make_probes(pipe, count, settings.seed, "evaluation", settings.prompts)
    chunks = [probes[i : i + sampling.batch] for i in range(0, count, sampling.batch)]
    title = f"sample {contender.name} at {contender.budget}"
    with reporter.task(title, len(chunks)) as task, contender.runner.context(pipe):
        for chunk in chunks:
            latents.append(sample(pipe, chunk, sampling))
            task.advance()
    stacked = torch.cat(latents)
    return stacked, decode(pipe, stacked, sampling.batch)
