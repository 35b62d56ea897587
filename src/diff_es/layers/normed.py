"""Attention whose queries and keys are normalised across all heads at once (Wan, LTX-Video).

The scale of such a norm is cut with the heads, and the norm then runs over the heads that are left: a pruned layer is
the layer of the same class with fewer heads, not the dense one with some heads silenced. The rotary embedding of
LTX-Video also runs across all heads, and comes from outside: what belongs to the heads that stay is gathered from it.
"""

from __future__ import annotations

from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

from .contract import Found, Kind, Layer, Refusal, Rows
from .projections import FUSED, unproven, unusual

_OWN = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
_IMAGE = ("add_k_proj", "add_v_proj", "norm_added_k")


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The heads of one attention, with those of the keys and values of an image where it attends to one."""
    if isinstance(module, WanAttention):
        leaves = _OWN if module.add_k_proj is None else (*_OWN, *_IMAGE)
        return (_heads(name, module, leaves, module.kv_inner_dim, WanAttnProcessor),)
    if isinstance(module, LTXAttention):
        return (_heads(name, module, _OWN, module.inner_kv_dim, LTXVideoAttnProcessor),)
    return ()


def _heads(
    name: str, module: WanAttention | LTXAttention, leaves: tuple[str, ...], keys: int, processor: type
) -> Layer | Refusal:
    size = module.inner_dim // module.heads
    rotary = isinstance(module, LTXAttention)  # of all heads, each with frequencies of its own
    reason = FUSED if module.fused_projections else unproven(module.get_processor(), processor)
    if reason is None and keys != module.inner_dim:
        reason = "its keys have fewer or other heads than its queries"
    if reason is None and rotary and size % 2:
        reason = "its rotary embedding turns pairs of channels that belong to two heads"
    linears = [module.get_submodule(leaf) for leaf in (*leaves, "to_out.0") if not leaf.startswith("norm")]
    reason = reason or unusual(*linears)
    if reason is not None:
        return Refusal(name, reason)
    sizes = ("inner_dim", "inner_kv_dim" if rotary else "kv_inner_dim")
    return Layer(
        name=name,
        kind=Kind.ATTENTION,
        groups=module.heads,
        width=size,
        rows=tuple(Rows(f"{name}.{leaf}") for leaf in leaves),
        output=f"{name}.to_out.0",
        counts=((name, "heads", 1), *((name, attribute, size) for attribute in sizes)),
        arguments=((name, "image_rotary_emb"),) if rotary else (),
    )
