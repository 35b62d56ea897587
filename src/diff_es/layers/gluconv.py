"""Gated convolutional feed-forward (Sana): channels of a depthwise convolution between two of kernel size 1."""

from __future__ import annotations

from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import nn

from .contract import Found, Kind, Layer, Refusal, Rows


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The hidden channels of one module."""
    return (_channels(name, module),) if isinstance(module, GLUMBConv) else ()


def _channels(name: str, module: GLUMBConv) -> Layer | Refusal:
    """A row of value and gate in ``conv_inverted`` and ``conv_depth``, a column of ``conv_point``.

    The norm and the residual come after the output projection and stay as they are.
    """
    for part in (module.conv_inverted, module.conv_depth, module.conv_point):
        if type(part) is not nn.Conv2d:
            kind = type(part).__name__
            return Refusal(name, f"a projection is a {kind}, not a plain nn.Conv2d (unload or merge adapters first)")
    depth = f"{name}.conv_depth"
    return Layer(
        name=name,
        kind=Kind.FEEDFORWARD,
        groups=module.conv_point.in_channels,
        width=1,
        rows=(Rows(f"{name}.conv_inverted", 2), Rows(depth, 2)),
        output=f"{name}.conv_point",
        counts=((depth, "groups", 2),),
    )
