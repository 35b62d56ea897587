"""Feed-forward hidden channels: rows of the first linear (both halves under a gate), columns of the second."""

from __future__ import annotations

from diffusers.models.activations import GEGLU, GELU, ApproximateGELU, LinearActivation, SwiGLU
from diffusers.models.attention import FeedForward
from torch import nn

from .contract import Found, Kind, Layer, Refusal, Rows

_CHUNKS = {GELU: 1, ApproximateGELU: 1, LinearActivation: 1, GEGLU: 2, SwiGLU: 2}


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The hidden channels of one feed-forward module."""
    return (_channels(name, module),) if isinstance(module, FeedForward) else ()


def _channels(name: str, module: FeedForward) -> Layer | Refusal:
    first, last = module.net[0], module.net[2]
    chunks = _CHUNKS.get(type(first))
    if chunks is None:
        return Refusal(name, f"its activation {type(first).__name__} is not one of {', '.join(_names())}")
    for part in (first.proj, last):
        if type(part) is not nn.Linear:
            kind = type(part).__name__
            return Refusal(name, f"a projection is a {kind}, not a plain nn.Linear (unload or merge adapters first)")
    return Layer(
        name=name,
        kind=Kind.FEEDFORWARD,
        groups=last.in_features,
        width=1,
        rows=(Rows(f"{name}.net.0.proj", chunks),),
        output=f"{name}.net.2",
    )


def _names() -> list[str]:
    return sorted(kind.__name__ for kind in _CHUNKS)
