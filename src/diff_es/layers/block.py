"""Whole residual blocks: what a transformer repeats, hidden states in and hidden states out."""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from .contract import Block


def find(name: str, module: nn.Module) -> Block | None:
    """A block that maps hidden states to hidden states of the same shape."""
    if not isinstance(module, BasicTransformerBlock):
        return None
    return Block(name, module.dim)
