"""What was declared of denoisers whose layers no finder knows, remembered with the denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..utils.calls import Args, Kwargs
from ..utils.errors import DiffESError
from .compiled import submodule
from .contract import Anatomy

TIMESTEP = "timestep"


@dataclass(frozen=True)
class Declared:
    """What is known of a denoiser from its declaration."""

    anatomy: Anatomy
    timestep: str  # the argument of its forward that tells the stage


_DECLARED: WeakKeyDictionary[nn.Module, Declared] = WeakKeyDictionary()


def declared(denoiser: nn.Module) -> Declared | None:
    """What was declared of a denoiser, if anything; a copy of it has to be declared anew."""
    return _DECLARED.get(submodule(denoiser, ""))


def remember(denoiser: nn.Module, known: Declared) -> None:
    """Go by what was declared of another copy of a denoiser."""
    _DECLARED[submodule(denoiser, "")] = known


def timestep_of(denoiser: nn.Module) -> str:
    """The argument of a denoiser's forward that tells the stage."""
    known = declared(denoiser)
    return TIMESTEP if known is None else known.timestep


def check_evaluating(denoiser: nn.Module) -> None:
    """Whether a denoiser, and what in it tells the modes apart, is in evaluation mode.

    Raises:
        DiffESError: it is not.
    """
    named = (name for name, module in denoiser.named_modules() if module.training and (not name or _varies(module)))
    training = next(named, None)
    if training is not None:
        where = f"denoiser, {training}" if training else "denoiser"
        found, remedy = "training mode, in which activations are dropped at random", "Call its eval() first."
        raise DiffESError(where, expected="evaluation mode", found=found, remedy=remedy)


def _varies(module: nn.Module) -> bool:
    """Whether a module of PyTorch's gives something else in training mode, and is not a part of one that does."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RReLU | nn.modules.batchnorm._NormBase)


def time_reader(denoiser: nn.Module, name: str | None = None) -> Callable[[Args, Kwargs], Any]:
    """Finds in the arguments of a denoiser's call the one that tells the stage: a number, or a tensor of them.

    Args:
        name: of the argument; None: what was declared, or ``timestep``.

    Raises:
        DiffESError: its forward has none of that name; the function raises it for a call that brings none.
    """
    name, kind = name or timestep_of(denoiser), type(submodule(denoiser, ""))
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if name not in names and len(names) == len(parameters):
        expected, found = f"an argument `{name}`, which tells the stage", ", ".join(names) or "none"
        remedy = 'Name the one that does when you declare the denoiser: declare(..., timestep="t").'
        raise DiffESError(f"{kind.__name__}.forward", expected=expected, found=found, remedy=remedy)
    position = names.index(name) if name in names else None

    def read(args: Args, kwargs: Kwargs) -> Any:
        by_place = args[position] if position is not None and position < len(args) else None
        value = kwargs.get(name, by_place)
        empty = isinstance(value, Tensor) and (value.numel() == 0 or value.dtype is torch.bool or value.is_complex())
        if empty or not isinstance(value, Tensor | Real):
            found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            expected, remedy = "a number, or a tensor of them, in every call", "Call the denoiser with its timestep."
            raise DiffESError(f"{kind.__name__}.forward, {name}", expected=expected, found=found, remedy=remedy)
        return value

    return read
