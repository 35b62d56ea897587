"""Whole residual blocks: what a transformer repeats, hidden states in and hidden states out."""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from .contract import Block, Found


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """A block that maps hidden states to hidden states of the same shape."""
    return (Block(name, module.dim),) if isinstance(module, BasicTransformerBlock) else ()
