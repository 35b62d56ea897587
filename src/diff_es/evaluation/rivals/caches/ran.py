"""How much of the denoiser a way to sample really runs: a cache decides that as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ....pipelines.families import Pipeline
from ....pipelines.sampling import denoiser_of


@contextmanager
def counted(pipe: Pipeline) -> Iterator[Ran]:
    """Count what its denoiser runs, however it is called; a way to sample is entered inside."""
    ran, denoiser, call = Ran(), denoiser_of(pipe), ExitStack()

    def begin(*_: object) -> None:
        call.enter_context(ran)

    def end(*_: object) -> None:
        call.close()

    before, after = denoiser.register_forward_pre_hook(begin), denoiser.register_forward_hook(end, always_call=True)
    try:
        yield ran
    finally:
        before.remove()
        after.remove()


class Ran(TorchDispatchMode):
    """Matrix products, convolutions and attention that run, by the rules of PyTorch's counter. That itself cannot
    follow modules that hold each other, as those of cache-dit do, and has no rule for attention on the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @property
    def macs(self) -> float:
        """Multiply-accumulates."""
        return self.flops / 2

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out, kind = func(*args, **kwargs), func._overloadpacket
        if kind is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(one.shape for one in args[:3]))
        elif kind in flop_registry:
            self.flops += flop_registry[kind](*args, **kwargs, out_val=out)
        return out
