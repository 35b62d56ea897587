"""PyTorch's own multi-head attention, which cannot run with fewer heads."""

from __future__ import annotations

from torch import nn

from .contract import Found, Refusal

REASON = (
    "nn.MultiheadAttention takes the size of a head from the width of its input, and reads the weight of its output "
    "projection past that module, so that it cannot run with fewer heads: put an attention with separate q, k and v in "
    "its place (diff_es.layers.separate_attention), and declare its heads"
)


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """A refusal for every one."""
    return (Refusal(name, REASON),) if isinstance(module, nn.MultiheadAttention) else ()
