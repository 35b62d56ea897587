"""Pruning a model of few steps, of which none can be spared: what is found, beside its rivals at equal cost.

    python benchmarks/few_steps.py --random --seeds 0 1 2 --results few-steps.jsonl
    python benchmarks/few_steps.py --scheduler LCMScheduler --random --seeds 0 1 2 --results few-steps-lcm.jsonl

For every seed one search yields the results for all budgets. All contenders are judged on noises that no search has
seen: by mean SNR (dB) to the dense model's own steps, by the Fréchet distance of their images to the real tiles, and by
the kernel distance to the dense model's images of the same noises, in features of the same classifier. Beside it, with
``--random``, is a random search that scores as many candidates on the same noises. Results are appended to a file;
seeds that it holds are passed over; the table shows all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

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
    header,
    options,
    row,
    searched,
    untimed,
    with_error,
    with_range,
)
from torch import Tensor

from diff_es import Effort, with_effort
from diff_es.cli.options import MEASURES, MeasureName
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.evaluation.rivals import Contender, contenders, random_rival
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Pipeline
from diff_es.pipelines.loading import load
from diff_es.pruning.budget import Budget, MacsRatio
from diff_es.scoring.metrics import EXACT_DB
from diff_es.scoring.timing import Runner
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Model = "bundled-turbo"
    scheduler: Annotated[str | None, "class of the sampler; the model's own by default"] = None
    steps: Steps = 4
    guidance: Guidance = 1.0
    levers: Annotated[Levers | None, "; ".join(Levers), tuple(Levers)] = None
    measure: Annotated[MeasureName, "of a search; ".join(MeasureName), tuple(MeasureName)] = MeasureName.SNR
    corrections: Annotated[int | None, "of steps, with levels alone too; the library's default otherwise"] = None
    random: Annotated[bool, "beside a random search of as many candidates, too"] = False
    effort: Annotated[float, "share of the thorough search's work"] = Effort.STANDARD.share
    budgets: Budgets = (0.75, 0.6, 0.5)
    seeds: Seeds = (0, 1, 2)
    noises: Noises = 512
    results: ResultsFile = Path("few-steps.jsonl")


def main() -> None:
    asked = options(Options, __doc__)
    pipe = load(asked.model, scheduler=asked.scheduler, dtype=torch.float32)
    real, reporter, results = load_reference(), Reporter(), Results(asked.results)
    for seed in asked.seeds:
        told = {name: getattr(asked, name) for name in ("model", "scheduler", "levers", "measure", "corrections")}
        key = {**told, "seed": seed}
        if not results.holds(key):
            settings = with_effort(untimed(asked.steps, asked.guidance, asked.levers, seed), asked.effort)
            settings = replace(settings, measure=MEASURES[asked.measure], corrections=asked.corrections)
            rows = judged(pipe, settings, asked.budgets, real, asked.noises, asked.random, reporter)
            results.add([key | one for one in rows])
    show(results.rows())


class Real(Protocol):
    """Real images, by features of their own."""

    def distance(self, images: Tensor) -> float:
        """Fréchet distance of images in [0, 1], (N, 3, H, W), to them."""

    def between(self, images: Tensor, others: Tensor) -> float:
        """Kernel distance of two sets of images in [0, 1], (N, 3, H, W) each."""


def judged(
    pipe: Pipeline,
    settings: Settings,
    budgets: Sequence[float],
    real: Real,
    noises: int,
    with_random: bool,
    reporter: Reporter,
) -> Iterator[dict[str, object]]:
    """A search, what it found, and how close everyone comes within each budget."""
    study = prepare(pipe, settings, reporter, Budget(MacsRatio(min(budgets))))
    closeness = Closeness(study, noises, reporter)
    field = [Contender("dense", 1.0, 1.0, Runner("dense", study.settings.sampling))]
    for found in searched(study, budgets, reporter):
        random = random_rival(study, found.limit, found.evaluations, None, reporter) if with_random else None
        field += contenders(study, found, random)
        yield {"name": "schedule", "cost": found.limit, "candidate": found.candidate.to_json()}
    for one in field:
        snr, images = closeness.seen(one)
        far = {"distance": real.distance(images), "kernel": real.between(closeness.images, images)}
        told = {"snr": snr, **far, "macs": one.macs_ratio}
        yield {"name": one.name, "cost": one.budget, **told}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Two Markdown tables of means over seeds: all of every contender, with half the range; and in short SNR (dB) and
    Fréchet distance, with how much farther from the real images ours are than what others prune to, and the error of
    that."""
    kept = dict[tuple[str, str, float], dict[str, dict[int, dict[str, Any]]]]()
    for one in rows:
        if one["name"] != "schedule":
            asked = ", ".join(f"{name} {one[name]}" for name in _ASKED if one.get(name) is not None)
            runs = kept.setdefault((one["model"], asked, one["cost"]), {}).setdefault(one["name"], {})
            runs[one["seed"]] = one
    kinds = sorted(kept, key=_order)
    header("model", "search", "cost", "contender", "seeds", "SNR (dB)", "Fréchet distance", "kernel distance")
    for model, asked, cost in kinds:
        for name, of_seeds in kept[model, asked, cost].items():
            each = list(of_seeds.values())
            shown = (with_range([one[column] for one in each], digits) for column, digits in _SHOWN.items())
            row(model, asked, f"{cost:g}", name, str(len(each)), *shown)
    print()
    header("model", "search", "cost", "seeds", *_SHORT, *(f"than {name}" for name in _PRUNED))
    for model, asked, cost in kinds:
        found = kept[model, asked, cost] | kept.get((model, asked, 1.0), {})
        if "diff-es" in found:
            cells = [_short(list(found.get(name, {}).values())) for name in _SHORT]
            farther = [_farther(found["diff-es"], found.get(name, {})) for name in _PRUNED]
            row(model, asked, f"{cost:g}", str(len(found["diff-es"])), *cells, *farther)


def _short(runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return "–"
    snr, distance = (statistics.mean(one[column] for one in runs) for column in ("snr", "distance"))
    return f"{snr:.1f}, {distance:.2f}" if snr < EXACT_DB else f"{distance:.2f}"


def _farther(ours: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> str:
    seeds = sorted(ours.keys() & others.keys())
    return with_error([ours[seed]["distance"] - others[seed]["distance"] for seed in seeds]) if seeds else "–"


def _order(kind: tuple[str, str, float]) -> tuple[str, str, float]:
    model, asked, cost = kind
    return model, asked, -cost


_SHORT, _PRUNED = ("diff-es", "uniform", "mosaicdiff", "fewer-steps", "dense"), ("uniform", "mosaicdiff")
"""The contenders of the second table."""
_ASKED = ("scheduler", "levers", "measure", "corrections")
"""What a search was asked for, where it was."""
_SHOWN = {"snr": 2, "distance": 2, "kernel": 4}
"""Columns of figures, and their digits."""


if __name__ == "__main__":
    main()
