"""What can be pruned in a denoiser, found by layer kind; one file per kind, each under the contract in contract.py."""

from __future__ import annotations

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from . import attention, block, feedforward
from .compiled import RoomToCompile, named_parameters, plain_name, state_dict, submodule
from .contract import (
    DENSE,
    Anatomy,
    Block,
    Bypass,
    Cut,
    Factor,
    Kind,
    Layer,
    Plan,
    Refusal,
    Rows,
    Weights,
    as_matrix,
    from_matrix,
)
from .realise import check_plan, fed_by, merge, output_of, owned_by, placed_bypasses, realise, row_picks
from .standin import shortcut_of
from .switch import Switch

__all__ = [
    "DENSE",
    "Anatomy",
    "Block",
    "Bypass",
    "Cut",
    "Factor",
    "Kind",
    "Layer",
    "Plan",
    "Refusal",
    "RoomToCompile",
    "Rows",
    "Switch",
    "Weights",
    "as_matrix",
    "check_plan",
    "discover",
    "fed_by",
    "from_matrix",
    "merge",
    "named_parameters",
    "output_of",
    "owned_by",
    "placed_bypasses",
    "realise",
    "row_picks",
    "shortcut_of",
    "state_dict",
    "submodule",
]


def discover(denoiser: nn.Module) -> Anatomy:
    """The prunable layers and blocks of a denoiser, and what of known kinds cannot be pruned, with reasons."""
    layers, blocks, refusals = list[Layer](), list[Block](), list[Refusal]()
    for wrapped, module in denoiser.named_modules():
        name = plain_name(wrapped)
        found: Layer | Block | Refusal | None
        if isinstance(module, Attention):
            found = attention.find(name, module)
        elif isinstance(module, FeedForward):
            found = feedforward.find(name, module)
        else:
            found = block.find(name, module)
        if isinstance(found, Layer):
            layers.append(found)
        elif isinstance(found, Block):
            blocks.append(found)
        elif isinstance(found, Refusal):
            refusals.append(found)
    return Anatomy(tuple(layers), tuple(blocks), tuple(refusals))
