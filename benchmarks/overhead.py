"""What a search spends beside the denoiser: fits of corrections, weight switches, asking and telling, the journal.

    python benchmarks/overhead.py --steps 20 --generations 8
    python benchmarks/overhead.py --model dit-s-4 --steps 10 --generations 1

Runs the table of sensitivities and a search for two budgets, journal on disk, and prints where the time goes: into the
denoiser and the decoder; into what any run of the pipeline spends around them, its own loop and its sampler; and into
Diff-ES; on request also the functions that take most of all of it. `dit-s-2` and `dit-s-4` are DiT-S of the published
size, with patches of 2 or 4 latents, random weights and hardly any decoder: shapes decide the time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from diff_es.compression.compress import open_journal
from diff_es.compression.evaluator import Judge
from diff_es.compression.evolve import evolve
from diff_es.compression.sensitivity import changed, sensitivity
from diff_es.compression.settings import Levers, Settings
from diff_es.compression.study import prepare
from diff_es.pipelines.families import Pipeline, Sampling
from diff_es.pipelines.loading import load
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.budget import Budget
from diff_es.scoring.journal import Scale
from diff_es.solvers import prefix_cache as prefix
from diff_es.utils.patching import exchanged
from diff_es.utils.progress import Reporter

MODEL, STOCK, OURS = "denoiser and decoder", "pipeline and sampler", "Diff-ES"


class Clock:
    """Seconds by label, each without those of what it calls under another one."""

    def __init__(self) -> None:
        self.seconds, self._inner = Counter[str](), [0.0]

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

    def show(self, part: str, began: float, before: Counter[str]) -> None:
        total, spent = time.perf_counter() - began, self.seconds - before
        spent[OURS] = total - spent[MODEL] - spent[STOCK]
        parts = ", ".join(
            f"{label} {spent[label]:.1f} s or {spent[label] / total:.1%}" for label in (MODEL, STOCK, OURS)
        )
        print(f"{part}, {total:.0f} s: {parts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--levers", type=Levers, default=Levers.BOTH)
    parser.add_argument("--candidates", type=int, help="only so many of the table's, from all stages: for large models")
    parser.add_argument("--functions", type=int, default=0, help="how many functions to print; slows all")
    args = parser.parse_args()
    pipe, reporter, clock = made(args.model), Reporter(), Clock()
    settings = Settings(
        sampling=Sampling(args.steps, 2.0),
        levers=args.levers,
        calibration_samples=32,
        generations=args.generations,
        timestep_generations=3,
    )
    ready, profile = prepare(pipe, settings, reporter), cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, clock.watching(pipe):
        journal = open_journal(ready, Budget(0.5), Path(folder) / "journal", reporter, resume=False)
        judge = Judge(ready, journal)
        if args.functions:
            profile.enable()
        began, none, single = time.perf_counter(), Counter[str](), changed(ready)
        if args.candidates:
            judge.scores(single[:: -(-len(single) // args.candidates)], Scale.ALONE)
            clock.show(f"{args.candidates} candidates", began, none)
        else:
            table = sensitivity(ready, judge, reporter)
            clock.show("table of sensitivities", began, none)
            searching, before = time.perf_counter(), clock.seconds.copy()
            evolve(ready, (0.5, 0.7), judge, table, reporter)
            clock.show("search", searching, before)
            clock.show("both", began, none)
        profile.disable()
    if args.functions:
        pstats.Stats(profile).sort_stats("tottime").print_stats(args.functions)


def made(name: str) -> Pipeline:
    """A DiT-S, or the model of this name or in this folder."""
    patch = {"dit-s-2": 2, "dit-s-4": 4}.get(name)
    if patch is None:
        return load(name)
    torch.manual_seed(0)
    denoiser = DiTTransformer2DModel(
        num_layers=12,
        num_attention_heads=6,
        attention_head_dim=64,
        patch_size=patch,
        in_channels=4,
        out_channels=8,
        sample_size=32,
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
    )
    for parameter in denoiser.parameters():
        if parameter.dim() > 1:  # those that training begins with at 0 too
            torch.nn.init.normal_(parameter, std=0.02)
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    decoder = AutoencoderKL(latent_channels=4, block_out_channels=(4, 8), norm_num_groups=4, **ends)
    pipe: Pipeline = DiTPipeline(denoiser.eval(), decoder.eval(), DDIMScheduler(clip_sample=False))
    return pipe


if __name__ == "__main__":
    main()
