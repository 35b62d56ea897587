"""What more work buys: searches at several efforts, judged on noises that chose nothing.

    python benchmarks/effort.py --model bundled-unet --seeds 0 1 2 --results effort.jsonl

Work is counted, in dense images of the user's own setting: each call of the denoiser by its MACs, prefixes that are
known left out (``compression/simulation.py``, which goes through the same search). One run of ours yields the results
for all budgets. The paper's search (20 candidates a generation from random ones, a level for the whole denoiser, eight
noises) and random search are run once for each budget, pruning alone, where they get an equal part of the work that
ours does at that effort, calibration aside; a call of theirs counts as much as the budget says. ``measured`` is ours as
its default was once: three levels of each unit measured on ten noises, at every effort. Results are appended to a file;
those that it holds are passed over; the table shows all. What a search of ours has scored is kept in a journal beside
that file until its result is there: run again, a stopped one goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
from common import (
    Budgets,
    Closeness,
    Guidance,
    Model,
    Noises,
    Results,
    ResultsFile,
    Seeds,
    Steps,
    by_study,
    header,
    options,
    row,
    searched,
    untimed,
)
from search import paper, random, run

from diff_es import Levers, Settings, with_effort
from diff_es.compression.simulation import simulate
from diff_es.compression.study import Study, prepare
from diff_es.compression.survey import survey
from diff_es.evaluation.rivals import Contender, scheduled
from diff_es.pipelines.loading import load
from diff_es.pruning.budget import Budget
from diff_es.pruning.granularity import Granularity
from diff_es.scoring.journal import Journal
from diff_es.utils.files import digest
from diff_es.utils.progress import Reporter


class Kind(StrEnum):
    """Who searches."""

    OURS = "ours"
    MEASURED = "measured"  # ours, with three levels of each unit measured on ten noises
    PAPER = "paper"
    RANDOM = "random"


_RIVALS = {Kind.PAPER: paper, Kind.RANDOM: random}
_NOISES = 8
"""That the paper's search and random search judge a candidate on."""


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    searches: Annotated[tuple[Kind, ...], "; ".join(Kind)] = tuple(Kind)
    levers: Annotated[tuple[Levers, ...], "; ".join(Levers)] = (Levers.PRUNE, Levers.BOTH)
    efforts: Annotated[tuple[float, ...], "shares of the thorough search's work"] = (0.03, 0.1, 0.33, 1.0)
    budgets: Budgets = (0.75, 0.5)
    seeds: Seeds = (0, 1, 2)
    steps: Steps = 20
    guidance: Guidance = 2.0
    noises: Noises = 64
    results: ResultsFile = Path("effort.jsonl")


def main(asked: Options) -> None:
    pipe, reporter, results = load(asked.model, dtype=torch.float32), Reporter(), Results(asked.results)
    for seed, levers, effort in product(asked.seeds, asked.levers, asked.efforts):
        key = {"model": asked.model, "steps": asked.steps, "levers": levers, "effort": effort, "seed": seed}
        missing = [kind for kind in asked.searches if not results.holds({**key, "search": kind})]
        settings = with_effort(untimed(asked.steps, asked.guidance, levers, seed), effort)
        for kind in (one for one in missing if one not in _RIVALS):
            measured = replace(settings, sensitivity_levels=3, sensitivity_noises=10)
            chosen = measured if kind is Kind.MEASURED else settings
            ready, (work, _) = prepare(pipe, chosen, reporter), images(pipe, chosen, asked.budgets)
            known = {**key, "search": kind, "budgets": asked.budgets, "guidance": asked.guidance}
            path = asked.results.with_suffix(f".{digest(known)[:16]}.journal")
            found = searched(ready, asked.budgets, reporter, Journal(path, known, resume=True))
            closeness = Closeness(ready, asked.noises, reporter)
            snr = {f"{one.limit:g}": closeness(by_study(ready, one)) for one in found}
            results.add([{**key, "search": kind, "work": work, "snr": snr}])
            path.unlink()
        rivals = [kind for kind in missing if kind in _RIVALS and levers is Levers.PRUNE]
        if rivals:
            work, calibration = images(pipe, settings, asked.budgets)
            each = (work - calibration) / len(asked.budgets)
            whole = replace(settings.method, granularity=Granularity.WHOLE)
            ready = prepare(pipe, replace(settings, method=whole), reporter)
            closeness = Closeness(ready, asked.noises, reporter)
            for kind in rivals:
                snr = {f"{budget:g}": closeness(rival(ready, kind, budget, each)) for budget in asked.budgets}
                results.add([{**key, "search": kind, "work": work, "snr": snr}])
    show(results.rows())


def rival(ready: Study, kind: Kind, budget: float, work: float) -> Contender:
    """The best that another search finds within a budget by so much work, in dense images."""
    space, fitness = ready.costs.space(budget), ready.fitness("search", _NOISES)
    calls = work * len(ready.trace.timesteps) / budget
    _, best, _ = run(_RIVALS[kind](space, (), ready.settings.seed), fitness, False, calls, None)
    return scheduled(ready, kind, budget, best, None)


def images(pipe: Any, settings: Settings, budgets: tuple[float, ...]) -> tuple[float, float]:
    """The denoiser work of a search for all of these budgets, calibration included, and that of calibration alone, in
    dense images."""
    several = replace(settings, front=budgets)
    surveyed = survey(pipe, several, Reporter(quiet=True), Budget.of(max(budgets)))
    work = simulate(surveyed)
    image = surveyed.counter.dense() * len(surveyed.trace.timesteps)
    return work.macs / image, work.calibration.macs / image


def show(rows: list[dict[str, Any]]) -> None:
    kept: dict[tuple[str, str, str, float, str], list[Mapping[str, Any]]] = {}
    for one in rows:
        for cost in one["snr"]:
            kept.setdefault((one["model"], one["levers"], cost, one["effort"], one["search"]), []).append(one)
    header("model", "levers", "cost", "effort", "search", "dense images", "SNR (dB) by seed", "mean")
    for (model, levers, cost, effort, search), runs in sorted(kept.items()):
        scores = [one["snr"][cost] for one in sorted(runs, key=lambda one: int(one["seed"]))]
        work, shown = statistics.mean(one["work"] for one in runs), ", ".join(f"{score:.1f}" for score in scores)
        row(model, levers, cost, f"{effort:g}", search, f"{work:,.0f}", shown, f"{statistics.mean(scores):.2f}")


if __name__ == "__main__":
    main(options(Options, __doc__))
