"""The whole story on the bundled model, in minutes on two cores."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..compression.compress import finish, open_journal
from ..compression.evaluator import Judge
from ..compression.evolve import evolve
from ..compression.sensitivity import sensitivity
from ..compression.settings import Settings
from ..compression.study import prepare
from ..pipelines.families import Sampling
from ..pipelines.loading import load
from ..pruning.budget import Budget, MacsRatio
from ..utils.locks import held_folder
from ..utils.progress import Reporter
from .assemble import publish, tell
from .evaluate import Effort, evaluate
from .report import Story
from .tiles_reference import load_reference

BUDGETS = (0.7, 0.5)
SETTINGS = Settings(
    sampling=Sampling(num_inference_steps=20, guidance_scale=2.0, batch=16),
    calibration_samples=128,
    search_noises=12,
    first_rung=4,
    sensitivity_noises=5,
    finalists=3,
    held_out_noises=24,
    population=8,
    generations=6,
    timestep_generations=4,
)


def run_demo(folder: Path, seed: int, reporter: Reporter) -> tuple[dict[str, Any], Story]:
    """Compress the bundled model to each budget, compare with every alternative, write ``folder``.

    A demo that was stopped goes on where it was.
    """
    with held_folder(folder):
        return _run(folder, seed, reporter)


def _run(folder: Path, seed: int, reporter: Reporter) -> tuple[dict[str, Any], Story]:
    start = time.monotonic()
    pipe, settings = load("bundled"), replace(SETTINGS, seed=seed)
    ready, journals = prepare(pipe, settings, reporter, Budget(MacsRatio(min(BUDGETS)))), folder / "journals"
    journal = open_journal(ready, journals / f"search-{seed}.jsonl", reporter, resume=True)
    judge = Judge(ready, journal)
    table = sensitivity(ready, judge, reporter)
    found = evolve(ready, BUDGETS, judge, table, reporter)
    for one in found:
        finish(ready, one, table).save(folder / f"macs-{one.limit:g}")
    effort = Effort(rounds=2, random=150)
    evaluation = evaluate(ready, found, load_reference(), effort, journals, reporter)
    story = tell(ready, "bundled tiles DiT", found, evaluation, effort, time.monotonic() - start, [])
    return publish(folder, story), story
