"""What can be pruned in a denoiser, found by layer kind; one file per kind, each under the contract in contract.py."""

from __future__ import annotations

from torch import nn

from .adapters import adapted, base_parameters, image_adapters
from .changes import Likeness
from .compiled import named_parameters, room_to_compile, state_dict, submodule
from .contract import Anatomy, Block, Bypass, Found, Kind, Layer, Refusal, Rows, as_matrix, common, from_matrix
from .convolutions import Convolution, Projection, channel_dimension, given_to, often_seen, row_dimension
from .declaration import Channels, Heads, Residual
from .declare import declare
from .declared import Declared, check_evaluating, declared, remember, time_reader
from .discovery import discover
from .fingerprint import fingerprint
from .guard import Guard
from .offload import check_groups, lost, sequentially, stored_otherwise
from .plan import DENSE, Cut, Factor, Plan, Weights
from .realise import (
    check_plan,
    fed_by,
    merge,
    output_of,
    owned_by,
    placed_bypasses,
    placed_picks,
    realise,
    row_picks,
    weight_of,
)
from .separate import SeparateAttention, separate_attention
from .standin import shortcut_of
from .switch import Content, Entry, Switch

__all__ = [
    "DENSE",
    "Anatomy",
    "Block",
    "Bypass",
    "Channels",
    "Content",
    "Convolution",
    "Cut",
    "Declared",
    "Entry",
    "Factor",
    "Found",
    "Guard",
    "Heads",
    "Kind",
    "Layer",
    "Likeness",
    "Plan",
    "Projection",
    "Refusal",
    "Residual",
    "Rows",
    "SeparateAttention",
    "Switch",
    "Weights",
    "adapted",
    "anatomy_of",
    "as_matrix",
    "base_parameters",
    "channel_dimension",
    "check_evaluating",
    "check_groups",
    "check_plan",
    "common",
    "declare",
    "declared",
    "discover",
    "fed_by",
    "fingerprint",
    "from_matrix",
    "given_to",
    "image_adapters",
    "lost",
    "merge",
    "named_parameters",
    "often_seen",
    "output_of",
    "owned_by",
    "placed_bypasses",
    "placed_picks",
    "realise",
    "remember",
    "room_to_compile",
    "row_dimension",
    "row_picks",
    "separate_attention",
    "sequentially",
    "shortcut_of",
    "state_dict",
    "stored_otherwise",
    "submodule",
    "time_reader",
    "weight_of",
]


def anatomy_of(denoiser: nn.Module) -> Anatomy:
    """What can be pruned in a denoiser: what was declared of it, or else what discovery finds."""
    known = declared(denoiser)
    return discover(denoiser) if known is None else known.anatomy
