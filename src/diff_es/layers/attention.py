"""Attention heads: rows of q, k and v, columns of the output projection."""

from __future__ import annotations

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import (
    Attention,
    FusedAttnProcessor2_0,
    FusedAuraFlowAttnProcessor2_0,
    FusedCogVideoXAttnProcessor2_0,
    FusedHunyuanAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
)
from torch import nn

from .contract import Found, Kind, Layer, Refusal, Rows

# read to_qkv; `fused_projections` stays true when the stock processors are back, and to_q, to_k and to_v in use
_FUSED = (
    FusedAttnProcessor2_0,
    FusedAuraFlowAttnProcessor2_0,
    FusedCogVideoXAttnProcessor2_0,
    FusedHunyuanAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
)


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The heads of one attention module, of self- or cross-attention; those of keys and values where they are fewer.

    diffusers' processors read ``heads`` and infer the head size, so smaller projections and one integer are enough. A
    norm of the module's input, and norms of queries and keys in each head, are the same for all heads and stay. A norm
    of queries or keys across all heads is sliced: it normalises over what is left.
    """
    if isinstance(module, AttentionModuleMixin):
        kind = type(module).__name__
        return (Refusal(name, f"its class {kind} is an attention that this version does not know: declare its heads"),)
    if not isinstance(module, Attention):
        return ()
    reason = obstacle(module)
    if reason is not None:
        return (Refusal(name, reason),)
    size = module.inner_dim // module.heads
    groups = module.inner_kv_dim // size
    shared = module.heads // groups  # query heads for each head of keys and values
    keys = None if shared == 1 else size
    rows = [Rows(f"{name}.to_q"), Rows(f"{name}.to_k", width=keys), Rows(f"{name}.to_v", width=keys)]
    if spans_heads(module.norm_q, module.inner_dim, size):
        rows.append(Rows(f"{name}.norm_q"))
    if spans_heads(module.norm_k, module.inner_kv_dim, size):
        rows.append(Rows(f"{name}.norm_k", width=keys))
    return (
        Layer(
            name=name,
            kind=Kind.ATTENTION,
            groups=groups,
            width=shared * size,
            rows=tuple(rows),
            output=f"{name}.to_out.0",
            counts=(
                (name, "heads", shared),
                (name, "sliceable_head_dim", shared),
                (name, "inner_dim", shared * size),
                (name, "inner_kv_dim", size),
            ),
        ),
    )


def spans_heads(norm: nn.Module | None, channels: int, size: int) -> bool:
    """Whether a norm of queries or keys has a scale for each of all their channels, rather than for those of a head."""
    scales = [] if norm is None else list(norm.parameters(recurse=False))
    return channels > size and any(len(scale) == channels for scale in scales)


def obstacle(module: Attention) -> str | None:
    """Why the heads of an attention module cannot be thinned, if so."""
    if isinstance(module.processor, _FUSED):
        return "its q, k and v are fused: call unfuse_qkv_projections() of the denoiser first"
    if isinstance(module.processor, nn.Module):
        return f"its processor {type(module.processor).__name__} has weights of its own (unload the adapter first)"
    if module.add_k_proj is not None or module.added_kv_proj_dim is not None:
        return "it attends jointly with a second stream (add_k_proj), which this version does not slim"
    if module.spatial_norm is not None:
        return "it has a spatial norm, which this version does not slim"
    if not isinstance(module.to_out, nn.ModuleList) or module.pre_only:
        return "it has no output projection of its own"
    for part in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
        if type(part) is not nn.Linear:
            return f"a projection is a {type(part).__name__}, not a plain nn.Linear (unload or merge adapters first)"
    return None
