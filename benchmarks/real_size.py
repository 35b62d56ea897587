"""A denoiser of published size, with random weights, all the way within a limit of memory: calibrated, ranked,
searched, saved, and run in a process of its own.

    python benchmarks/real_size.py --model dit --memory 2 --results real-size.jsonl
    python benchmarks/real_size.py --model sdxl --memory 3 --ranking wanda --results real-size.jsonl
    python benchmarks/real_size.py --model flux --memory 3 --ranking wanda --results real-size.jsonl

DiT-XL/2, SDXL's UNet, or FLUX.1 of three double and three single blocks, in bfloat16: ten stages on the fewest steps,
noises and latents that they take, since what is measured is memory and time, not quality. Prints the time of the whole
and the peak of memory that each process held, as the system counts it, beside what was foretold and the dense model's
own bytes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
from common import Results, Seed, StageCount, Steps, header, in_its_own_process, options, row
from diffusers import DiTPipeline, FluxPipeline, StableDiffusionXLPipeline
from published_sizes import dit, flux_pipeline, sdxl, sdxl_pipeline, weighted

from diff_es import (
    Compact,
    Compressed,
    Granularity,
    Levers,
    Method,
    Obs,
    Ridge,
    Run,
    Sampling,
    Settings,
    Wanda,
    Width,
    compress,
    forecast,
)
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.routing.placements import parameter_bytes
from diff_es.utils.memory import peak_memory
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    model: Annotated[str, "whose sizes it has", ("dit", "sdxl", "flux")] = "dit"
    shrink: Annotated[int, "what widths and depths are divided by"] = 1
    memory: Annotated[float, "GB for statistics and weights of levels"] = 2.0
    stages: StageCount = 10
    steps: Steps = 10
    latents: Annotated[int, "along each side of an image"] = 32
    levels: Annotated[int, "of the ladder"] = 4
    ranking: Annotated[str, "obs with compensation, or wanda without", ("obs", "wanda")] = "obs"
    macs: Annotated[float, "the budget"] = 0.7
    seed: Seed = 0
    results: Annotated[Path | None, "file of JSON lines that the result is added to"] = None
    load: Annotated[Path | None, "run the result in this folder, as the process of its own does"] = None

    @property
    def prompts(self) -> tuple[str, ...] | None:
        return None if self.model == "dit" else ("a stone",)

    @property
    def sampling(self) -> Sampling:
        """A DiT makes images of one size."""
        side = None if self.model == "dit" else self.latents
        return Sampling(self.steps, 1.0, 1, None, side, side)


def pipeline(asked: Options) -> DiTPipeline | StableDiffusionXLPipeline | FluxPipeline:
    """In bfloat16 from the start: weights of twice the size are never there."""
    torch.manual_seed(asked.seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        return _made(asked.model, asked.shrink)
    finally:
        torch.set_default_dtype(torch.float32)


def _made(model: str, shrink: int) -> DiTPipeline | StableDiffusionXLPipeline | FluxPipeline:
    if model == "sdxl":
        widths = [64 * max(1, width // 64 // shrink) for width in (320, 640, 1280)]
        return sdxl_pipeline(weighted(sdxl(widths, [max(1, count // shrink) for count in (1, 2, 10)])))
    if model == "flux":
        return flux_pipeline(max(1, 3 // shrink), max(1, 3 // shrink), 24 // shrink)
    return dit(patch=2, num_layers=28 // shrink, num_attention_heads=16 // shrink, attention_head_dim=72)


def main(asked: Options) -> None:
    pipe = pipeline(asked)
    if asked.load is not None:
        with Compressed.from_pretrained(asked.load).routed(pipe):
            sample(pipe, make_probes(pipe, 1, asked.seed, "sample", asked.prompts), asked.sampling)
        print(peak_memory(torch.device("cpu")) / 1e9)
        return
    ranking, compensation = (Obs(), Ridge()) if asked.ranking == "obs" else (Wanda(), None)
    method = Method(Width(asked.levels, dense=()), ranking, compensation, granularity=Granularity.WHOLE)
    settings = Settings(
        sampling=asked.sampling,
        prompts=asked.prompts,
        stages=asked.stages,
        levers=Levers.PRUNE,
        method=method,
        calibration_samples=1,
        search_noises=1,
        first_rung=0,
        sensitivity_noises=1,
        held_out_noises=1,
        finalists=1,
        population=2,
        generations=1,
        seed=asked.seed,
    )
    placement = None if compensation else Compact()  # slices of the dense weights are made when their stage begins
    run = Run(memory=asked.memory, placement=placement, reporter=Reporter())
    foretold = forecast(pipe, asked.macs, settings, run)
    began = time.monotonic()
    fast = compress(pipe, asked.macs, settings, run)
    seconds, searched = time.monotonic() - began, peak_memory(torch.device("cpu")) / 1e9
    with TemporaryDirectory() as folder:
        fast.save(folder)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e9
        loaded = float(in_its_own_process(__file__, replace(asked, load=Path(folder), results=None)))
    dense = parameter_bytes(denoiser_of(pipe)) / 1e9
    header("", "limit GB", "minutes", "peak GB of the search", "result GB", "peak GB of a run")
    row("measured", *(f"{value:.2f}" for value in (asked.memory, seconds / 60, searched, size, loaded)))
    sizes = [f"{value / 1e9:.2f}" for value in (foretold.memory, foretold.result)]
    row("foretold", f"{asked.memory:.2f}", f"{foretold.seconds / 60:.2f}", *sizes, "")
    row("dense", "", "", f"{dense:.2f}", "", "")
    if asked.results is not None:
        own = {name: value for name, value in asdict(asked).items() if name not in ("results", "load")}
        measured = {"seconds": seconds, "peak": searched, "result": size, "loaded": loaded, "dense": dense}
        Results(asked.results).add([{**own, **measured, "foretold": foretold.to_json()}])


if __name__ == "__main__":
    main(options(Options, __doc__))
