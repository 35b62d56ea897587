"""Denoisers whose layers no finder knows: what can be pruned in them, declared in a few lines, tried out at once, and
remembered with the denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import DiffESError
from .compiled import submodule
from .contract import Anatomy, Layer
from .declaration import Declaration, Residual, check_said, wrong
from .described import check_apart, described, matching
from .discovery import discover
from .streams import watched
from .trial import repeated, try_blocks, try_call, try_layers

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


def declare(
    denoiser: nn.Module, declaration: Declaration | None, call: Callable[[], object], *, timestep: str | None = None
) -> Anatomy:
    """The anatomy that a declaration gives a denoiser, after trying it out on one call.

    It is kept with the denoiser as long as this lives: from then on, whatever works on the denoiser goes by it, in
    place of what discovery would find. A saved result is run in a new process by declaring the same there first.

    Every layer is run without its first group, and without its last, and must hand its output projection what the dense
    one does in the groups that stay; every block is left out. That takes seven calls, one more for each block, and some
    for each layer only where one is wrong.

    Args:
        declaration: None: what discovery finds, of layers that diffusers' models are made of, such as where one of them
            is wrapped in a module of the user's own.
        call: runs the denoiser once on any input, such as ``lambda: denoiser(noise, timestep=t)``.
        timestep: the argument of the denoiser's forward that tells the stage: a number, or one for each sample, that
            falls from noise to image; None: ``timestep``.

    Raises:
        DiffESError: the declaration does not describe this denoiser; the message names the module and what to say.
    """
    if not isinstance(denoiser, nn.Module):
        found, remedy = f"a {type(denoiser).__name__}", "Give the module whose forward is called, such as pipe.unet."
        raise DiffESError("declaration", expected="a denoiser to declare", found=found, remedy=remedy)
    check_evaluating(denoiser)
    if declaration is None:
        return _discovered(denoiser, call, timestep)
    layers, blocks = list[Layer](), list[Residual]()
    for part in declaration:
        check_said(part)
        for name in matching(denoiser, part.module):
            if isinstance(part, Residual):
                blocks.append(replace(part, module=name))
            else:
                layers.append(described(denoiser, name, part))
    check_apart(layers)
    if not layers and not blocks:
        remedy = "Declare its Heads, Channels or Residual blocks."
        raise wrong("", "something that can be pruned", "nothing", remedy)
    _try(denoiser, timestep, call)
    anatomy = Anatomy(tuple(layers), watched(denoiser, blocks, lambda: repeated(denoiser, call)), ())
    try_layers(denoiser, anatomy, call)
    try_blocks(denoiser, anatomy, call)
    remember(denoiser, Declared(anatomy, timestep or TIMESTEP))
    return anatomy


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


def time_reader(denoiser: nn.Module, name: str | None = None) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
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

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        by_place = args[position] if position is not None and position < len(args) else None
        value = kwargs.get(name, by_place)
        empty = isinstance(value, Tensor) and (value.numel() == 0 or value.dtype is torch.bool or value.is_complex())
        if empty or not isinstance(value, Tensor | Real):
            found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            expected, remedy = "a number, or a tensor of them, in every call", "Call the denoiser with its timestep."
            raise DiffESError(f"{kind.__name__}.forward, {name}", expected=expected, found=found, remedy=remedy)
        return value

    return read


def _discovered(denoiser: nn.Module, call: Callable[[], object], timestep: str | None) -> Anatomy:
    """The anatomy that discovery finds; raises as :func:`declare` does."""
    _try(denoiser, timestep, call)
    anatomy = discover(denoiser)
    if not anatomy.layers and not anatomy.blocks:
        found = "; ".join(f"{one.name}: {one.reason}" for one in anatomy.refusals[:3]) or "none of a known kind"
        raise wrong("", "layers that diffusers' models are made of", found, "Declare its Heads, Channels or Residual.")
    remember(denoiser, Declared(anatomy, timestep or TIMESTEP))
    return anatomy


def _try(denoiser: nn.Module, name: str | None, call: Callable[[], object]) -> None:
    """Whether a call runs, and brings a timestep where one is named; raises as :func:`time_reader` does."""
    if name is None:
        try_call(denoiser, call)
        return
    read = time_reader(denoiser, name)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read(args, kwargs)

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        try_call(denoiser, call)
    finally:
        handle.remove()
