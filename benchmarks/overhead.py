"""What a search spends beside the denoiser: fits of corrections, weight switches, asking and telling, the journal.

    python benchmarks/overhead.py --steps 20 --generations 8
    python benchmarks/overhead.py --model dit-s-4 --steps 10 --generations 1

Runs the table of sensitivities and a search for two budgets, journal on disk, and prints where the time goes: into the
denoiser and the decoder; into what any run of the pipeline spends around them, its own loop and its sampler; and into
Diff-ES; on request also the functions that take most of all of it. `dit-s-2` and `dit-s-4` are DiT-S of the published
size, with patches of 2 or 4 latents, random weights and hardly any decoder: shapes decide the time.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from common import CalibrationSamples, Generations, Guidance, SearchNoises, StageCount, Steps, options
from published_sizes import dit_s

from diff_es.compression.compress import open_journal
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.evolve import evolve
from diff_es.compression.sensitivity import changed, sensitivity
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.pipelines.families import Pipeline, Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.budget import Budget, MacsRatio
from diff_es.scoring.journal import Scale
from diff_es.solvers import prefix_cache as prefix
from diff_es.utils.patching import exchanged
from diff_es.utils.progress import Reporter

MODEL, STOCK, OURS = "denoiser and decoder", "pipeline and sampler", "Diff-ES"
LABELS = (MODEL, STOCK, OURS)
NONE = dict.fromkeys(LABELS, 0.0)


class Clock:
    """Seconds by label, each without those of what it calls under another one."""

    def __init__(self) -> None:
        self.seconds, self._inner = dict.fromkeys(LABELS, 0.0), [0.0]

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[label] += spent - self._inner.pop()
                self._inner[-1] += spent

        return run

    @contextmanager
    def on(self, label: str, kind: type, *methods: str) -> Iterator[None]:
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(exchanged(kind, method, self.timed(label, getattr(kind, method))))
            yield

    @contextmanager
    def watching(self, pipe: Pipeline) -> Iterator[None]:
        """What any call of the pipeline runs is its own, but for what Diff-ES has put into it."""

        def ours(owner: Any, name: str, value: Callable[..., Any]) -> AbstractContextManager[None]:
            return exchanged(owner, name, self.timed(OURS, value))

        denoiser, scheduler = type(denoiser_of(pipe)), type(pipe.scheduler)
        with (
            self.on(STOCK, type(pipe), "__call__"),
            self.on(STOCK, scheduler, "step", "set_timesteps"),
            exchanged(prefix, "exchanged", ours),
            self.on(OURS, denoiser, "__call__"),
            self.on(MODEL, denoiser, "forward"),
            self.on(MODEL, type(pipe.vae), "decode"),
        ):
            yield

    def show(self, part: str, began: float, before: Mapping[str, float] = NONE) -> None:
        """Where the time went since ``began``, when ``before`` had been spent; what nobody has, Diff-ES has."""
        total = time.perf_counter() - began
        spent = {label: self.seconds[label] - before[label] for label in LABELS}
        spent[OURS] = total - spent[MODEL] - spent[STOCK]
        parts = ", ".join(f"{label} {spent[label]:.1f} s or {spent[label] / total:.1%}" for label in LABELS)
        print(f"{part}, {total:.0f} s: {parts}", flush=True)


@dataclass(frozen=True)
class Options:
    model: Annotated[str, "dit-s-2, dit-s-4, or what loads"] = "bundled"
    steps: Steps = 20
    guidance: Guidance = 2.0
    stages: StageCount = 10
    calibration_samples: CalibrationSamples = 32
    search_noises: SearchNoises = 32
    generations: Generations = 5
    levers: Annotated[Levers, "; ".join(Levers)] = Levers.BOTH
    candidates: Annotated[int | None, "only so many of the table's, from all stages: for large models"] = None
    functions: Annotated[int, "how many functions to print; slows all"] = 0


def main() -> None:
    asked = options(Options, __doc__)
    pipe, reporter, clock = made(asked.model), Reporter(), Clock()
    settings = Settings(
        sampling=Sampling(asked.steps, asked.guidance),
        stages=asked.stages,
        levers=asked.levers,
        calibration_samples=asked.calibration_samples,
        search_noises=asked.search_noises,
        generations=asked.generations,
        timestep_generations=3,
    )
    ready, profile = prepare(pipe, settings, reporter, Budget(MacsRatio(0.5))), cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, clock.watching(pipe):
        journal = open_journal(ready, Path(folder) / "journal", reporter, resume=False)
        evaluator = Evaluator(ready, journal)
        if asked.functions:
            profile.enable()
        began, single = time.perf_counter(), changed(ready)
        if asked.candidates:
            evaluator.scores(single[:: -(-len(single) // asked.candidates)], Scale.ALONE)
            clock.show(f"{asked.candidates} candidates", began)
        else:
            table = sensitivity(ready, evaluator, reporter)
            clock.show("table of sensitivities", began)
            searching, before = time.perf_counter(), clock.seconds.copy()
            evolve(ready, (0.5, 0.7), evaluator, table, reporter)
            clock.show("search", searching, before)
            clock.show("both", began)
        profile.disable()
    if asked.functions:
        pstats.Stats(profile).sort_stats("tottime").print_stats(asked.functions)


def made(name: str) -> Pipeline:
    """A DiT-S, or the model of this name or in this folder."""
    patch = {"dit-s-2": 2, "dit-s-4": 4}.get(name)
    return load(name) if patch is None else dit_s(patch)


if __name__ == "__main__":
    main()
