"""Which timestep a call of the denoiser belongs to, read off what the denoiser receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..layers import time_reader
from ..utils.calls import Args, Kwargs

_THOUSANDTHS = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")


def on_timestep(denoiser: nn.Module, call: Callable[[float], None]) -> RemovableHandle:
    """Call ``call(timestep)`` before every forward of the denoiser; reading it is the only host sync of a call.

    The timestep is the scheduler's, but for rounding where pipelines scale what they hand on.
    """
    unit = float(handed(denoiser, torch.ones((), dtype=torch.float64)))
    timestep_of = timestep_reader(denoiser)

    def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        call(float(timestep_of(args, kwargs)) / unit)

    return denoiser.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True)


def handed(denoiser: nn.Module, timesteps: Tensor) -> Tensor:
    """Timesteps of a scheduler as pipelines hand them to this denoiser."""
    kind = type(denoiser).__name__
    if kind in _THOUSANDTHS:
        return timesteps / 1000
    if kind == "SanaTransformer2DModel":
        config: Any = denoiser.config
        return timesteps * float(config.timestep_scale)
    return timesteps


def timestep_reader(denoiser: nn.Module) -> Callable[[Args, Kwargs], Any]:
    """Gives the timestep among the arguments of a denoiser call, as it was handed on."""
    read = time_reader(denoiser)

    def timestep_of(args: Args, kwargs: Kwargs) -> Any:
        value = read(args, kwargs)
        if isinstance(value, Tensor):  # one for each sample, or for each token, where those of a given frame have 0
            value = value.max() if value.dim() > 1 else value.reshape(-1)[0]
        return value

    return timestep_of
