"""Joint attention of two streams: heads shared by both, projections and an output of each stream's own.

The heads of the image stream lead; the text stream's output projection, where it has one, follows with the same heads.
"""

from __future__ import annotations

from diffusers.models.attention_processor import (
    Attention,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from torch import nn

from .contract import Found, Kind, Layer, Refusal, Rows
from .projections import FUSED, unproven, unusual

_PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The heads of one joint attention; norms of single heads and rotary embeddings are the same for every head and
    stay as they are."""
    if not isinstance(module, FluxAttention) and not (isinstance(module, Attention) and _is_joint(module)):
        return ()
    reason = _obstacle(module)
    if reason is not None:
        return (Refusal(name, reason),)
    size = module.inner_dim // module.heads
    rows = tuple(Rows(f"{name}.{leaf}") for leaf in _PROJECTIONS)
    lead = Layer(name, Kind.ATTENTION, module.heads, size, rows, f"{name}.to_out.0", _counts(name, module, size))
    if module.context_pre_only:
        return (lead,)
    output = f"{name}.to_add_out"
    return lead, Layer(output, Kind.ATTENTION, module.heads, size, (), output, follows=name)


def _is_joint(module: Attention) -> bool:
    """Whether a second stream has queries, keys and values of its own."""
    return module.added_kv_proj_dim is not None and module.context_pre_only is not None


def _counts(name: str, module: Attention | FluxAttention, size: int) -> tuple[tuple[str, str, int], ...]:
    if isinstance(module, FluxAttention):
        return (name, "heads", 1), (name, "inner_dim", size)
    counts = {"heads": 1, "sliceable_head_dim": 1, "inner_dim": size, "inner_kv_dim": size}
    return tuple((name, attribute, each) for attribute, each in counts.items())


def _obstacle(module: Attention | FluxAttention) -> str | None:
    processor = module.get_processor()
    if isinstance(module, FluxAttention):
        reason = FUSED if module.fused_projections else unproven(processor, FluxAttnProcessor)
        if module.pre_only or module.added_kv_proj_dim is None:
            reason = "it is part of a block that is not among the kinds that are known: declare its heads"
    else:
        known = (JointAttnProcessor2_0, QwenDoubleStreamAttnProcessor2_0)
        reason = FUSED if isinstance(processor, FusedJointAttnProcessor2_0) else unproven(processor, *known)
        if module.inner_kv_dim != module.inner_dim:
            reason = "its keys and values have fewer heads than its queries (grouped-query attention)"
    if reason is not None:
        return reason
    norms = [module.norm_q, module.norm_k, module.norm_added_q, module.norm_added_k]
    return _spanning(module.inner_dim // module.heads, norms) or unusual(*_linears(module))


def _spanning(size: int, norms: list[nn.Module | None]) -> str | None:
    """Whether a norm of queries or keys runs over more than one head."""
    lengths = {len(weight) for norm in norms if norm is not None for weight in norm.parameters()}
    return "it normalises queries or keys across heads" if lengths - {size} else None


def _linears(module: Attention | FluxAttention) -> list[nn.Module]:
    parts = [module.get_submodule(leaf) for leaf in (*_PROJECTIONS, "to_out.0")]
    return parts if module.context_pre_only else [*parts, module.to_add_out]
