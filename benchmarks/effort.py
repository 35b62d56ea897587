"""What more work buys: the same search at several efforts, judged on noises that chose nothing.

    python benchmarks/effort.py --model bundled-unet --seeds 0 1 2 --results effort.jsonl

Work is counted, in dense images of the user's own setting: each call of the denoiser by its MACs, prefixes that are
known left out (``compression/simulation.py``, which goes through the same search). One run yields the results for all
budgets. Results are appended to a file; those that it holds are passed over; the table shows all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
)

from diff_es import Levers, Method, Sampling, Settings, Width, with_effort
from diff_es.compression.simulation import simulate
from diff_es.compression.study import prepare
from diff_es.compression.survey import survey
from diff_es.pipelines.loading import load
from diff_es.pruning.budget import Budget
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
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
    for seed in asked.seeds:
        for levers in asked.levers:
            for effort in asked.efforts:
                key = {"model": asked.model, "steps": asked.steps, "levers": levers, "effort": effort, "seed": seed}
                if results.holds(key):
                    continue
                plain = Settings(
                    sampling=Sampling(asked.steps, asked.guidance),
                    levers=levers,
                    method=Method(Width(dense=())),
                    seed=seed,
                )
                settings = with_effort(plain, effort)
                work = images(pipe, settings, asked.budgets)
                ready = prepare(pipe, settings, reporter)
                closeness = Closeness(ready, asked.noises, reporter)
                found = searched(ready, asked.budgets, reporter)
                snr = {f"{one.limit:g}": closeness(by_study(ready, one)) for one in found}
                results.add([{**key, "work": work, "snr": snr}])
    show(results.rows())


def images(pipe: Any, settings: Settings, budgets: tuple[float, ...]) -> float:
    """The denoiser work of a search for all of these budgets, calibration included, in dense images."""
    several = replace(settings, front=budgets)
    surveyed = survey(pipe, several, Reporter(quiet=True), Budget.of(max(budgets)))
    work = simulate(surveyed)
    return work.macs / (surveyed.counter.dense() * len(surveyed.trace.timesteps))


def show(rows: list[dict[str, Any]]) -> None:
    kept: dict[tuple[str, str, str, float], list[Mapping[str, Any]]] = {}
    for one in rows:
        for cost in one["snr"]:
            kept.setdefault((one["model"], one["levers"], cost, one["effort"]), []).append(one)
    header("model", "levers", "cost", "effort", "dense images", "SNR (dB) by seed", "mean")
    for (model, levers, cost, effort), runs in sorted(kept.items()):
        scores = [one["snr"][cost] for one in sorted(runs, key=lambda one: int(one["seed"]))]
        work, shown = statistics.mean(one["work"] for one in runs), ", ".join(f"{score:.1f}" for score in scores)
        row(model, levers, cost, f"{effort:g}", f"{work:,.0f}", shown, f"{statistics.mean(scores):.2f}")


if __name__ == "__main__":
    main(options(Options, __doc__))
