"""The whole story on the bundled model, in minutes on two cores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .compress import Found, evolve, finish, open_journal, sensitivity
from .evaluate import Effort, evaluate
from .loading import load
from .pipeline import Sampling
from .progress import Reporter
from .report import Story
from .settings import Settings
from .story import publish, tell
from .study import prepare
from .tiles import load_reference

BUDGETS = (0.7, 0.5)
SETTINGS = Settings(
    sampling=Sampling(steps=20, guidance=2.0, batch=16),
    calibration=192,
    probes=8,
    finalists=8,
    held_out=32,
    population=10,
    generations=10,
)


def run_demo(folder: Path, seed: int, reporter: Reporter) -> tuple[dict[str, Any], Story]:
    """Compress the bundled model to each budget, compare with every alternative, write ``folder``.

    A demo that was stopped goes on where it was.
    """
    start = time.monotonic()
    pipe, settings = load("bundled"), SETTINGS.changed(seed=seed)
    ready = prepare(pipe, settings, reporter)
    journals, found = folder / "journals", dict[float, Found]()
    fitness = ready.fitness("search", settings.probes)
    alone = open_journal(ready, 1.0, journals / f"sensitivity-{seed}.jsonl", resume=True)
    table = sensitivity(ready, fitness, alone, reporter)
    for budget in BUDGETS:
        reporter.say(f"Searching a schedule of at most {budget:g} of the compute")
        journal = open_journal(ready, budget, journals / f"search-{budget:g}-{seed}.jsonl", resume=True)
        found[budget] = evolve(ready, budget, fitness, table, journal, reporter)
        finish(ready, budget, found[budget]).save(folder / f"macs-{budget:g}")
    effort = Effort()
    evaluation = evaluate(ready, found, load_reference(), effort, journals, reporter)
    notes = ["Choosing sampler steps and levels together is not part of this version; the figures show why it should."]
    story = tell(ready, "bundled tiles DiT", found, evaluation, effort, time.monotonic() - start, notes)
    return publish(folder, story), story
