"""Solvers at equal denoiser calls: how close do other people's come to the converged trajectory, and how close do ours?

    python benchmarks/solvers.py --model bundled --guidances 2 4 --seeds 0 1 2 --results solvers.jsonl

Each contender runs the dense model with so many calls of the denoiser, and is judged by mean SNR (dB) of its final
latents to those of a fine solver, and by the Fréchet distance of its images to real tiles, on noises that nothing was
chosen or fitted on. Ours are what a search for steps finds under a sampler, corrected: one search for all numbers of
calls. Rivals take the spacing that is best on other noises,
or are fitted to finely stepped runs of others. Results are appended to a file; what it holds is passed
over; the tables show all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from common import Model, Noises, Results, ResultsFile, Seeds, by_study, header, options, row, searched, with_range
from torch import Tensor

from diff_es import Effort, with_effort
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.evaluation.rivals.dense import latents_of
from diff_es.evaluation.rivals.fitted import (
    Descent,
    Fit,
    FittedWay,
    adams_bashforth,
    by_gradient,
    corrected,
    gits,
    pas,
)
from diff_es.evaluation.rivals.solvers import (
    FIRST_ORDER,
    OTHER_SECOND_ORDER,
    SECOND_ORDER,
    THIRD_ORDER,
    Rival,
    Spacing,
    Trial,
    converged,
    rivals_for,
    solver,
    trial_on,
)
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Pipeline, Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import decode
from diff_es.pruning.budget import Budget, MacsRatio
from diff_es.scoring.metrics import snr_db
from diff_es.scoring.timing import Way
from diff_es.utils.progress import Reporter

_CALLS = (5, 6, 8, 10, 14, 20)
_BASES = {
    "DDIM": (FIRST_ORDER, Spacing.TRAILING, 20),
    "DPM-Solver++ 2M": (SECOND_ORDER, Spacing.TRAILING, 8),
    "DPM-Solver++ 3M": (THIRD_ORDER, Spacing.TRAILING, 8),
    "DPM-Solver++ 3M, karras": (THIRD_ORDER, Spacing.KARRAS, 8),
    "UniPC 2": (OTHER_SECOND_ORDER, Spacing.TRAILING, 8),
}
"""Samplers that ours are searched under, their spacing, and how many times the most calls a run takes that ours are
compared with in the search: at first order it has to be finer."""
_USUAL = ("DPM-Solver++ 2M", "DDIM")


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    guidances: Annotated[tuple[float, ...], "tables for each"] = (2.0, 4.0)
    calls: Annotated[tuple[int, ...], "of the denoiser; ours are searched within the most of them"] = _CALLS
    rivals: Annotated[tuple[str, ...], "by name; all by default"] = ()
    bases: Annotated[tuple[str, ...], "that ours are searched under; " + "; ".join(_BASES), _BASES] = _USUAL
    effort: Annotated[float, "of our search, as a share of the thorough one's work"] = Effort.STANDARD.share
    sensitivity_noises: Annotated[int, "of our search"] = 4
    trial_noises: Annotated[int, "that rivals choose their spacing on"] = 4
    fitted_noises: Annotated[int, "that fitted rivals are fitted to"] = 16
    iterations: Annotated[int, "of those that are fitted by gradient"] = Descent.iterations
    seeds: Seeds = (0, 1, 2)
    noises: Noises = 256
    results: ResultsFile = Path("solvers.jsonl")


def main() -> None:
    asked = options(Options, __doc__)
    pipe = load(asked.model, dtype=torch.float32)
    results, reporter = Results(asked.results), Reporter()
    for seed in asked.seeds:
        for guidance in asked.guidances:
            judge = Judge(pipe, Sampling(max(asked.calls), guidance), seed, asked.noises, asked.trial_noises)
            told = {"model": asked.model, "guidance": guidance, "noises": asked.noises, "seed": seed}
            if not results.holds(key := {**told, "name": CONVERGED}):
                results.add([key | judge.agreement()])
            for name, rival in field(pipe, asked, seed).items():
                wanted = not asked.rivals or name in asked.rivals
                if wanted and not results.holds(key := {**told, "name": name}):
                    results.add([key | one for one in judged(pipe, judge, rival, asked.calls)])
            for base in asked.bases:
                if not results.holds(key := {**told, "name": f"ours, {base}"}):
                    results.add([key | one for one in ours(base, judge, asked, reporter)])
    show(results.rows())


Maker: TypeAlias = Callable[[Pipeline, Sampling, int, Fit], FittedWay]


def field(pipe: Pipeline, asked: Options, seed: int) -> dict[str, Rival]:
    """All that ours are compared with, by name: diffusers' solvers, and those that are fitted to the model."""
    descent = Descent(iterations=asked.iterations)
    makers: dict[str, Maker] = {
        "Adams-Bashforth 3": adams_bashforth,
        "GITS": gits,
        "PAS": pas,
        "fitted by gradient": partial(by_gradient, descent=descent),
        "ours, then by gradient": partial(by_gradient, descent=descent, start=corrected),
    }
    fit = Fit(noises=asked.fitted_noises, seed=seed)
    return rivals_for(pipe) | {name: partial(_fitted, maker, fit) for name, maker in makers.items()}


def _fitted(maker: Maker, fit: Fit, pipe: Pipeline, sampling: Sampling, calls: int, trial: Trial) -> Way:
    return maker(pipe, sampling, calls, fit)


CONVERGED = "converged"
"""The row of the fine solver."""


class Judge:
    """What is measured for one guidance and seed, and on which noises."""

    def __init__(self, pipe: Pipeline, sampling: Sampling, seed: int, noises: int, trial: int) -> None:
        self.sampling, self.seed, self._real = sampling, seed, load_reference()
        self._pipe, self._fine = pipe, converged(pipe, sampling)
        self._noises = make_probes(pipe, noises, seed, "evaluation")
        self._others = make_probes(pipe, trial, seed, "trial")

    @cached_property
    def trial(self) -> Trial:
        """What rivals are chosen by."""
        return trial_on(self._pipe, self.sampling, self._others)

    @cached_property
    def _goal(self) -> Tensor:
        return latents_of(self._pipe, self._fine, self._noises)

    def agreement(self) -> dict[str, object]:
        """How well the converged trajectory is known: what another fine solver comes to, in dB."""
        other = latents_of(self._pipe, converged(self._pipe, self.sampling, OTHER_SECOND_ORDER), self._others)
        seen = self._seen(self._pipe, self._goal)
        return {"calls": self._fine.steps, **seen, "snr": float(snr_db(self.trial.goal, other).mean())}

    def __call__(self, pipe: Pipeline, way: Way) -> dict[str, object]:
        """SNR and distance of a way to sample, by a pipeline of the same weights."""
        return self._seen(pipe, latents_of(pipe, way, self._noises))

    def _seen(self, pipe: Pipeline, latents: Tensor) -> dict[str, object]:
        distance = self._real.distance(decode(pipe, latents))
        return {"snr": float(snr_db(self._goal, latents).mean()), "distance": distance}


def judged(pipe: Pipeline, judge: Judge, rival: Rival, calls: Sequence[int]) -> Iterator[dict[str, object]]:
    """A rival at each number of calls, what was chosen for it, and how long that took."""
    for count in calls:
        trial, began = judge.trial, time.monotonic()
        way = rival(pipe, judge.sampling, count, trial)
        noises = way.fit_noises if isinstance(way, FittedWay) else len(trial.probes)
        took = {"chosen": way.name, "fitted_noises": noises, "seconds": time.monotonic() - began}
        yield {"calls": count, **judge(pipe, way), **took}


def ours(base: str, judge: Judge, asked: Options, reporter: Reporter) -> Iterator[dict[str, object]]:
    """What one search for steps of a sampler finds within each number of calls."""
    pipe, (kind, spacing, finer) = load(asked.model, dtype=torch.float32), _BASES[base]
    pipe.scheduler = solver(pipe, kind, spacing, judge.sampling, judge.sampling.steps).scheduler
    settings = Settings(
        sampling=judge.sampling,
        levers=Levers.STEPS,
        calibration_samples=2,  # nothing is pruned
        reference_multiple=finer,
        sensitivity_noises=asked.sensitivity_noises,
        seed=judge.seed,
    )
    settings, most, began = with_effort(settings, asked.effort), judge.sampling.steps, time.monotonic()
    budgets = {count / most: count for count in asked.calls}
    study = prepare(pipe, settings, reporter, Budget(MacsRatio(min(budgets))))
    results = searched(study, tuple(budgets), reporter)
    took = {"fitted_noises": settings.search_noises, "seconds": time.monotonic() - began, "effort": asked.effort}
    for found in results:
        way = by_study(study, found).runner
        calls = budgets[found.limit]
        assert way.steps <= calls, f"{way.steps} steps for {calls} calls"
        yield {"calls": calls, **judge(pipe, way), "steps": way.steps, "candidate": found.candidate.to_json(), **took}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """For each model and guidance the SNR and the distances of everyone, means over seeds with half the range, how far
    ours are above the best rival, and what rivals were chosen to be."""
    for model, guidance, noises in dict.fromkeys((one["model"], one["guidance"], one["noises"]) for one in rows):
        here = [one for one in rows if (one["model"], one["guidance"], one["noises"]) == (model, guidance, noises)]
        known = [one for one in here if one["name"] == CONVERGED]
        agreed, distance = (statistics.mean(one[name] for one in known) for name in ("snr", "distance"))
        seeds = len({one["seed"] for one in here})
        print(f"\n{model}, guidance {guidance:g}, {noises} noises, {seeds} seeds; the converged trajectory is")
        print(f"known to {agreed:.1f} dB, its Fréchet distance is {distance:.2f}\n")
        contenders = [one for one in here if one["name"] != CONVERGED]
        calls = sorted({one["calls"] for one in contenders})
        for column, title, sign in (("snr", "SNR (dB)", 1), ("distance", "Fréchet distance", -1)):
            _table(contenders, calls, column, title, sign)
        _choices([one for one in contenders if "chosen" in one], calls)


def _table(rows: Sequence[Mapping[str, Any]], calls: Sequence[int], column: str, title: str, sign: int) -> None:
    """One column of results by contender and calls; ``sign`` -1 where less is better."""
    values = dict[str, dict[int, list[float]]]()
    for one in rows:
        values.setdefault(one["name"], {}).setdefault(one["calls"], []).append(one[column])
    header(f"{title}, calls", *map(str, calls))
    for name, by_calls in values.items():
        row(name, *(_mean(by_calls.get(count, ())) for count in calls))
    rivals = {name: by_calls for name, by_calls in values.items() if not name.startswith("ours")}
    for name, by_calls in values.items():
        if name not in rivals:
            row(f"{name}: better than the best rival by", *(_ahead(by_calls, rivals, count, sign) for count in calls))
    print()


def _mean(values: Sequence[float]) -> str:
    """With half the range, of several."""
    if len(values) > 1:
        return with_range(values, 2)
    return f"{values[0]:.2f}" if values else "–"


def _choices(rows: Sequence[Mapping[str, Any]], calls: Sequence[int]) -> None:
    """What rivals were chosen or fitted to be, of each seed where they differ, and how long that took for all calls."""
    header("Chosen, calls", *map(str, calls), "seconds")
    for name in dict.fromkeys(one["name"] for one in rows):
        own = [one for one in rows if one["name"] == name]
        by_calls = [
            dict.fromkeys(one["chosen"].removeprefix(f"{name}, ") for one in own if one["calls"] == n) for n in calls
        ]
        seconds = sum(one["seconds"] for one in own) / len({one["seed"] for one in own})
        row(name, *(" / ".join(chosen) or "–" for chosen in by_calls), f"{seconds:.0f}")
    print()


def _ahead(ours: Mapping[int, Sequence[float]], rivals: Mapping[str, Mapping[int, Any]], calls: int, sign: int) -> str:
    means = {name: sign * statistics.mean(by[calls]) for name, by in rivals.items() if calls in by}
    if not means or calls not in ours:
        return "–"
    best = max(means, key=lambda name: means[name])
    return f"{sign * statistics.mean(ours[calls]) - means[best]:+.2f} ({best})"


if __name__ == "__main__":
    main()
