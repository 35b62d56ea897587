"""Are caches, by the libraries that people use, better than a schedule at the same measured time?

    python benchmarks/caches.py --results caches.jsonl
    python benchmarks/caches.py --model bundled-unet --guidance 2.5 --ours caches-ours-unet --results caches.jsonl

Every cache that takes the model at three settings, fewer steps of the dense model, and what our search finds within
each budget; from the same noises, which no search has seen, and timed side by side. Closeness in SNR (dB) to the dense
model's own steps, which is what a cache aims at, and to a finely stepped run of it, which our search aims at; Fréchet
distance of the images to real tiles; the share of the denoiser's MACs that really ran. The first table is sorted by
measured time; the second says what ours comes to at the time that each cache took, along a line between its budgets.
What was searched before is read from its folder, what was judged and timed by the same options from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from common import (
    Budgets,
    Guidance,
    Model,
    Noises,
    Results,
    ResultsFile,
    Rounds,
    Seed,
    Steps,
    header,
    options,
    row,
    snr,
    untimed,
)
from torch import Tensor

from diff_es import Compressed, Effort, Levers, Run, Sampling, Settings, compress, with_effort
from diff_es.compression.result import load as reopened
from diff_es.compression.store import MANIFEST
from diff_es.compression.survey import survey
from diff_es.evaluation.rivals.caches import counted, offered
from diff_es.evaluation.tiles_reference import load_reference
from diff_es.pipelines.families import Pipeline
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import decode, sample
from diff_es.scoring.timing import Runner, Way, measure
from diff_es.utils.progress import Reporter

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    steps: Steps = 20
    guidance: Guidance = 2.0
    levers: Annotated[Levers | None, "of our search; " + "; ".join(Levers), tuple(Levers)] = None
    effort: Annotated[float, "of our search: share of the thorough one's work"] = Effort.STANDARD.share
    budgets: Budgets = (0.8, 0.6, 0.45, 0.3)
    fewer: Annotated[tuple[int, ...], "steps of the dense model"] = (14, 10, 7)
    seed: Seed = 0
    noises: Noises = 256
    batch: Annotated[int, "samples of a call; caches decide for all of them at once"] = 32
    timed_batch: Annotated[int, "samples of a timed call"] = 32
    rounds: Rounds = 5
    ours: Annotated[Path, "folder of our result, which is searched if it is not there"] = Path("caches-ours")
    results: ResultsFile = Path("caches.jsonl")


def main() -> None:
    asked = options(Options, __doc__)
    pipe, results, reporter = load(asked.model, dtype=torch.float32), Results(asked.results), Reporter()
    field, judge = contenders(pipe, ours(pipe, asked, reporter), asked), Judge(pipe, asked, reporter)
    told = ("model", "steps", "guidance", "levers", "effort", "seed", "noises", "batch")
    key: Row = {name: getattr(asked, name) for name in told} | {"budgets": list(asked.budgets)}
    for name, way in field.items():
        kept(results, key | {"part": "judged", "name": name}, partial(judge.of, way))
    judged = {one["name"]: one for one in rows_of(results, key | {"part": "judged"})}
    key |= {"rounds": asked.rounds, "timed_batch": asked.timed_batch, "contenders": list(field), "part": "timed"}
    shares = [judged[name]["macs"] for name in field]
    kept(results, key, lambda: timed(pipe, field, shares, asked, reporter))
    show([judged[one["name"]] | one for one in rows_of(results, key)])


def kept(results: Results, key: Mapping[str, object], run: Callable[[], Sequence[Row]]) -> None:
    """Run what the file does not hold."""
    if not results.holds(key):
        results.add([{**key, **one} for one in run()])


def rows_of(results: Results, key: Mapping[str, object]) -> list[Row]:
    return [one for one in results.rows() if key.items() <= one.items()]


def ours(pipe: Pipeline, asked: Options, reporter: Reporter) -> tuple[Compressed, ...]:
    """What our search finds within each budget, saved, and taken from there the next time."""
    if not (asked.ours / MANIFEST).exists():
        least, *others = sorted(asked.budgets)
        settings = replace(with_effort(settings_of(asked), asked.effort), front=tuple(others))
        run = Run(journal=asked.ours.with_suffix(".jsonl"), resume=True, reporter=reporter)
        compress(pipe, settings=settings, run=run, macs=least).save(asked.ours)
    return reopened(asked.ours).front.points


def settings_of(asked: Options) -> Settings:
    return untimed(asked.steps, asked.guidance, asked.levers, asked.seed)


def contenders(pipe: Pipeline, found: Sequence[Compressed], asked: Options) -> dict[str, Way]:
    """All by name, the dense model first."""
    sampling = Sampling(asked.steps, asked.guidance, asked.batch)
    ways: list[Way] = [Runner("dense", sampling)]
    ways += [Runner(f"{steps} steps", replace(sampling, num_inference_steps=steps)) for steps in asked.fewer]
    ways += [one.runner(f"{OURS}, macs={one.report.limit:g}", sampling) for one in found]
    ways += offered(pipe, sampling, make_probes(pipe, asked.batch, asked.seed, "calibration"))
    return {way.name: way for way in ways}


class Judge:
    """What ways to sample come to, on noises that no search has seen."""

    def __init__(self, pipe: Pipeline, asked: Options, reporter: Reporter) -> None:
        self._pipe, self._reporter, self._real = pipe, reporter, load_reference()
        self._probes = make_probes(pipe, asked.noises, asked.seed, "evaluation")
        self._sampling = Sampling(asked.steps, asked.guidance, asked.batch)
        self._fine = survey(pipe, settings_of(asked), reporter).reference

    @cached_property
    def _dense(self) -> tuple[Tensor, float]:
        return self._sampled(Runner("dense", self._sampling))

    @cached_property
    def _finely(self) -> Tensor:
        return self._sampled(Runner("fine steps", self._sampling, timesteps=self._fine))[0]

    def of(self, way: Way) -> list[Row]:
        """Closeness in dB, distance, and the share of the dense model's MACs that ran."""
        (own, dense), (latents, macs) = self._dense, self._sampled(way)
        distance = self._real.distance(decode(self._pipe, latents))
        return [
            {"own": snr(own, latents), "fine": snr(self._finely, latents), "distance": distance, "macs": macs / dense}
        ]

    def _sampled(self, way: Way) -> tuple[Tensor, float]:
        """Latents, and the MACs that ran."""
        size, latents = way.sampling.batch, list[Tensor]()
        chunks = [self._probes[i : i + size] for i in range(0, len(self._probes), size)]
        task = self._reporter.task(f"sample {way.name}", len(chunks))
        with task as told, counted(self._pipe) as ran, way.context(self._pipe):
            for chunk in chunks:
                latents.append(sample(self._pipe, chunk, way.sampling))
                told.advance()
        return torch.cat(latents), ran.macs


def timed(
    pipe: Pipeline, field: Mapping[str, Way], shares: Sequence[float], asked: Options, reporter: Reporter
) -> list[Row]:
    ways = [way.of_batch(asked.timed_batch) for way in field.values()]
    timings = measure(pipe, ways, asked.rounds, reporter, shares)
    return [{"name": name, **asdict(one)} for name, one in zip(field, timings, strict=True)]


def show(rows: Sequence[Row]) -> None:
    """Two Markdown tables."""
    rows = sorted(rows, key=lambda one: -one["speedup"])
    header("contender", "measured speed-up", "share of MACs run", *COLUMNS.values(), "reliable")
    for one in rows:
        row(one["name"], speedup(one), f"{one['macs']:.2f}", *figures(one), one["doubt"] or "yes")
    print()
    ours = [one for one in rows if one["name"].startswith(OURS)]
    caches = [one for one in rows if "=" in one["name"] and one not in ours]
    header("cache", "measured speed-up", *(f"{column}, cache and ours" for column in COLUMNS.values()))
    for one in caches:
        own = at_time(ours, 1 / one["speedup"])
        pairs = zip(figures(one), ["–"] * len(COLUMNS) if own is None else figures(own), strict=True)
        row(one["name"], speedup(one), *(", ".join(pair) for pair in pairs))


def at_time(ours: Sequence[Row], time: float) -> Row | None:
    """Ours at a share of the dense model's time, along a line between the budgets next to it; the slowest of ours where
    more time is given, None where it is less than any takes."""
    places = sorted(ours, key=lambda one: -one["speedup"])  # fastest first
    if not places or time < 1 / places[0]["speedup"]:
        return None
    for fast, slow in pairwise(places):
        low, high = 1 / fast["speedup"], 1 / slow["speedup"]
        if time <= high:
            share = (time - low) / (high - low)
            return {column: (1 - share) * fast[column] + share * slow[column] for column in COLUMNS}
    return places[-1]


def speedup(one: Row) -> str:
    if one["speedup_low"] is None:
        return f"{one['speedup']:.2f}"
    return f"{one['speedup']:.2f} ({one['speedup_low']:.2f}–{one['speedup_high']:.2f})"


def figures(one: Row) -> Iterator[str]:
    return (f"{one[column]:.2f}" for column in COLUMNS)


OURS = "diff-es"
COLUMNS = {"own": "SNR to its own steps (dB)", "fine": "SNR to fine steps (dB)", "distance": "Fréchet distance"}


if __name__ == "__main__":
    main()
