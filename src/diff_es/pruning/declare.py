"""Declaring what can be pruned in a denoiser whose layers no finder knows: in a few lines, tried out at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ..layers.contract import Anatomy, Layer
from ..layers.declaration import Declaration, Residual, check_said, wrong
from ..layers.declared import TIMESTEP, Declared, check_evaluating, remember, time_reader
from ..layers.described import check_apart, described, matching
from ..layers.discovery import discover
from ..layers.streams import watched
from ..utils.calls import Args, Kwargs
from ..utils.errors import DiffESError
from .declare_check import repeated, try_blocks, try_call, try_layers


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

    def hook(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        read(args, kwargs)

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        try_call(denoiser, call)
    finally:
        handle.remove()
