"""What a search spends beside the denoiser: sampler steps, weight switches, asking and telling, the journal.

    python benchmarks/overhead.py --steps 20 --generations 5

Runs the table of sensitivities and a search for two budgets, journal on disk, and prints how much of the time is spent
neither in the denoiser's forward nor in the decoder's, with the functions that take most of it.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from diff_es.budget import Budget
from diff_es.compress import open_journal
from diff_es.judge import Judge
from diff_es.loading import load
from diff_es.pipeline import Sampling, denoiser_of
from diff_es.progress import Reporter
from diff_es.searching import evolve
from diff_es.sensitivity import sensitivity
from diff_es.settings import Levers, Settings
from diff_es.study import prepare


class Stopwatch:
    """Seconds inside of a class's forward."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    @contextmanager
    def on(self, kind: type, method: str) -> Iterator[None]:
        original = getattr(kind, method)

        @wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        setattr(kind, method, timed)
        try:
            yield
        finally:
            setattr(kind, method, original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--levers", type=Levers, default=Levers.BOTH)
    parser.add_argument("--functions", type=int, default=0, help="how many functions of the rest to print; slows all")
    args = parser.parse_args()
    pipe, reporter = load(args.model), Reporter()
    settings = Settings(
        sampling=Sampling(args.steps, 2.0), levers=args.levers, calibration=32, generations=args.generations, placings=3
    )
    ready, profile = prepare(pipe, settings, reporter), cProfile.Profile()
    denoiser, decoder = Stopwatch(), Stopwatch()
    with (
        tempfile.TemporaryDirectory() as folder,
        denoiser.on(type(denoiser_of(pipe)), "forward"),
        decoder.on(type(pipe.vae), "decode"),
    ):
        judge, inside = Judge(ready, open_journal(ready, Budget(0.5), Path(folder) / "journal", resume=False)), 0.0

        def show(part: str, began: float) -> None:
            nonlocal inside
            total, spent = time.perf_counter() - began, denoiser.seconds + decoder.seconds - inside
            inside += spent
            print(
                f"{part}: {total:.1f} s, {total - spent:.2f} s or {(total - spent) / total:.1%} of it elsewhere",
                flush=True,
            )

        if args.functions:
            profile.enable()
        began = time.perf_counter()
        table = sensitivity(ready, judge, reporter)
        show("table of sensitivities", began)
        searching = time.perf_counter()
        evolve(ready, (0.5, 0.7), judge, table, reporter)
        profile.disable()
        show("search", searching)
        inside = 0.0
        show("both", began)
    print(f"{denoiser.calls} calls of the denoiser")
    if args.functions:
        pstats.Stats(profile).sort_stats("tottime").print_stats(args.functions)


if __name__ == "__main__":
    main()
