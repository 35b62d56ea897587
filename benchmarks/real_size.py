"""A denoiser of the size of DiT-XL/2, with random weights, all the way within a limit of memory: calibrated, ranked,
searched, saved, and run in a process of its own.

    python benchmarks/real_size.py --memory 2 --results real-size.jsonl

Ten stages on the fewest steps and noises that they take: what is measured is memory and time, not quality. Prints the
time of the whole and the peak of memory that each process held, as the system counts it, beside what was foretold and
the dense model's own bytes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
from common import Results, Seed, StageCount, Steps, header, options, row
from diffusers import DiTPipeline
from published_sizes import dit

from diff_es import Compressed, Granularity, Levers, Method, Obs, Run, Sampling, Settings, Width, compress, forecast
from diff_es.routing.placements import parameter_bytes
from diff_es.utils.memory import peak_memory
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    memory: Annotated[float, "GB for statistics and weights of levels"] = 2.0
    layers: Annotated[int, "blocks"] = 28
    heads: Annotated[int, "of each block"] = 16
    head_size: Annotated[int, "channels of a head"] = 72
    stages: StageCount = 10
    steps: Steps = 10
    levels: Annotated[int, "of the ladder"] = 4
    rounds: Annotated[int, "in which OBS removes a layer's groups"] = 128
    macs: Annotated[float, "the budget"] = 0.7
    seed: Seed = 0
    results: Annotated[Path | None, "file of JSON lines that the result is added to"] = None
    load: Annotated[Path | None, "run the result in this folder, as the process of its own does"] = None


def pipeline(asked: Options) -> DiTPipeline:
    torch.manual_seed(asked.seed)
    sizes = {"num_layers": asked.layers, "num_attention_heads": asked.heads, "attention_head_dim": asked.head_size}
    return dit(patch=2, **sizes).to(torch.bfloat16)


def main(asked: Options) -> None:
    pipe = pipeline(asked)
    if asked.load is not None:
        with Compressed.from_pretrained(asked.load).routed(pipe):
            pipe([0], num_inference_steps=asked.steps, guidance_scale=1.0, output_type="pt")
        print(peak_memory(torch.device("cpu")) / 1e9)
        return
    method = Method(Width(asked.levels, dense=()), Obs(rounds=asked.rounds), granularity=Granularity.WHOLE)
    settings = Settings(
        sampling=Sampling(asked.steps, 1.0, 1),
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
    run = Run(memory=asked.memory, reporter=Reporter())
    foretold = forecast(pipe, asked.macs, settings, run)
    began = time.monotonic()
    fast = compress(pipe, asked.macs, settings, run)
    seconds, searched = time.monotonic() - began, peak_memory(torch.device("cpu")) / 1e9
    with TemporaryDirectory() as folder:
        fast.save(folder)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e9
        given = [f"--{name}={getattr(asked, name.replace('-', '_'))}" for name in ("layers", "heads", "head-size")]
        again = [sys.executable, __file__, f"--load={folder}", f"--steps={asked.steps}", f"--seed={asked.seed}", *given]
        loaded = float(subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout)
    dense = parameter_bytes(pipe.transformer) / 1e9
    header("", "limit GB", "minutes", "peak GB of the search", "result GB", "peak GB of a run")
    row("measured", *(f"{value:.2f}" for value in (asked.memory, seconds / 60, searched, size, loaded)))
    sizes = [f"{value / 1e9:.2f}" for value in (foretold.memory, foretold.result)]
    row("foretold", f"{asked.memory:.2f}", f"{foretold.seconds / 60:.2f}", *sizes, "")
    row("dense", "", "", f"{dense:.2f}", "", "")
    if asked.results is not None:
        options_of = {name: value for name, value in asdict(asked).items() if name not in ("results", "load")}
        measured = {"seconds": seconds, "peak": searched, "result": size, "loaded": loaded, "dense": dense}
        Results(asked.results).add([{**options_of, **measured, "foretold": foretold.to_json()}])


if __name__ == "__main__":
    main(options(Options, __doc__))
