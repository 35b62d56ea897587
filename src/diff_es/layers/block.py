"""Whole residual blocks: what a transformer repeats, hidden states in and hidden states out."""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn

from .contract import Block, Found

_RETURNS = ("encoder_hidden_states", "hidden_states")


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """A block that maps hidden states, or those of two streams, to hidden states of the same shape.

    The last block of Stable Diffusion 3 does not renew its second stream, which nothing reads after it.
    """
    match module:
        case BasicTransformerBlock():
            return (Block(name, module.dim),)
        case SanaTransformerBlock() | WanTransformerBlock() | LTXVideoTransformerBlock():
            return (Block(name, module.scale_shift_table.shape[-1]),)
        case QwenImageTransformerBlock():
            return (Block(name, module.dim, module.dim, _RETURNS),)
        case FluxTransformerBlock() | FluxSingleTransformerBlock():
            width = module.attn.query_dim
            return (Block(name, width, width, _RETURNS),)
        case JointTransformerBlock():
            width = module.attn.query_dim
            return (Block(name, width, None if module.context_pre_only else width, _RETURNS),)
    return ()
