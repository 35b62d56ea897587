"""A plain convolutional U-Net with a DDPM loop of its own, pruned stage by stage.

    python examples/own_unet.py [training steps, such as 300] [generations of the search, 6] [its noises, 16]

The U-Net learns for some seconds to draw bars in 8 x 8 pixels. The loop is guided, adds noise on the way, and takes no
list of times: so levels are searched, and steps are left alone.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diff_es import Channels, Levers, OwnSampler, Reporter, Run, Settings, compress, declare, load
from diff_es.evaluation.benchmark import compare

SIGNAL = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)  # its share of the variance, by timestep


class Block(nn.Module):  # two convolutions behind norms in groups, moved by an embedding
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, after), nn.Conv2d(after, after, 3, padding=1)
        self.move, self.skip = nn.Linear(32, after), nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.move(embedding)[:, :, None, None]
        found: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(hidden)))
        return found


class UNet(nn.Module):
    """Predicts the noise in images (N, 1, 8, 8) at timesteps t (N,) below 1000, of bars that lie, 0, or stand, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.time = nn.Embedding(3, 32), nn.Linear(32, 32)
        self.enter, self.leave = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)
        self.blocks = nn.ModuleList([Block(32, 32), Block(32, 64), Block(96, 32)])

    def forward(self, x: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        angles = t[:, None] / 1000 * torch.arange(1, 17) * 3
        embedding = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], -1)) + self.kind(kind))
        high = self.blocks[0](self.enter(x), embedding)
        low = F.interpolate(self.blocks[1](F.avg_pool2d(high, 2), embedding), scale_factor=2.0)
        found: Tensor = self.leave(self.blocks[2](torch.cat([high, low], 1), embedding))
        return found


def trained(steps: int) -> UNet:
    torch.manual_seed(0)
    model = UNet()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        kind, t, lying = torch.randint(2, (32,)), torch.randint(1000, (32,)), -torch.ones(32, 1, 8, 8)
        lying[torch.arange(32), :, torch.randint(8, (32,))] = 1
        images, share = torch.where(kind[:, None, None, None] == 1, lying.mT, lying), SIGNAL[t, None, None, None]
        noise, told = torch.randn_like(images), kind.where(torch.rand(32) > 0.1, 2)  # 2: either
        loss = F.mse_loss(model(share.sqrt() * images + (1 - share).sqrt() * noise, t, told), noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def sample(model: nn.Module, noise: Tensor, kinds: list[int], guidance: float) -> Tensor:
    """DDPM over every 80th timestep (arXiv 2006.11239, 2102.09672)."""
    x, told = noise, torch.tensor([*kinds, *[2] * len(kinds)])
    for t, after in pairwise([*range(999, 0, -80), -1]):
        asked, free = model(torch.cat([x, x]), torch.full((len(told),), t), told).chunk(2)
        now, then = SIGNAL[t], SIGNAL[after] if after >= 0 else torch.ones(())
        clean = ((x - (1 - now).sqrt() * torch.lerp(free, asked, guidance)) / now.sqrt()).clamp(-1, 1)
        left, variance = (x - now.sqrt() * clean) / (1 - now).sqrt(), (1 - then) / (1 - now) * (1 - now / then)
        x = then.sqrt() * clean + (1 - then - variance).sqrt() * left + variance.sqrt() * torch.randn_like(x)
    return x


def sampler(model: UNet) -> OwnSampler:
    """What takes the place of a pipeline; between convolutions, channels go by the groups of the norm."""
    channels = Channels("blocks.*", rows=("conv1", "move", "norm2"), output="conv2")
    declare(model, [channels], lambda: model(torch.randn(2, 1, 8, 8), torch.ones(2), torch.arange(2)), timestep="t")
    return OwnSampler(model, partial(sample, guidance=1.5), noise=(1, 8, 8), conditions=(0, 1))


def again(folder: Path) -> None:
    """What a new process does: the same weights, declaration and loop, and the saved result."""
    model = UNet().eval().requires_grad_(False)
    model.load_state_dict(torch.load(folder / "weights.pt"))
    with load(folder / "fast").routed(sampler(model)) as own:
        torch.save(own.latents(range(4), [0, 1, 0, 1]), folder / "again.pt")


def main(train: int = 300, generations: int = 6, noises: int = 16) -> None:
    own = sampler(trained(train))
    small = Settings(levers=Levers.PRUNE, stages=3, calibration_samples=2 * noises, generations=generations)
    fast = compress(own, 0.6, replace(small, search_noises=noises, held_out_noises=noises), Run(reporter=Reporter()))
    print(f"levels {fast.schedule.levels}, {fast.report.held_out_score:.1f} dB to the dense model, held out")
    for row in compare(own, fast, [32], 3, Reporter(quiet=True))["rows"]:
        print(f"{row['runner']:20} {row['speedup']:.2f}x, {row['weight_bytes'] / 1e6:.2f} MB of weights")
    with TemporaryDirectory() as name, fast.routed(own):
        torch.save(own.denoiser.state_dict(), Path(name) / "weights.pt")
        fast.save(Path(name) / "fast")
        subprocess.run([sys.executable, __file__, name], check=True)
        same = own.latents(range(4), [0, 1, 0, 1]).equal(torch.load(Path(name) / "again.pt"))
    print("another process gives", "the same, to the bit" if same else "something else")


if __name__ == "__main__":
    again(Path(sys.argv[1])) if Path(sys.argv[-1]).is_dir() else main(*map(int, sys.argv[1:]))
