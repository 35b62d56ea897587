"""What denoiser calls really compute, operation by operation, without the counter of the package or PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from diff_es.pipelines.sampling import denoiser_of
from diff_es.pipelines.timestep_hook import on_timestep

aten = torch.ops.aten


class Call(NamedTuple):
    timestep: float
    macs: int


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert "attention" not in str(func), "counted as matrix products"
        if func in (aten.mm.default, aten.bmm.default):
            self.macs += out.numel() * args[0].shape[-1]
        elif func in (aten.addmm.default, aten.baddbmm.default):
            self.macs += out.numel() * args[1].shape[-1]
        elif func is aten.convolution.default:
            self.macs += out.numel() * args[1][0].numel()
        return out


@contextmanager
def counted(pipe: DiffusionPipeline) -> Iterator[list[Call]]:
    """The timestep and the multiply-accumulates of every denoiser call inside the block, as they come."""
    calls, started = list[Call](), list[tuple[float, int]]()
    with sdpa_kernel(SDPBackend.MATH), _Counting() as mode:
        handles = (
            on_timestep(denoiser_of(pipe), lambda timestep: started.append((timestep, mode.macs))),
            denoiser_of(pipe).register_forward_hook(
                lambda *_: calls.append(Call(started[-1][0], mode.macs - started[-1][1]))
            ),
        )
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()
