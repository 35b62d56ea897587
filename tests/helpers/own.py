"""Small denoisers with loops of the user's own, at the level of a module, so that other processes can have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.helpers.foreign import CASES
from torch import Tensor, nn

from diff_es import Method, OwnSampler, Sampling, Settings, Width, load

TIMES = (1.0, 0.9, 0.7, 0.6, 0.4, 0.3)
WORK = Settings(
    Sampling(batch=4),
    stages=2,
    method=Method(Width(4, multiple=1, dense=())),
    calibration_samples=4,
    search_noises=4,
    sensitivity_noises=2,
    held_out_noises=2,
    finalists=2,
    population=4,
    generations=2,
    timestep_generations=2,
    timestep_offspring=2,
)
Correct = Callable[[Tensor, Tensor], Tensor]


def pixels(seed: int = 0) -> nn.Module:
    """Blocks of convolutions and norms in groups, declared: pixels (N, 8, 8, 8) in and, as a tuple, out."""
    case = CASES["pixels"]
    model = case.model()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    case.declared(model)
    return model


def direction(denoiser: nn.Module, x: Tensor, t: float) -> Tensor:
    found: Tensor = denoiser(x, noise_level=torch.full((len(x),), float(t)))[0]
    return found.tanh()


def euler(denoiser: nn.Module, noise: Tensor, times: Sequence[float], correct: Correct) -> Tensor:
    x = noise
    for t, after in pairwise([*times, 0.0]):
        x = correct(x, x - (t - after) * direction(denoiser, x, t))
    return x


def uncorrected(denoiser: nn.Module, noise: Tensor, times: Sequence[float]) -> Tensor:
    return euler(denoiser, noise, times, lambda start, result: result)


def fixed(denoiser: nn.Module, noise: Tensor) -> Tensor:
    """Of no times but its own."""
    return uncorrected(denoiser, noise, TIMES)


def guided(denoiser: nn.Module, noise: Tensor, kinds: Sequence[int], scale: float = 0.5) -> Tensor:
    """Asked for something, in two calls a step, with noise on the way, in place."""
    x, moved = noise.clone(), torch.tensor(kinds)[:, None, None, None]
    for t, after in pairwise([*TIMES, 0.0]):
        free = direction(denoiser, x, t)
        asked = direction(denoiser, x + moved, t)
        x -= (t - after) * (free + scale * (asked - free))
        x += 0.1 * after * torch.randn_like(x)
    return x


def own(seed: int = 0, **changes: Any) -> OwnSampler:
    """With steps that can be chosen and corrected."""
    given = {"sample": euler, "noise": (8, 8, 8), "times": TIMES, "corrects": True, **changes}
    return OwnSampler(pixels(seed), **given)


def write_latents(folder: str | Path, target: str | Path) -> None:
    """What a process of its own makes of a saved result."""
    sampler = own()
    with load(folder).routed(sampler):
        save_file({"latents": sampler.latents(range(3), batch=3)}, target)
