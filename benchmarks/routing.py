"""What routing costs and saves: dense, routed by each placement, and a stitched network per stage, side by side.

    python benchmarks/routing.py --model bundled --batch 8 32
    python benchmarks/routing.py --model dit-xl-2-256 --batch 8 --calls 3 --rounds 3 --without stitched

`dit-xl-2-256` and `sdxl` are the real configurations with random weights: shapes decide the time. Every stage keeps
half of the groups of every layer, other ones in each stage, with a correction of the rank that the bundled model's has.
All runners take the same denoiser calls in turn in one process, each call in a new stage; a call's time holds its
switch. Prints a Markdown table; `private` is the memory that the process holds beyond the dense model and the plans, as
the system counts it.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from common import Rounds, StageCount, half_range, header, options, row
from diffusers import DiTTransformer2DModel, ModelMixin
from published_sizes import dit_xl_2_256, sdxl
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diff_es.evaluation.benchmark import switch_ms
from diff_es.layers import Cut, Factor, Kind, Plan, discover
from diff_es.pipelines.denoiser import meta_twin
from diff_es.pipelines.loading import load
from diff_es.pipelines.sampling import denoiser_of
from diff_es.routing.placements import Compact, Placement, Resident, Stitched, Streamed
from diff_es.routing.realise import output_of, owned_by, realise, weight_of
from diff_es.routing.routing import routed
from diff_es.routing.switch import Switch
from diff_es.trajectory.stages import Stages

Call: TypeAlias = Callable[[float], Any]  # a denoiser call at a timestep

RANKS = {Kind.ATTENTION: 0.07, Kind.FEEDFORWARD: 0.37}
SHARED_RANKS = {Kind.ATTENTION: 0.09, Kind.FEEDFORWARD: 0.45}
"""Rank of a correction, relative to a layer's outputs, as the bundled model has it at half of the groups
(benchmarks/compact.py): of each stage's own at tolerance 0.1, and of the one that all stages of one order share at
tolerance 1, which leaves nothing for their own."""

PLACES: dict[str, Placement] = {
    "resident": Resident(),
    "streamed": Streamed(),
    "compact": Compact(),
    "stitched": Stitched(),
}


@dataclass(frozen=True)
class Options:
    model: Annotated[str, "dit-xl-2-256, sdxl, the bundled transformer, or a folder of such a pipeline"] = "bundled"
    batch: Annotated[tuple[int, ...], "samples of a denoiser call"] = (8,)
    size: Annotated[int | None, "latent height and width; default the model's own"] = None
    stages: StageCount = 10
    calls: Annotated[int, "denoiser calls of a round, each in a new stage"] = 10
    rounds: Rounds = 7
    dtype: Annotated[str, "of the weights", ("float32", "bfloat16")] = "float32"
    compile: Annotated[bool, "compile the blocks first"] = False
    shared_order: Annotated[bool, "the same groups stay in every stage"] = False
    without: Annotated[tuple[str, ...], "what does not fit into memory", tuple(PLACES)] = ()


def main() -> None:
    asked = options(Options, __doc__)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device(device):
        denoiser = made(asked.model).to(device, getattr(torch, asked.dtype)).eval()
    plans = random_plans(denoiser, asked.stages, shared_order=asked.shared_order)
    if asked.compile:
        for block in discover(denoiser).blocks:
            denoiser.get_submodule(block.name).compile()
    promised = macs(denoiser, Plan(), asked.size) / macs(denoiser, plans[0], asked.size)
    print(f"{asked.model}, {asked.dtype}, {device}, {torch.get_num_threads()} threads, {asked.stages} stages", end="")
    print(", blocks compiled" if asked.compile else "", f", {promised:.2f}x fewer MACs\n", sep="")
    columns = ("batch", "runner", "call ms", "speed-up", "of MACs'", "switch ms", "of a call", "weights MB", "of dense")
    header(*columns, "private MB")
    for batch in asked.batch:
        measure(denoiser, plans, batch, promised, asked)


def measure(denoiser: ModelMixin, plans: list[Plan], batch: int, promised: float, asked: Options) -> None:
    """Print the rows of one batch size."""
    names = [name for name in PLACES if name not in asked.without]
    stages = Stages(tuple(1000.0 * (len(plans) - i) / len(plans) for i in range(1, len(plans))))
    device, anatomy = denoiser.device, discover(denoiser)
    timesteps, call = [1000.0, *stages.boundaries][: asked.calls], call_of(denoiser, batch, asked.size)
    times, switches = {name: list[float]() for name in ("dense", *names)}, dict[str, float]()
    weights, private = {"dense": sum(p.nbytes for p in denoiser.parameters())}, {"dense": 0}
    for round_index in range(asked.rounds + 1):
        times["dense"].append(seconds(call, timesteps))
        for name in names:
            before = private_bytes()
            with routed(denoiser, stages, partial(PLACES[name].open, denoiser, anatomy, plans)) as routing:
                times[name].append(seconds(call, timesteps))
                private[name] = private_bytes() - before
                if round_index == asked.rounds:
                    switches[name] = switch_ms(routing, len(plans), device)
                    weights[name] = routing.store.peak_bytes
            del routing  # and what it holds
    for name, seen in times.items():
        ratios = [dense / own for dense, own in zip(times["dense"][1:], seen[1:], strict=True)]
        middle, call_ms = statistics.median(ratios), statistics.median(seen[1:]) * 1000
        spread = half_range(ratios)
        pruned = name != "dense"
        cells = [
            f"{call_ms:.1f}",
            f"{middle:.2f} ± {spread:.2f}",
            f"{middle / promised:.0%}" if pruned else "",
            f"{switches[name]:.2f}" if pruned else "",
            f"{switches[name] / call_ms:.2%}" if pruned else "",
            f"{weights[name] / 1e6:.1f}",
            f"{weights[name] / weights['dense']:.2f}",
            f"{private[name] / 1e6:+.0f}",
        ]
        row(str(batch), name, *cells)
    if "stitched" in asked.without:
        size = stitched_bytes(denoiser, plans)
        row(str(batch), "stitched, counted", *[""] * 5, f"{size / 1e6:.1f}", f"{size / weights['dense']:.2f}", "")


def stitched_bytes(denoiser: nn.Module, plans: list[Plan]) -> int:
    """Bytes of a network of its own for every stage, counted without building them."""
    anatomy, total = discover(denoiser), 0
    layers = {layer.name: layer for layer in anatomy.layers}
    for plan in plans:
        replaced = {name for key in plan.cuts for name in owned_by(denoiser, layers[key])}
        total += sum(p.nbytes for name, p in denoiser.named_parameters() if name not in replaced)
        total += realise(denoiser, anatomy, plan).bytes
    return total


@torch.no_grad()
def seconds(call: Call, timesteps: list[float]) -> float:
    """Of one denoiser call, the mean over these timesteps."""
    began = time.perf_counter()
    for timestep in timesteps:
        call(timestep)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / len(timesteps)


def random_plans(denoiser: nn.Module, stages: int, *, shared_order: bool) -> list[Plan]:
    """For each stage half of the groups of every layer, with a random correction of the stated rank."""
    plans, shared = list[Plan](), dict[str, Factor]()
    for stage in range(stages):
        generator, cuts = torch.Generator().manual_seed(0 if shared_order else stage), dict[str, Cut]()
        for layer in discover(denoiser).layers:
            kept = torch.randperm(layer.groups, generator=generator)[: layer.groups - layer.groups // 2].sort().values
            outputs = len(weight_of(output_of(denoiser, layer), layer))
            rank = max(1, round((SHARED_RANKS if shared_order else RANKS)[layer.kind] * outputs))
            left = torch.randint(-127, 128, (outputs, rank), dtype=torch.int8, generator=generator)
            right = torch.randint(-127, 128, (rank, len(kept) * layer.width), dtype=torch.int8, generator=generator)
            factor = Factor(left, torch.full((rank,), 1e-4), right, torch.full((rank,), 1e-4))
            own = shared.setdefault(layer.name, factor) if shared_order else factor
            cuts[layer.name] = Cut(kept, None, torch.full((outputs,), float(stage)), (own,))
        plans.append(Plan(cuts))
    return plans


def macs(denoiser: ModelMixin, plan: Plan, size: int | None) -> int:
    """Multiply-accumulates of a denoiser call of one sample, counted without weights."""
    twin = meta_twin(denoiser)
    bare = Plan({name: Cut(cut.kept) for name, cut in plan.cuts.items()})
    Switch(twin).to(realise(twin, discover(twin), bare))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call_of(twin, 1, size)(500.0)
    return int(counter.get_total_flops()) // 2


def private_bytes() -> int:
    """Anonymous memory of this process, what no file backs, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024


def made(name: str) -> ModelMixin:
    """The denoiser of the bundled transformer or of a pipeline in a folder, or one of a published size."""
    if name == "dit-xl-2-256":
        return dit_xl_2_256()
    return sdxl() if name == "sdxl" else denoiser_of(load(name))


def call_of(denoiser: ModelMixin, batch: int, size: int | None) -> Call:
    """A call with random inputs of the denoiser's own shapes."""
    options: dict[str, Any] = {"device": denoiser.device, "dtype": denoiser.dtype}
    size, channels = size or denoiser.config.sample_size, denoiser.config.in_channels
    latents = torch.randn(batch, channels, size, size, **options)
    if isinstance(denoiser, DiTTransformer2DModel):
        labels = torch.ones(batch, dtype=torch.long, device=denoiser.device)
        return lambda t: denoiser(latents, timestep=torch.full((batch,), t, device=latents.device), class_labels=labels)
    pooled, sizes = torch.randn(batch, 1280, **options), torch.ones(batch, 6, **options)
    text, added = torch.randn(batch, 77, 2048, **options), {"text_embeds": pooled, "time_ids": sizes}
    return lambda t: denoiser(
        latents, torch.tensor(t, device=latents.device), encoder_hidden_states=text, added_cond_kwargs=added
    )


if __name__ == "__main__":
    main()
