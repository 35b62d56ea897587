"""Which stage a call of the denoiser belongs to, read off what the denoiser receives, or foretold from a timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..pipelines.timestep_hook import handed, timestep_reader
from ..trajectory.stages import Stages
from ..utils.calls import Args, Kwargs


def on_stage(denoiser: nn.Module, stages: Stages, enter: Callable[[int], None]) -> RemovableHandle:
    """Call ``enter(stage)`` before every forward of the denoiser."""
    stage_of = stage_reader(denoiser, stages)

    def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        enter(stage_of(args, kwargs))

    return denoiser.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True)


def stage_reader(denoiser: nn.Module, stages: Stages) -> Callable[[Args, Kwargs], int]:
    """Gives the stage of a denoiser call, for its arguments.

    ``stages`` are cut in timesteps of the scheduler, or in what else the denoiser is declared to receive. Where what is
    handed on is scaled and rounded, as 0.6 is in float32, the boundaries are scaled and rounded like it, so that a
    timestep at a boundary keeps to its side; what is finer than float32, a number of Python too, is rounded to it, as
    trajectories are. Two timesteps that become one by rounding, which in bfloat16 are less than 4 of 1000 apart, are
    one to the denoiser and belong to the later stage.
    """
    read, known = timestep_reader(denoiser), dict[torch.dtype, list[float]]()

    def stage_of(args: Args, kwargs: Kwargs) -> int:
        value = read(args, kwargs)
        coarse = isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64
        kind = value.dtype if coarse else torch.float32
        if kind not in known:
            known[kind] = _received(denoiser, stages.boundaries, kind)
        timestep = float(np.float32(float(value)))
        return sum(timestep <= boundary for boundary in known[kind])

    return stage_of


def stage_at(denoiser: nn.Module, stages: Stages) -> Callable[[float], int]:
    """Gives the stage of a scheduler's timestep before anything runs.

    It is that of the denoiser call which the timestep leads to, as :func:`stage_reader` says, where timesteps are
    handed on in the precision of the weights. Where they are handed on in a finer one, it is that or, for a timestep
    that rounds to a boundary, the later one.
    """
    kinds = {parameter.dtype for parameter in denoiser.parameters() if parameter.is_floating_point()}
    kind = torch.float32 if kinds <= {torch.float32, torch.float64} else torch.bfloat16

    boundaries = _received(denoiser, stages.boundaries, kind)

    def stage_of(timestep: float) -> int:
        (value,) = _received(denoiser, [timestep], kind)
        return sum(value <= boundary for boundary in boundaries)

    return stage_of


def _received(denoiser: nn.Module, timesteps: Sequence[float], kind: torch.dtype) -> list[float]:
    """Timesteps of a scheduler, which has them in float32, as the denoiser receives them in a precision."""
    values: list[float] = handed(denoiser, torch.tensor(timesteps, dtype=torch.float32).to(kind)).tolist()
    return values
