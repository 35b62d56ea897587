"""Attention heads: rows of q, k and v, columns of the output projection."""

from __future__ import annotations

from diffusers.models.attention_processor import Attention
from torch import nn

from .contract import Kind, Layer, Refusal, Rows


def find(name: str, module: Attention) -> Layer | Refusal:
    """The heads of one attention module; diffusers' processors read ``heads`` and infer the head size, so smaller
    projections and one integer are enough."""
    reason = _obstacle(module)
    if reason is not None:
        return Refusal(name, reason)
    size = module.inner_dim // module.heads
    sizes = ((name, "inner_dim", size), (name, "inner_kv_dim", size))
    return Layer(
        name=name,
        kind=Kind.ATTENTION,
        groups=module.heads,
        width=size,
        rows=(Rows(f"{name}.to_q"), Rows(f"{name}.to_k"), Rows(f"{name}.to_v")),
        output=f"{name}.to_out.0",
        counts=((name, "heads", 1), (name, "sliceable_head_dim", 1), *sizes),
    )


def _obstacle(module: Attention) -> str | None:
    if module.fused_projections:
        return "its q, k and v are fused: call pipe.transformer.unfuse_qkv_projections() first"
    if module.inner_kv_dim != module.inner_dim:
        return "its keys and values have fewer heads than its queries (grouped-query attention)"
    if module.add_k_proj is not None or module.added_kv_proj_dim is not None:
        return "it attends jointly with a second stream (add_k_proj), which this version does not slim"
    if module.norm_q is not None or module.norm_k is not None:
        return "it normalises queries or keys, which this version does not slim"
    if module.spatial_norm is not None or module.group_norm is not None or module.norm_cross:
        return "it normalises its input inside the attention module, which this version does not slim"
    if module.to_out is None or module.pre_only:
        return "it has no output projection of its own"
    for part in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
        if type(part) is not nn.Linear:
            return f"a projection is a {type(part).__name__}, not a plain nn.Linear (unload or merge adapters first)"
    return None
