"""The comparison with all baselines, at equal real cost, on noises that no search has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from torch import Tensor

from ..compression.final import Found
from ..compression.reopening import asked_again, found_again
from ..compression.result import Compressed
from ..compression.study import Study, prepare
from ..execution import Crew, Executor, InProcess
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.probes import name_of
from ..pipelines.sampling import AnyPipeline
from ..scoring import metrics
from ..scoring.timing import Runner, Timing, measure
from ..utils.arguments import checked
from ..utils.limits import Batch, Count, Rounds, Several
from ..utils.progress import Reporter
from .cases import chosen, judged_by
from .report import Case, Row
from .rivals import Contender, contenders, random_rival, searched
from .sampling import Sampled, probes_of, sampled_all
from .tiles_reference import Reference


@checked("")
@dataclass(frozen=True)
class Extent:
    """How much the evaluation runs."""

    noises: Several = 64  # held-out noises for SNR and PSNR
    images: Count = 128  # images for the Fréchet distance
    rounds: Rounds = 5  # of timing, or more (scoring/timing.py)
    batch: Batch = 32  # samples per timed pipeline call; small batches time the overhead of small operations
    strip: Count = 8  # images shown of each contender: the worst and the typical ones
    random: Count | None = None  # candidates of the random search; None: as many as our own search ran


@dataclass(frozen=True)
class Conduct:
    """How an evaluation is run, none of which changes its figures.

    Args:
        reporter: shows progress.
        executor: who samples, and searches by chance: this process, or workers of a Ray cluster. What is timed runs in
            this process alone, when no worker is left.
        journals: a folder in which the random search keeps its scores; None: nothing is kept.
    """

    reporter: Reporter
    executor: Executor = field(default_factory=InProcess)
    journals: Path | None = None


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
    cases: tuple[Case, ...]  # which they are, the same for every row
    snr_db: tuple[tuple[float, ...], ...]  # of each of them to the reference, for every row; of the reference none
    random: tuple[Found, ...]  # of each budget


def evaluate(
    study: Study,
    found: Sequence[Found],
    real: Reference | None,
    extent: Extent,
    conduct: Conduct,
    saved: Compressed | None = None,
    alone: Alone | None = None,
) -> Evaluation:
    """Run every contender at every budget on the same held-out noises, and time them side by side.

    Args:
        found: the search's results.
        real: statistics of real data for the Fréchet distance; None leaves it out.
        saved: a result, which is then judged as it was saved; the other points of its front too, without rivals.
        alone: what pruning alone comes to, for rows of its own.
    """
    reporter, n = conduct.reporter, extent.noises
    with conduct.executor.crew(reporter) as crew:
        random = tuple(
            random_rival(study, one.limit, extent.random or one.evaluations, conduct.journals, reporter, crew)
            for one in found
        )
        entrants = _field(study, found, random, saved, alone)
        results, goal = _results(study, entrants, extent, max(n, extent.images if real else 0), reporter, crew)
    timed = [contender.runner.of_batch(extent.batch) for contender in entrants]
    timings = measure(study.pipe, timed, extent.rounds, reporter, [contender.macs_ratio for contender in entrants])
    (own, _), rows, shows, each = results[0], list[Row](), _gives_images(study.pipe), list[Tensor]()
    for contender, timing, seen in zip(entrants, timings, results, strict=True):
        is_goal = contender.name == "dense" and study.refers_to_own
        snr, to_own = (metrics.snr_db(truth[:n], seen.latents[:n]) for truth in (goal.latents, own))
        each.append(snr)
        psnr = float(metrics.psnr_db(goal.images[:n], seen.images[:n]).mean()) if shows and not is_goal else None
        rows.append(
            replace(
                _row(study, contender, timing),
                snr_db=None if is_goal else float(snr.mean()),
                own_snr_db=None if contender.name == "dense" else float(to_own.mean()),
                psnr_db=psnr,
                frechet_distance=real.distance(seen.images) if real else None,
            )
        )
    cases = _cases(study, each[judged_by(rows)], extent.strip if shows else 0)
    numbers = [case.noise for case in cases]
    closeness = tuple(
        () if row.snr_db is None else tuple(snr[numbers].tolist()) for row, snr in zip(rows, each, strict=True)
    )
    return Evaluation(tuple(rows), tuple(seen.images[numbers] for seen in results), cases, closeness, random)


def _field(
    study: Study, found: Sequence[Found], random: Sequence[Found], saved: Compressed | None, alone: Alone | None
) -> list[Contender]:
    """All that are compared, the dense model first."""
    entrants = [Contender("dense", 1.0, 1.0, Runner("dense", study.settings.sampling))]
    for one, rival in zip(found, random, strict=True):
        entrants += contenders(study, one, rival, saved)
    entrants += [] if saved is None else _other_points(study, saved)
    if alone is not None:
        entrants += [searched(alone.study, "pruning", one, corrected=False) for one in alone.found]
    return entrants


def _results(
    study: Study, entrants: Sequence[Contender], extent: Extent, count: int, reporter: Reporter, crew: Crew
) -> tuple[list[Sampled], Sampled]:
    """What each makes of the noises, and what the reference does, which may be the dense model."""
    asked = [(contender, count) for contender in entrants]
    if study.refers_to_own:
        results = sampled_all(study, asked, reporter, crew)
        return results, results[0]
    finest = Runner("reference", study.settings.sampling, timesteps=study.reference)
    asked.append((Contender("reference", 1.0, 1.0, finest), extent.noises))
    *results, goal = sampled_all(study, asked, reporter, crew)
    return results, goal


def _other_points(study: Study, saved: Compressed) -> list[Contender]:
    """The results of the same search for other budgets."""
    sampling = study.settings.sampling
    runners = [other.runner("diff-es", sampling, study.placement) for other in saved.others]
    reports = [other.report for other in saved.others]
    return [
        Contender("diff-es", report.limit, report.macs_ratio, runner, report.cost_ratio, report.evaluations)
        for report, runner in zip(reports, runners, strict=True)
    ]


def _cases(study: Study, snr_db: Tensor, count: int) -> tuple[Case, ...]:
    """The noises to show, of those with these SNRs, (N,)."""
    probes = probes_of(study, len(snr_db))
    names = [name_of(study.pipe, probe.condition) for probe in probes]
    return tuple(Case(number, kind, names[number]) for number, kind in chosen(snr_db, count))


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
        tried=contender.tried,
    )


def evaluated(
    pipe: AnyPipeline,
    fast: Compressed,
    extent: Extent | None = None,
    *,
    folder: str | PurePath | None = None,
    reporter: Reporter | None = None,
    executor: Executor | None = None,
) -> Evaluation:
    """The same of a result that was saved, or that ``compress`` just gave: its model is surveyed and calibrated anew.

    Args:
        folder: where the random search keeps its scores, such as that of the result; None: nothing is kept.
        executor: who samples, and searches by chance; None: this process.

    Raises:
        ArtefactError: made for another base model, or by hand.
    """
    fast.check(pipe)
    report, place, reporter = fast.report, None if folder is None else Path(folder), reporter or Reporter(quiet=True)
    conduct = Conduct(reporter, executor or InProcess(), place)
    ready = prepare(pipe, report.settings, reporter, *asked_again(fast, pipe))
    return evaluate(ready, (found_again(report),), None, extent or Extent(), conduct, fast)


def _gives_images(pipe: AnyPipeline) -> bool:
    return not isinstance(pipe, OwnSampler) or pipe.decode is not None
