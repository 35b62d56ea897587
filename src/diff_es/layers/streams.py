"""What passes through the blocks of a declaration in one call: which streams, how wide, and along which side."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.calls import Args, Kwargs
from .compiled import submodule
from .contract import Block
from .convolutions import Convolution, channel_dimension, given_to
from .declaration import STREAMS, Residual, wrong

_LAST = nn.Linear | nn.LayerNorm | nn.RMSNorm
_SECOND = nn.GroupNorm | nn.modules.batchnorm._NormBase


def watched(denoiser: nn.Module, blocks: Sequence[Residual], call: Callable[[], object]) -> tuple[Block, ...]:
    """The blocks of a declaration, whose names are whole, with the channels of what they receive in a call.

    Raises:
        DiffESError: one of them is no residual block as it is declared, or does not run.
    """
    found = dict[str, Block]()
    with ExitStack() as stack:
        for block in blocks:
            watch = _Watch(denoiser, block, found)
            stack.callback(watch.remove)
        with torch.no_grad():
            call()
    for block in blocks:
        if block.module not in found:
            raise wrong(block.module, "to run in a call of the denoiser", "that it does not", "Leave it out.")
    return tuple(found[block.module] for block in blocks)


class _Watch:
    """Hooks on a block, and on the layers inside it whose kind tells where their inputs have channels."""

    def __init__(self, denoiser: nn.Module, block: Residual, found: dict[str, Block]) -> None:
        self._block, self._found = block, found
        self._hidden: Tensor | None = None
        self._version: int | None = None  # of the hidden states, where PyTorch counts what is written to them
        self._own, self._derived = set[int](), set[int]()  # sides that layers read the hidden states, and others, by
        if not block.module:
            remedy = "Name the blocks inside it."
            raise wrong("Residual", "a block of the denoiser", "the denoiser itself", remedy)
        module = submodule(denoiser, block.module)
        self._names = list(inspect.signature(type(module).forward).parameters)[1:]
        self._handles = [
            module.register_forward_pre_hook(self._enter, with_kwargs=True),
            module.register_forward_hook(self._leave, with_kwargs=True),
        ]
        for part in module.modules():
            if isinstance(part, _LAST | _SECOND | Convolution):
                self._handles.append(part.register_forward_pre_hook(self._inside, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        given = args[0] if args else kwargs.get(self._names[0])
        self._hidden = given if isinstance(given, Tensor) else None
        self._version = None if self._hidden is None or self._hidden.is_inference() else self._hidden._version

    def _inside(self, part: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Note which side of the hidden states a layer's channels are, if it reads these, or something made of them."""
        inputs, hidden = given_to(args, kwargs), self._hidden
        if hidden is None or inputs.numel() != hidden.numel() or hidden.dim() < 3:
            return
        if isinstance(part, nn.LayerNorm | nn.RMSNorm) and len(part.normalized_shape) > 1:
            return  # of channels and places alike
        channels = 1 if isinstance(part, _SECOND) else channel_dimension(part, inputs)
        sides, size = (1, hidden.dim() - 1), inputs.shape[channels]
        if inputs.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr():
            step = inputs.stride(channels)
            self._own |= {side for side in sides if hidden.shape[side] == size and hidden.stride(side) == step}
        elif hidden.shape[sides[0]] != hidden.shape[sides[1]]:
            self._derived |= {side for side in sides if hidden.shape[side] == size}
        elif inputs.shape == hidden.shape:
            self._derived |= {channels} & set(sides)

    def _leave(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        block, hidden, names = self._block, self._hidden, self._names
        self._hidden = None
        if hidden is not None and self._version is not None and hidden._version != self._version:
            remedy = "Have it add to a tensor of its own, x = x + y in place of x += y, or leave it out."
            raise wrong(block.module, "to leave the hidden states that it is given", "that it writes to them", remedy)
        if STREAMS[1] in block.returns and STREAMS[1] not in (names[1:2] if len(args) > 1 else kwargs):
            expected, found = f"to take {STREAMS[1]} second, or by name", f"{names[1:2]} in its place"
            raise wrong(block.module, expected, found, "Put it second in its forward, or pass it by name.")
        given = dict(zip(names, args, strict=False)) | kwargs
        given |= {STREAMS[0]: given.get(names[0])}
        returned = dict(zip(block.returns, output, strict=False)) if block.returns else {STREAMS[0]: output}
        if isinstance(output, tuple) != bool(block.returns) or (block.returns and len(output) != len(block.returns)):
            found = f"a tuple of {len(output)}" if isinstance(output, tuple) else f"a {type(output).__name__}"
            expected = f"to return {block.returns or 'a tensor'}"
            raise wrong(block.module, expected, found, "Declare what it returns: Residual(..., returns=(...)).")
        for stream in {STREAMS[0], *block.returns}:
            if not _alike(given.get(stream), returned.get(stream)):
                expected = f"{stream} in and out in the same shape"
                remedy = "A residual block takes its hidden states first, and changes them by what it adds."
                raise wrong(block.module, expected, _shapes(given.get(stream), returned.get(stream)), remedy)
        second = given[STREAMS[1]].shape[-1] if STREAMS[1] in block.returns else None
        hidden = given[STREAMS[0]]
        pixels = self._pixels(hidden)
        width = hidden.shape[1 if pixels else -1]
        self._found[block.module] = Block(block.module, width, second, block.returns, pixels)

    def _pixels(self, hidden: Tensor) -> bool:
        """Whether channels are the second side of the hidden states.

        Raises:
            DiffESError: the block's layers say otherwise than the declaration, or neither says it.
        """
        said, name, shape = self._block.pixels, self._block.module, tuple(hidden.shape)
        if said and not 3 <= hidden.dim() <= 5:
            raise wrong(
                name, "hidden states (N, channels, H, W) or (N, channels, L)", f"{shape}", "Leave out `pixels`."
            )
        if hidden.dim() < 3:
            return False
        sides = self._own or self._derived
        seen = sides == {1} if len(sides) == 1 else None
        if seen is None and said is None:
            remedy = "Say Residual(..., pixels=True) where channels come second, pixels=False where they come last."
            found = "layers that read them either way" if sides else "no layer that tells"
            raise wrong(name, f"to know which side of its hidden states {shape} is channels", found, remedy)
        if None not in (seen, said) and seen != said:
            found = f"layers that read them along side {1 if seen else hidden.dim() - 1} of {shape}"
            remedy = f"Say Residual(..., pixels={seen}), or leave `pixels` out."
            raise wrong(name, f"hidden states with channels {'second' if said else 'last'}", found, remedy)
        pixels = bool(said if seen is None else seen)
        if pixels and self._block.returns:
            remedy = "Leave the block out: of pixels, those are skipped that return a tensor."
            raise wrong(name, "a block of pixels that returns a tensor", f"a tuple of {self._block.returns}", remedy)
        return pixels


def _alike(given: object, returned: object) -> bool:
    return isinstance(given, Tensor) and isinstance(returned, Tensor) and given.shape == returned.shape


def _shapes(*values: object) -> str:
    return " and ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)
