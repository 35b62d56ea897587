"""Stage-wise pruning of a denoiser that diffusers does not know, with a sampling loop of its own.

    python examples/foreign_denoiser.py

A small transformer of `nn.TransformerEncoderLayer`s learns for some seconds to make short signals out of noise. What
can be pruned in it is declared; then it is calibrated on its own trajectories, ranked, searched and routed as a
diffusers pipeline is, from the same parts of the library, and the result saved, and run from its folder as in a new
process. To bring your own denoiser, exchange `Denoiser`, `DECLARATION` and `sample`; its forward has to have an
argument that tells the stage, falling from noise to signal: `timestep`, or what `declare(..., timestep="t")` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diff_es import Compressed, Method, Resident, Sampling, Width, load
from diff_es.artefact import fingerprint
from diff_es.calibrate import Gatherer
from diff_es.cost import Costs
from diff_es.layers import Anatomy, Channels, Cut, Heads, Plan, Residual, Switch, Weights, declare, realise
from diff_es.library import Library
from diff_es.metrics import snr_db
from diff_es.progress import Reporter
from diff_es.route import routed
from diff_es.schedule import Schedule, Stages
from diff_es.search import Evolution, Levels, evolutionary_search
from diff_es.units import Grain, Thin

LENGTH, WIDTH, BLOCKS, STEPS = 24, 32, 4, 12
TIMES = [1 - i / STEPS for i in range(STEPS)]  # from noise, 1, to signal, 0


class SelfAttention(nn.Module):
    """Takes the place of an `nn.MultiheadAttention` with the same weights and results.

    That one keeps q, k and v in one parameter, reads the weight of its output projection past that module, and takes
    the size of a head from the width of its input: with fewer heads it cannot run, whatever its tensors hold.
    """

    batch_first = False  # asked for by nn.TransformerEncoderLayer, which else would not call this module at all

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = packed.num_heads
        self.q, self.k, self.v = (nn.Linear(packed.embed_dim, packed.embed_dim) for _ in range(3))
        self.out = packed.out_proj
        for i, linear in enumerate((self.q, self.k, self.v)):
            linear.load_state_dict(
                {"weight": packed.in_proj_weight.chunk(3)[i], "bias": packed.in_proj_bias.chunk(3)[i]}
            )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        parts = ((self.q, query), (self.k, key), (self.v, value))
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear, x in parts)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
        return self.out(attended.transpose(1, 2).flatten(2)), None


class Denoiser(nn.Module):
    """Predicts the direction from signal to noise: signals (N, LENGTH), timestep (N,) from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(1, WIDTH)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.time = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", norm_first=True, batch_first=True)
            for _ in range(BLOCKS)
        )
        self.leave = nn.Linear(WIDTH, 1)
        for block in self.blocks:
            block.self_attn = SelfAttention(block.self_attn)

    def forward(self, signal: Tensor, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * torch.arange(1, 9, device=signal.device) * 3
        hidden = self.enter(signal[..., None]) + self.place
        hidden = hidden + self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        found: Tensor = self.leave(hidden)[..., 0]
        return found


DECLARATION = (
    Heads("blocks.*.self_attn", heads=4, rows=("q", "k", "v"), output="out", counts=(("heads", 1),)),
    Channels("blocks.*", rows=("linear1",), output="linear2"),
    Residual("blocks.*"),
)


def signals(count: int) -> Tensor:
    """Sums of two waves, (count, LENGTH)."""
    place, phase = torch.linspace(0, 1, LENGTH), torch.rand(2, count, 1) * 6.28
    slow, fast = 6.28 * (1 + torch.rand(count, 1)), 6.28 * (3 + 2 * torch.rand(count, 1))
    return torch.sin(slow * place + phase[0]) + 0.5 * torch.sin(fast * place + phase[1])


def trained(steps: int) -> Denoiser:
    """Rectified flow: x_t = (1 - t) x + t noise, the target is noise - x."""
    torch.manual_seed(0)
    denoiser = Denoiser()
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for _ in range(steps):
        clean, noise, t = signals(32), torch.randn(32, LENGTH), torch.rand(32)
        mixed = (1 - t)[:, None] * clean + t[:, None] * noise
        loss = F.mse_loss(denoiser(mixed, timestep=t), noise - clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return denoiser.eval().requires_grad_(False)


@torch.no_grad()
def sample(denoiser: Denoiser, seed: int, count: int = 16) -> Tensor:
    """Signals (count, LENGTH) by Euler's method."""
    signal = torch.randn(count, LENGTH, generator=torch.Generator().manual_seed(seed))
    for t in TIMES:
        signal = signal - denoiser(signal, timestep=torch.full((count,), t)) / STEPS
    return signal


def macs(denoiser: Denoiser, anatomy: Anatomy, kept: Sequence[int]) -> int:
    """Multiply-accumulates of a call with so many groups left in each layer."""
    pairs = zip(anatomy.layers, kept, strict=True)
    cuts = {layer.name: Cut(torch.arange(count)) for layer, count in pairs if count < layer.groups}
    switch = Switch(denoiser)
    switch.to(realise(denoiser, anatomy, Plan(cuts)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(torch.zeros(1, LENGTH), timestep=torch.ones(1))
    switch.to(Weights())
    return int(counter.get_total_flops()) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a denoiser that diffusers does not know, by stages.")
    parser.add_argument("--train", type=int, default=300, help="training steps (default: 300)")
    parser.add_argument("--macs", type=float, default=0.6, help="share of the compute to keep (default: 0.6)")
    parser.add_argument("--generations", type=int, default=8, help="of the search (default: 8)")
    options = parser.parse_args()
    denoiser = trained(options.train)

    # what can be pruned, and whether that is so
    anatomy = declare(denoiser, DECLARATION, lambda: denoiser(torch.randn(2, LENGTH), timestep=torch.ones(2)))
    print(f"declared: {len(anatomy.layers)} layers, {len(anatomy.blocks)} blocks")

    # statistics of the stages from the denoiser's own trajectories, and plans of every level from them
    stages = Stages.split(TIMES, 3)
    with Gatherer(denoiser, stages, anatomy.layers, ()) as gatherer:
        for seed in range(4):
            gatherer.begin()
            sample(denoiser, seed)
    method = Method(Width(8), grain=Grain.WHOLE)
    library = Library(denoiser, anatomy, gatherer.statistics(), method, Reporter(quiet=True))

    # what levels cost, and the schedules that keep the budget
    levels = [option.kept for option in library.units[0].options if isinstance(option, Thin)]
    costs = Costs.tabled([[macs(denoiser, anatomy, kept) for kept in levels]], stages.steps(TIMES))
    space = costs.space(options.macs)

    def result(candidate: Levels, seed: int) -> Tensor:
        plans = [library.plan(stage, row) for stage, row in enumerate(candidate)]
        with routed(denoiser, stages, partial(Resident().open, denoiser, anatomy, plans)):
            return sample(denoiser, seed)

    def score(candidate: Levels, seed: int, dense: Tensor) -> float:
        """Mean signal-to-noise ratio in dB against the dense model from the same noise."""
        return float(snr_db(dense, result(candidate, seed)).mean())

    probe, held_out = sample(denoiser, 100), sample(denoiser, 101)
    search = evolutionary_search(space, Evolution(population=8, generations=options.generations), [space.uniform()])
    while asked := search.ask():
        search.tell({candidate: score(candidate, 100, probe) for candidate in asked})
    found = search.best.levels
    for name, candidate in (("uniform", space.uniform()), ("found", found)):
        shown = " ".join(str(level) for (level,) in candidate)
        decibel = score(candidate, 101, held_out)
        print(f"{name:8} levels {shown}  {costs.ratio(candidate):.2f} of the compute  {decibel:.1f} dB held out")
    assert torch.equal(sample(denoiser, 101), held_out), "the dense denoiser is back, to the bit"

    # a result, as `compress` makes them; whoever loads it elsewhere declares the same of the same weights first
    plans = tuple(library.plan(stage, row) for stage, row in enumerate(found))
    made = Compressed(Schedule(stages, found), plans, Sampling(STEPS), fingerprint(denoiser), about={})
    with TemporaryDirectory() as folder:
        made.save(Path(folder) / "found")
        twin = Denoiser().eval().requires_grad_(False)
        twin.load_state_dict(denoiser.state_dict())
        declare(twin, DECLARATION, lambda: twin(torch.randn(2, LENGTH), timestep=torch.ones(2)))
        with load(Path(folder) / "found").routed(twin):
            assert torch.equal(sample(twin, 101), result(found, 101)), "a saved result gives the same, to the bit"


if __name__ == "__main__":
    main()
