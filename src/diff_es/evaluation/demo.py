"""The whole story on the bundled model, in minutes on two cores."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..compression.compress import began_with, open_journal, result_of
from ..compression.evaluator import Evaluator
from ..compression.evolve import evolve
from ..compression.sensitivity import sensitivity
from ..compression.settings import Levers, Settings
from ..compression.starts import by_rule
from ..compression.study import Study, prepare
from ..compression.survey import as_measured, survey
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.loading import load
from ..pruning.budget import Budget, MacsRatio
from ..pruning.granularity import Granularity
from ..pruning.method import Method
from ..utils.locks import held_folder
from ..utils.progress import Reporter
from .assemble import Provenance, publish, side_by_side, tell
from .evaluate import Alone, Conduct, Extent, evaluate
from .report import Story
from .tiles_reference import load_reference

BUDGETS = (0.7, 0.5)
SETTINGS = Settings(
    sampling=Sampling(num_inference_steps=20, guidance_scale=2.0, batch=16),
    stages=5,
    method=Method(granularity=Granularity.KIND),
    search_noises=8,
    first_rung=3,
    sensitivity_levels=3,
    finalists=1,
    held_out_noises=8,
    population=8,
    generations=4,
    timestep_generations=4,
    timestep_offspring=6,
)
EXTENT = Extent(noises=48, images=96, batch=8, random=32)
PICTURE = "side-by-side.png"


def run_demo(folder: Path, seed: int, reporter: Reporter) -> tuple[Mapping[str, object], Story]:
    """Compress the bundled model to each budget, compare with every alternative, write ``folder``.

    What chosen steps are worth by themselves is said first, before anything is calibrated. A demo that was stopped goes
    on where it was.
    """
    with held_folder(folder):
        return _run(folder, seed, reporter)


def _run(folder: Path, seed: int, reporter: Reporter) -> tuple[Mapping[str, object], Story]:
    start, journals = time.monotonic(), folder / "journals"
    resumed = any(journals.glob("*.jsonl"))
    pipe, searched = load("bundled"), journals / f"search-{seed}.jsonl"
    settings = settings_of(seed, searched)
    say_first(pipe, settings, reporter)
    ready = prepare(pipe, settings, reporter, Budget(MacsRatio(min(BUDGETS))))
    evaluator = Evaluator(ready, open_journal(ready, searched, reporter, resume=True))
    table = sensitivity(ready, evaluator, reporter)
    found = evolve(ready, BUDGETS, evaluator, table, reporter)
    for one in found:
        result_of(ready, one, table).save(folder / f"macs-{one.limit:g}")
    alone = levels_alone(ready, journals / f"levels-{seed}.jsonl", reporter)
    evaluation = evaluate(ready, found, load_reference(), EXTENT, Conduct(reporter, journals=journals), alone=alone)
    command = shlex.join(["diff-es", "demo", "--out", str(folder), "--seed", str(seed)])
    made = Provenance(time.monotonic() - start, command, table, resumed=resumed)
    story = tell(ready, "bundled tiles DiT", found, evaluation, EXTENT, made)
    side_by_side(evaluation).save(folder / PICTURE)
    return publish(folder, story), story


def settings_of(seed: int, journal: Path) -> Settings:
    """The demo's, with what was measured when the search of a journal began: a second measurement might differ."""
    settings, begun = replace(SETTINGS, seed=seed), began_with(journal)
    return settings if begun is None else as_measured(settings, begun.method)


def say_first(pipe: Pipeline, settings: Settings, reporter: Reporter) -> None:
    """What fewer steps of the dense model come to, as the sampler takes them and corrected: nothing need be calibrated
    for it."""
    few = replace(settings, levers=Levers.STEPS, search_noises=settings.sampling.batch, held_out_noises=8)
    ready = prepare(pipe, few, reporter)
    own = ready.fresh.plain(ready.own)
    reporter.say(f"The dense model's {ready.settings.sampling.steps} steps: {own:.1f} dB from its own finer run.")
    for budget in BUDGETS:
        trailing, *_ = by_rule(ready, budget)
        plain, corrected = ready.fresh.plain(trailing), ready.fresh(trailing)
        reporter.say(f"{sum(trailing.steps)} trailing steps: {plain:.1f} dB; corrected: {corrected:.1f} dB.")


def levels_alone(ready: Study, journal: Path, reporter: Reporter) -> Alone:
    """The paper's search, which leaves the steps as they are, with the same statistics and library of levels."""
    settings = replace(ready.settings, levers=Levers.PRUNE, corrections=0)
    surveyed = survey(ready.pipe, settings, reporter, ready.budget)
    study = Study(**vars(surveyed), statistics=ready.statistics, library=ready.library, known_bytes=ready.known_bytes)
    evaluator = Evaluator(study, open_journal(study, journal, reporter, resume=True))
    return Alone(study, evolve(study, BUDGETS, evaluator, sensitivity(study, evaluator, reporter), reporter))
