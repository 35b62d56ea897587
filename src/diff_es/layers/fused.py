"""Single-stream blocks whose attention and feed-forward run side by side into one output projection.

Of the columns of ``proj_out`` the first belong to the heads, the rest to the channels of the feed-forward; both are
layers of their own that share the output.
"""

from __future__ import annotations

from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxSingleTransformerBlock
from torch import nn

from . import block
from .contract import Found, Kind, Layer, Refusal, Rows
from .projections import FUSED, unproven, unusual


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """One block, its heads, and its feed-forward channels."""
    if not isinstance(module, FluxSingleTransformerBlock):
        return ()
    output, attention, whole = f"{name}.proj_out", module.attn, block.find(name, module)
    reason = _obstacle(module)
    if reason is not None:
        return (*whole, Refusal(f"{name}.attn", reason), Refusal(f"{name}.proj_mlp", reason))
    size, hidden = attention.head_dim, module.proj_mlp.out_features
    rows = tuple(Rows(f"{name}.attn.{leaf}") for leaf in ("to_q", "to_k", "to_v"))
    counts = ((f"{name}.attn", "heads", 1), (f"{name}.attn", "inner_dim", size))
    heads = Layer(f"{name}.attn", Kind.ATTENTION, attention.heads, size, rows, output, counts)
    inner, channels = f"{name}.proj_mlp", (Rows(f"{name}.proj_mlp"),)
    start = attention.heads * size
    return (*whole, heads, Layer(inner, Kind.FEEDFORWARD, hidden, 1, channels, output, start=start))


def _obstacle(module: FluxSingleTransformerBlock) -> str | None:
    attention = module.attn
    if attention.fused_projections:
        return FUSED
    reason = unproven(attention.get_processor(), FluxAttnProcessor)
    return reason or unusual(attention.to_q, attention.to_k, attention.to_v, module.proj_mlp, module.proj_out)
