"""What runs in the place of skipped blocks, and what dense ones would have carried past themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, linear

from ..layers.compiled import submodule
from ..layers.contract import Block, Bypass


def stand_in(denoiser: nn.Module, block: Block, bypass: Bypass | None) -> Callable[..., Any]:
    """A forward for a block that is skipped; None leaves nothing behind."""
    if bypass is None and not block.returns and block.shortcut is None:
        return _left_out
    if block.pixels:
        return _Pixels(bypass, shortcut_of(denoiser, block)).forward
    return (_Streams(bypass, block.returns) if block.returns else _StandIn(bypass)).forward


def shortcut_of(denoiser: nn.Module, block: Block) -> nn.Conv2d | None:
    """The convolution that carries a block's hidden states past it, if there is one."""
    if block.shortcut is None:
        return None
    module = submodule(denoiser, block.shortcut)
    assert isinstance(module, nn.Conv2d)
    return module


def picking(module: nn.Module, wrapper: Any, argument: str, picks: Tensor) -> Callable[..., Any]:
    """A forward that gives the module's own, or the user's wrapper of it, the picked columns of one argument."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    own = partial(type(module).forward, module) if wrapper is None else wrapper
    return _Picking(own, names, argument, picks).forward


class _Picking(nn.Module):
    """A module for the same reason as a stand-in."""

    picks: Tensor

    def __init__(self, own: Callable[..., Any], names: Sequence[str], argument: str, picks: Tensor) -> None:
        super().__init__()
        self.own, self.names, self.argument = own, names, argument
        self.register_buffer("picks", picks)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        whole = given.get(self.argument)
        if isinstance(whole, Tensor):
            given[self.argument] = whole[..., self.picks.to(whole.device)]
        elif whole is not None:
            given[self.argument] = tuple(part[..., self.picks.to(part.device)] for part in whole)
        return self.own(**given)


class _StandIn(nn.Module):
    """A module, because torch.compile tells objects apart by their identity but the parameters of modules by their
    shapes: all stages share one compilation."""

    weight: nn.Parameter
    bias: nn.Parameter
    context_weight: nn.Parameter
    context_bias: nn.Parameter

    def __init__(self, bypass: Bypass | None) -> None:
        super().__init__()
        self.parts = () if bypass is None else tuple(bypass.tensors())
        for name, tensor in ({} if bypass is None else bypass.tensors()).items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # offloading moves what hangs on the denoiser's modules, which this does not
        return hidden_states + linear(hidden_states, self.weight.to(hidden_states), self.bias.to(hidden_states))


class _Pixels(_StandIn):
    """Of a ResNet block: hidden states (N, channels, H, W), or of one or three dimensions in place of two."""

    def __init__(self, bypass: Bypass | None, shortcut: nn.Conv2d | None) -> None:
        super().__init__(bypass)
        self.shortcut = shortcut

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        carried = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        if not self.parts:
            return carried
        dimensions = hidden_states.dim() - 2
        weight = self.weight[(..., *[None] * dimensions)].to(hidden_states)
        convolve = (conv1d, conv2d, conv3d)[dimensions - 1]
        return carried + convolve(hidden_states, weight, self.bias.to(hidden_states))


class _Streams(_StandIn):
    """Of a block that returns a tuple of its streams."""

    def __init__(self, bypass: Bypass | None, returns: tuple[str, ...]) -> None:
        super().__init__(bypass)
        self.returns = returns

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any) -> Any:
        streams = {"hidden_states": hidden_states, "encoder_hidden_states": encoder_hidden_states}
        if self.parts:
            streams["hidden_states"] = super().forward(hidden_states)
        if "context_weight" in self.parts:
            weight, bias = (part.to(encoder_hidden_states) for part in (self.context_weight, self.context_bias))
            added = linear(encoder_hidden_states, weight, bias)
            streams["encoder_hidden_states"] = encoder_hidden_states + added
        return tuple(streams[name] for name in self.returns)


def _left_out(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for the forward of a block that leaves nothing behind."""
    return hidden_states
