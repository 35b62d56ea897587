"""Small denoisers that diffusers does not know, of the kinds that users bring, with what is declared of them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from diff_es.layers import Anatomy, Channels, Heads, Plan, Residual, Rows
from diff_es.pruning.declare import declare
from diff_es.routing.realise import output_of

TIMES = (0.9, 0.7, 0.4, 0.2)


class AtRoot(nn.Module):
    """Two layers at the root, no block, and a time of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.down((self.up(x) + t[:, None, None]).relu())
        return found


class ConvBlock(nn.Module):
    """Two convolutions with a norm in groups between them, moved by a time."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 3, padding=1)
        self.norm, self.time = nn.GroupNorm(4, inner), nn.Linear(1, 2 * inner)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(t[:, None])[:, :, None, None].chunk(2, 1)
        found: Tensor = x + self.conv2((self.norm(self.conv1(x)) * (1 + scale) + shift).relu())
        return found


class Pixels(nn.Module):
    """Blocks of pixels as wide as they are deep; keyword arguments alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(8, 16) for _ in range(2))

    def forward(self, x: Tensor, *, noise_level: Tensor, context: Tensor | None = None) -> tuple[Tensor]:
        for block in self.blocks:
            x = block(x, noise_level)
        return (x,)


class Parallel(nn.Module):
    """Attention and feed-forward side by side into one projection, behind what is not pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.mlp = 4, nn.Linear(12, 96), nn.Linear(12, 40)
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12 + 32 + 20, 12)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(normed).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        value, gate = self.mlp(normed).chunk(2, -1)
        found: Tensor = x + self.out(torch.cat([normed, attended, value * gate.sigmoid()], -1))
        return found


class Tokens(nn.Module):
    """Tokens, with outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Parallel(), Parallel())

    def forward(self, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        return {"sample": self.layers(x * sigma[:, None, None])}


class Own(ModelMixin, ConfigMixin):
    """A denoiser of the user's own inside a diffusers pipeline: layers at the root, no block, a time named ``t``."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(in_channels, 32, 3, padding=1), nn.GroupNorm(8, 32)
        self.time, self.last = nn.Linear(1, 32), nn.Conv2d(32, in_channels, 3, padding=1)

    def forward(self, sample: Tensor, t: Tensor) -> UNet2DOutput:
        moved = self.time(t.reshape(-1, 1).to(sample) / 1000)[:, :, None, None]
        return UNet2DOutput(sample=self.last((self.norm(self.first(sample)) + moved).relu()))


OWN = (Channels("", ("first", "norm", "time"), "last"),)


class Between(nn.Module):
    """Channels between any two layers, with what else has them in turn."""

    def __init__(self, first: nn.Module, last: nn.Module, deep: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.deep, self.last = first, nn.Identity() if deep is None else deep, last

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        inner = self.deep(self.first(x * timestep[0])).relu()
        found: Tensor = self.last(inner)
        return found


@dataclass(frozen=True)
class Case:
    """A denoiser, what is declared of it, and how it is called."""

    make: Callable[[], nn.Module]
    declaration: tuple[Heads | Channels | Residual, ...]
    shape: tuple[int, ...]
    timestep: str = "timestep"
    groups: tuple[int, ...] = ()  # of the layers
    kept: dict[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval().requires_grad_(False)

    def call(self, model: nn.Module, t: float = 0.5, seed: int = 0) -> Any:
        x = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(seed))
        return first_of(model(x, **{self.timestep: torch.full((2,), t)}))

    def run(self, model: nn.Module, seed: int = 0) -> Tensor:
        """A loop over times; of those that change the shape, their means."""
        outputs = [self.call(model, t, seed + i).flatten(1) for i, t in enumerate(TIMES)]
        return torch.stack(outputs)

    def declared(self, model: nn.Module) -> Anatomy:
        return declare(model, self.declaration, lambda: self.call(model), timestep=self.timestep)


def first_of(output: Any) -> Tensor:
    """What a denoiser gives, by whatever name."""
    if isinstance(output, dict):
        output = tuple(output.values())
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def between(shape: tuple[int, ...], first: Any, last: Any, deep: Any = None, counts: Any = ()) -> Case:
    rows = ("first",) if deep is None else ("first", "deep")
    make = lambda: Between(first(), last(), None if deep is None else deep())  # noqa: E731
    return Case(make, (Channels("", rows, "last", counts),), shape, groups=(16,))


CASES = {
    "root": Case(AtRoot, (Channels("", ("up",), "down"),), (5, 6), "t", (24,)),
    "pixels": Case(
        Pixels,
        (Channels("blocks.*", ("conv1", "norm", Rows("time", 2)), "conv2"), Residual("blocks.*")),
        (8, 8, 8),
        "noise_level",
        (4, 4),
    ),
    "parallel": Case(
        Tokens,
        (
            Heads("layers.*", 4, (Rows("qkv", 3),), "out", (("heads", 1),), start=12, size=32),
            Channels("layers.*", (Rows("mlp", 2),), "out", start=44),
            Residual("layers.*"),
        ),
        (7, 12),
        "sigma",
        (4, 4, 20, 20),
    ),
    "conv1d": between((3, 9), lambda: nn.Conv1d(3, 16, 3), lambda: nn.Conv1d(16, 4, 4, stride=2, padding=1)),
    "valid and dilated": between(
        (3, 9), lambda: nn.Conv1d(3, 16, 1), lambda: nn.Conv1d(16, 4, 3, padding="valid", dilation=2)
    ),
    "same": between((3, 5, 6), lambda: nn.Conv2d(3, 16, 1), lambda: nn.Conv2d(16, 4, (3, 5), padding="same")),
    "circular": between(
        (3, 5, 6), lambda: nn.Conv2d(3, 16, 1), lambda: nn.Conv2d(16, 4, 3, padding=1, padding_mode="circular")
    ),
    "reflected": between(
        (3, 5, 6),
        lambda: nn.Conv2d(3, 16, 3, padding="same", padding_mode="replicate"),
        lambda: nn.Conv2d(16, 4, 3, padding=(2, 1), stride=(1, 2), padding_mode="reflect"),
    ),
    "conv3d": between((3, 2, 3, 4), lambda: nn.Conv3d(3, 16, 1), lambda: nn.Conv3d(16, 4, 2, padding=1)),
    "transposed 1d": between(
        (3, 5), lambda: nn.ConvTranspose1d(3, 16, 4, 2, 1), lambda: nn.ConvTranspose1d(16, 4, 4, 2, 1)
    ),
    "transposed 2d": between(
        (3, 4, 5),
        lambda: nn.ConvTranspose2d(3, 16, 2, 2),
        lambda: nn.ConvTranspose2d(16, 4, 3, 2, 1, output_padding=1, bias=False),
    ),
    "transposed 3d": between((3, 2, 2, 3), lambda: nn.Conv3d(3, 16, 1), lambda: nn.ConvTranspose3d(16, 4, 2)),
    "transposed depthwise": between(
        (3, 4),
        lambda: nn.Conv1d(3, 16, 1),
        lambda: nn.Conv1d(16, 4, 1),
        lambda: nn.ConvTranspose1d(16, 16, 3, groups=16),
        (("deep.groups", 1),),
    ),
    "instance norm": between(
        (3, 4, 5),
        lambda: nn.Conv2d(3, 16, 1),
        lambda: nn.Conv2d(16, 4, 1),
        lambda: nn.InstanceNorm2d(16, affine=True),
        (("deep.num_features", 1),),
    ),
}


def masked(model: nn.Module, anatomy: Anatomy, plan: Plan) -> nn.Module:
    """The dense network of the same values: columns of the groups that go are zero, the others the plan's."""
    twin = deepcopy(model)
    for layer in anatomy.layers:
        cut = plan.cuts.get(layer.name)
        if cut is None:
            continue
        output: Any = output_of(twin, layer)
        weight, dense = output.weight.clone(), output_of(model, layer).bias
        whole = weight.transpose(0, 1) if "Transpose" in type(output).__name__ else weight  # a view
        kept = layer.columns(cut.kept) + layer.start
        values = whole[:, kept].clone() if cut.weight is None else cut.weight
        whole[:, layer.start : layer.start + layer.size] = 0
        whole[:, kept] = values
        output.weight = nn.Parameter(weight, requires_grad=False)
        if cut.bias is not None:
            bias = cut.bias if dense is None else output.bias + (cut.bias - dense)
            output.bias = nn.Parameter(bias, requires_grad=False)
    return twin
