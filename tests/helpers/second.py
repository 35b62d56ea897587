"""A second device where there is only a processor: PyTorch's lazy tensors, which lie elsewhere and mix with no others.

It is what offloading needs to be seen at work in CI. Slow, and in need of some mending.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch._lazy
from torch import Tensor
from torch._lazy import ts_backend
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

SECOND = "lazy"
_MAKERS = {torch.arange, torch.empty, torch.full, torch.linspace, torch.ones, torch.randn, torch.tensor, torch.zeros}
_LEAVING = {"cpu", "to", "numpy", "tolist", "item", "__get__", "__set__"}


@cache
def _begin() -> None:
    ts_backend.init()
    module = types.ModuleType("torch.lazy")
    for name in ("synchronize", "empty_cache"):
        setattr(module, name, lambda *_: None)
    torch.lazy = module  # type: ignore[attr-defined]  # where diffusers looks for a device's own functions


@contextmanager
def second_device() -> Iterator[None]:
    """With ``SECOND`` at hand."""
    _begin()
    with _Mended():
        yield


class _Mended(TorchFunctionMode):
    """What the backend leaves on the CPU is brought back, and the data of a tensor may be exchanged across devices.

    Every operation is run at once: compiling them together takes the backend twenty times as long.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._run(func, args, dict(kwargs or {}))
        if any(map(_lies_there, tree_leaves(result))):
            torch._lazy.mark_step()
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func == Tensor.data.__set__ and args[0].device != args[1].device:  # type: ignore[attr-defined]
            own, other = args[0], args[1].detach()
            parameter = isinstance(own, torch.nn.Parameter)
            torch.utils.swap_tensors(own, torch.nn.Parameter(other, own.requires_grad) if parameter else other)
            return None
        if func in _MAKERS and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == SECOND:
            return func(*args, **{**kwargs, "device": "cpu"}).to(SECOND)
        if func in (torch.chunk, Tensor.chunk) and _lies_there(args[0]):
            return _chunked(*args, **kwargs)
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _LEAVING or not any(map(_lies_there, tree_leaves((args, kwargs)))):
            return result
        return tree_map_only(Tensor, lambda t: t if _lies_there(t) else t.to(SECOND), result)


def _lies_there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == SECOND


def _chunked(tensor: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    whole = tensor.shape[dim]
    size = -(-whole // chunks)
    return tuple(tensor.narrow(dim, start, min(size, whole - start)) for start in range(0, whole, size))
