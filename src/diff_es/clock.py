"""Which timestep and stage a call of the denoiser belongs to, read off what the denoiser receives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .schedule import Stages

_THOUSANDTHS = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")


def on_timestep(denoiser: nn.Module, call: Callable[[float], None]) -> RemovableHandle:
    """Call ``call(timestep)`` before every forward of the denoiser; reading it is the only host sync of a call.

    The timestep is the scheduler's, but for rounding where pipelines scale what they hand on.
    """
    unit = float(_handed(denoiser, torch.ones((), dtype=torch.float64)))
    timestep_of = _timestep_reader(denoiser)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call(float(timestep_of(args, kwargs)) / unit)

    return denoiser.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True)


def on_stage(denoiser: nn.Module, stages: Stages, enter: Callable[[int], None]) -> RemovableHandle:
    """Call ``enter(stage)`` before every forward of the denoiser."""
    stage_of = stage_reader(denoiser, stages)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(stage_of(args, kwargs))

    return denoiser.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True)


def stage_reader(denoiser: nn.Module, stages: Stages) -> Callable[[tuple[Any, ...], dict[str, Any]], int]:
    """Gives the stage of a denoiser call, for its arguments.

    ``stages`` are cut in timesteps of the scheduler. Where pipelines scale and round what they hand on, the boundaries
    are scaled and rounded like it, so that a timestep at a boundary keeps to its side. Two timesteps that become one by
    rounding, which in bfloat16 are less than 4 of 1000 apart, are one to the denoiser and belong to the later stage.
    """
    timestep_of, rounded = _timestep_reader(denoiser), dict[torch.dtype, list[float]]()
    if float(_handed(denoiser, torch.ones(()))) == 1:
        return lambda args, kwargs: stages.index(float(timestep_of(args, kwargs)))

    def stage_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        value = timestep_of(args, kwargs)
        if value.dtype not in rounded:
            boundaries = torch.tensor(stages.boundaries, dtype=torch.float32).to(value.dtype)
            rounded[value.dtype] = _handed(denoiser, boundaries).tolist()
        return sum(float(value) <= boundary for boundary in rounded[value.dtype])

    return stage_of


def _handed(denoiser: nn.Module, timesteps: Tensor) -> Tensor:
    """Timesteps of a scheduler as pipelines hand them to this denoiser."""
    kind = type(denoiser).__name__
    if kind in _THOUSANDTHS:
        return timesteps / 1000
    if kind == "SanaTransformer2DModel":
        config: Any = denoiser.config
        return timesteps * float(config.timestep_scale)
    return timesteps


def _timestep_reader(denoiser: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """Gives the timestep among the arguments of a denoiser call, as it was handed on."""
    position = list(inspect.signature(type(denoiser).forward).parameters).index("timestep") - 1

    def timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = kwargs["timestep"] if "timestep" in kwargs else args[position]
        if isinstance(value, Tensor):  # one for each sample, or for each token, where those of a given frame have 0
            value = value.max() if value.dim() > 1 else value.reshape(-1)[0]
        return value

    return timestep_of
