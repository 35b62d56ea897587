"""Timesteps that are run whole: whoever takes a part of them is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..utils.calls import Kwargs
from ..utils.errors import DiffESError
from .samplers import OTHERWISE

LEAVE = "leave the `routed` context or call `remove(pipe)` first"


class Whole(Tensor):
    """The chosen timesteps as pipelines see them, (T,): a loop over all of them runs, one over a part is refused."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Kwargs | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func in _MOVES and isinstance(args[0], Whole):
            return result.as_subclass(type(args[0]))
        if func is not Tensor.__getitem__ or not result.dim():
            return result
        return result.as_subclass(Part) if len(result) else _refuse_part(result)

    def __iter__(self) -> Any:
        return iter(self.as_subclass(Tensor))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()


class Part(Whole):
    """Some of the chosen timesteps: what image to image takes by a strength, or a run that stops early."""

    def __iter__(self) -> Any:
        _refuse_part(self)


_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.clone, Tensor.detach)


def _refuse_part(values: Tensor) -> NoReturn:
    remedy = (
        f"Call it without what shortens a run, such as strength or denoising_end, or {LEAVE}; or search levels alone "
        f"({OTHERWISE}), which hold wherever a pipeline begins and ends."
    )
    expected, found = "one that takes all of the chosen steps, from noise on", f"one that takes {values.tolist()}"
    raise DiffESError("pipe", expected=expected, found=found, remedy=remedy)
