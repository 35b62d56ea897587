"""Attention whose queries and keys are normalised across all heads at once (Wan, LTX-Video).

The scale of such a norm is cut with the heads, and the norm then runs over the heads that are left: a pruned layer is
the layer of the same class with fewer heads, not the dense one with some heads silenced.
"""

from __future__ import annotations

from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor, LTXVideoTransformerBlock
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

from . import block
from .contract import Found, Kind, Layer, Refusal, Rows
from .projections import FUSED, unproven, unusual

_OWN = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
_IMAGE = ("add_k_proj", "add_v_proj", "norm_added_k")


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The heads of one attention of Wan; a block of LTX-Video and its heads."""
    if isinstance(module, WanAttention):
        return (_of_wan(name, module),)
    return _of_ltx(name, module) if isinstance(module, LTXVideoTransformerBlock) else ()


def _of_wan(name: str, module: WanAttention) -> Layer | Refusal:
    """The heads, with those of the keys and values of an image where it attends to one."""
    reason = FUSED if module.fused_projections else unproven(module.get_processor(), WanAttnProcessor)
    if reason is None and module.kv_inner_dim != module.inner_dim:
        reason = "the heads of its keys are of another size than those of its queries"
    leaves = _OWN if module.add_k_proj is None else (*_OWN, *_IMAGE)
    linears = [module.get_submodule(leaf) for leaf in (*leaves, "to_out.0") if not leaf.startswith("norm")]
    reason = reason or unusual(*linears)
    if reason is not None:
        return Refusal(name, reason)
    return _layer(name, module, leaves, ("inner_dim", "kv_inner_dim"))


def _of_ltx(name: str, module: LTXVideoTransformerBlock) -> tuple[Found, ...]:
    """The heads that attend to the prompt. Those of the self-attention are refused: its rotary embedding gives every head
    frequencies of its own, and comes from outside at the width of all heads."""
    rotary = (
        "its rotary embedding runs across all heads and is computed outside of the block, so that fewer heads would "
        "receive the frequencies of others"
    )
    cross, attention = f"{name}.attn2", module.attn2
    reason = FUSED if attention.fused_projections else unproven(attention.get_processor(), LTXVideoAttnProcessor)
    if reason is None and attention.inner_kv_dim != attention.inner_dim:
        reason = "its keys and values have fewer heads than its queries (grouped-query attention)"
    reason = reason or unusual(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    found = _layer(cross, attention, _OWN, ("inner_dim", "inner_kv_dim")) if reason is None else Refusal(cross, reason)
    return (*block.find(name, module), Refusal(f"{name}.attn1", rotary), found)


def _layer(name: str, module: WanAttention | LTXAttention, leaves: tuple[str, ...], sizes: tuple[str, ...]) -> Layer:
    size = module.inner_dim // module.heads
    return Layer(
        name=name,
        kind=Kind.ATTENTION,
        groups=module.heads,
        width=size,
        rows=tuple(Rows(f"{name}.{leaf}") for leaf in leaves),
        output=f"{name}.to_out.0",
        counts=((name, "heads", 1), *((name, attribute, size) for attribute in sizes)),
    )
