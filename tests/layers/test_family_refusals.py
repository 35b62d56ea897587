"""What cannot be pruned in transformers is refused by name, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from diffusers.models.attention_processor import (
    Attention,
    FusedJointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
    XFormersJointAttnProcessor,
)
from diffusers.models.transformers.sana_transformer import GLUMBConv
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxIPAdapterAttnProcessor,
    FluxSingleTransformerBlock,
)
from diffusers.models.transformers.transformer_flux2 import Flux2Attention
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from tests.helpers.families import (
    model_of,
)
from torch import nn

from diff_es.layers import Kind, discover


def joint(**changes: Any) -> Attention:
    options = {"heads": 2, "dim_head": 8, "added_kv_proj_dim": 16, "context_pre_only": False, "out_dim": 16}
    return Attention(16, **{"processor": model_of("sd3").transformer_blocks[0].attn.processor, **options, **changes})


def single(change: Callable[[FluxSingleTransformerBlock], object]) -> nn.Module:
    block = FluxSingleTransformerBlock(16, 2, 8)
    change(block)
    return block


class Wrapped(nn.Linear):
    """As adapters wrap a projection."""


def wrapped(module: nn.Module, path: str, part: nn.Module | None = None) -> nn.Module:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, part or Wrapped(16, 16))
    return module


def fused(module: Any) -> nn.Module:
    module.fuse_projections()
    return module


def set_processor(module: Any, processor: object) -> nn.Module:
    module.set_processor(processor)
    return module


def flux() -> FluxAttention:
    return FluxAttention(16, 2, 8, added_kv_proj_dim=16, context_pre_only=False)


def wan(**changes: Any) -> WanAttention:
    return WanAttention(16, 2, 8, processor=WanAttnProcessor(), **changes)


@pytest.mark.parametrize(
    ("make", "names", "reason"),
    [
        (lambda: joint(processor=FusedJointAttnProcessor2_0()), [""], "unfuse_qkv_projections"),
        (lambda: fused(flux()), [""], "unfuse_qkv_projections"),
        (lambda: fused(wan()), [""], "unfuse_qkv_projections"),
        (lambda: single(lambda block: block.attn.fuse_projections()), ["attn", "proj_mlp"], "unfuse_qkv_projections"),
        (lambda: joint(kv_heads=1), [""], "grouped-query"),
        (lambda: joint(processor=SD3IPAdapterJointAttnProcessor2_0(16, 8, 4)), [""], "set JointAttnProcessor2_0 or"),
        (lambda: joint(processor=XFormersJointAttnProcessor()), [""], "XFormersJointAttnProcessor"),
        (lambda: set_processor(flux(), FluxIPAdapterAttnProcessor(16, 8)), [""], "FluxIPAdapterAttnProcessor"),
        (lambda: set_processor(wan(), print), [""], "set WanAttnProcessor"),
        (lambda: FluxAttention(16, 2, 8), [""], "declare its heads"),
        (lambda: FluxAttention(16, 2, 8, pre_only=True), [""], "declare its heads"),
        (lambda: wrapped(joint(), "add_k_proj"), [""], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(flux(), "to_out.0"), [""], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(wan(), "to_v"), [""], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(single(id), "proj_out"), ["attn", "proj_mlp"], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(GLUMBConv(8, 8), "conv_depth", Wrapped(1, 1)), [""], "not a plain nn.Conv2d"),
        (lambda: wrapped(joint(qk_norm="rms_norm"), "norm_k", nn.RMSNorm(16)), [""], "across heads"),
        (lambda: wan(cross_attention_dim_head=4), [""], "fewer or other heads"),
        (lambda: LTXAttention(16, 2, 1, 8), [""], "fewer or other heads"),
        (lambda: LTXAttention(14, 2, 2, 7), [""], "belong to two heads"),
        (lambda: Flux2Attention(16, 2, 8), [""], "declare its heads"),
        (lambda: nn.MultiheadAttention(16, 2), [""], "nn.MultiheadAttention"),
        (lambda: wrapped(Attention(16, heads=2), "to_out", nn.Identity()), [""], "no output projection of its own"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_a_reason(
    make: Callable[[], nn.Module], names: list[str], reason: str
) -> None:
    anatomy = discover(nn.ModuleDict({"fine": joint(), "odd": make()}))
    assert [layer.name for layer in anatomy.layers] == ["fine", "fine.to_add_out"]
    assert [refusal.name for refusal in anatomy.refusals] == [f"odd.{name}".rstrip(".") for name in names]
    assert all(reason in refusal.reason for refusal in anatomy.refusals)


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "pixart", "flux", "wan", "ltx"])
def test_fused_projections_are_refused_until_they_are_separate_again(name: str) -> None:
    model: Any = deepcopy(model_of(name))
    dense = discover(model)
    model.fuse_qkv_projections()
    heads = {layer.name for layer in dense.layers if layer.kind is Kind.ATTENTION and layer.follows is None}
    assert {part.name for part in discover(model).refusals if "unfuse_qkv_projections" in part.reason} >= heads
    assert not heads & {layer.name for layer in discover(model).layers}
    model.unfuse_qkv_projections()
    assert discover(model) == dense
