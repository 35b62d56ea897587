"""A denoiser that diffusers does not know, with a sampling loop of its own: pruned and stepped stage by stage.

    python examples/foreign_denoiser.py [training steps, such as 300] [generations of the search, 8] [its noises, 16]

A small transformer of `nn.TransformerEncoderLayer`s learns for some seconds to make short signals out of noise. What
can be pruned in it is declared, and its loop takes the place of a pipeline: compressed, compared with its rivals,
saved, and run in another process. To bring your own, exchange `Denoiser`, `DECLARATION` and `sample`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diff_es import OwnSampler, Reporter, Run, Settings, compress, declare, load
from diff_es.evaluation.evaluate import Extent, evaluated
from diff_es.layers import Channels, Heads, Residual, separate_attention

LENGTH, WIDTH, STEPS = 24, 32, 12
TIMES = [1 - i / STEPS for i in range(STEPS)]  # from noise, 1, towards the signal, 0


class Denoiser(nn.Module):
    """Predicts the direction from signal to noise: signals (N, LENGTH), t (N,) from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.time = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        parts = (nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True) for _ in range(4))
        self.blocks = nn.ModuleList(parts)

    def forward(self, signal: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.arange(1, 9) * 3
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, None]
        hidden = self.enter(signal[..., None]) + self.place + time
        for block in self.blocks:
            hidden = block(hidden)
        found: Tensor = self.leave(hidden)[..., 0]
        return found


DECLARATION = (
    Heads("blocks.*.self_attn", heads=4, rows=("q", "k", "v"), output="out", counts=(("num_heads", 1),)),
    Channels("blocks.*", rows=("linear1",), output="linear2"),
    Residual("blocks.*"),
)


def trained(steps: int) -> Denoiser:
    """Rectified flow of sums of two waves: x_t = (1 - t) x + t noise, the target is noise - x."""
    torch.manual_seed(0)
    denoiser, place = Denoiser(), torch.linspace(0, 6.28, LENGTH)
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for _ in range(steps):
        slow, fast, phase = 1 + torch.rand(32, 1), 3 + 2 * torch.rand(32, 1), torch.rand(2, 32, 1) * 6.28
        clean = torch.sin(slow * place + phase[0]) + 0.5 * torch.sin(fast * place + phase[1])
        noise, t = torch.randn(32, LENGTH), torch.rand(32, 1)
        loss = F.mse_loss(denoiser((1 - t) * clean + t * noise, t[:, 0]), noise - clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return denoiser.eval().requires_grad_(False)


def sample(denoiser: nn.Module, x: Tensor, times: list[float], correct: Callable[..., Tensor]) -> Tensor:
    """Euler's method; every step is put through `correct`, so that it can make up for those that are left out."""
    for t, after in pairwise([*times, 0.0]):
        direction = denoiser(x, torch.full((len(x),), t))
        x = correct(x, x - (t - after) * direction)
    return x


def sampler(denoiser: Denoiser) -> OwnSampler:
    """What takes the place of a pipeline. PyTorch's own attention cannot run with fewer heads, so it is exchanged."""
    separate_attention(denoiser)
    declare(denoiser, DECLARATION, lambda: denoiser(torch.randn(2, LENGTH), torch.ones(2)), timestep="t")
    return OwnSampler(denoiser, sample, noise=(LENGTH,), times=TIMES, corrects=True)


def again(folder: Path) -> None:
    """What a new process does: the same weights, declaration and loop, and the saved result."""
    denoiser = Denoiser().eval().requires_grad_(False)
    denoiser.load_state_dict(torch.load(folder / "weights.pt"))
    with load(folder / "fast").routed(sampler(denoiser)) as own:
        torch.save(own.latents(range(4)), folder / "again.pt")


def main(train: int = 300, generations: int = 8, noises: int = 16) -> None:
    denoiser = trained(train)
    weights, own = denoiser.state_dict(), sampler(denoiser)
    small = Settings(stages=4, calibration_samples=2 * noises, search_noises=noises, held_out_noises=noises)
    small = replace(small, sensitivity_noises=noises // 4, timestep_generations=4, population=8)
    small = replace(small, generations=generations)
    fast = compress(own, 0.5, small, Run(reporter=Reporter()))
    print("times", [round(t, 3) for t in fast.timesteps or ()], "levels", fast.schedule.levels)
    for row in evaluated(own, fast, Extent(noises=2 * noises, rounds=3, random=noises)).rows:
        closeness = "" if row.snr_db is None else f"{row.snr_db:6.1f} dB"
        print(f"{row.contender:12} {row.steps:3} steps  {row.macs_ratio:.2f} MACs  {row.speedup:5.2f}x  {closeness}")
    with TemporaryDirectory() as name, fast.routed(own):
        torch.save(weights, Path(name) / "weights.pt")
        fast.save(Path(name) / "fast")
        subprocess.run([sys.executable, __file__, name], check=True)
        same = own.latents(range(4)).equal(torch.load(Path(name) / "again.pt"))
    print("another process gives", "the same, to the bit" if same else "something else")


if __name__ == "__main__":
    again(Path(sys.argv[1])) if Path(sys.argv[-1]).is_dir() else main(*map(int, sys.argv[1:]))
