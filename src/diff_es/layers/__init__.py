"""What can be pruned in a denoiser, found by layer kind; one file per kind, each under the contract in contract.py."""

from __future__ import annotations

from torch import nn

from . import attention, block, feedforward, fused, gluconv, joint, multihead, normed, resnet
from .adapters import adapted, base_parameters, image_adapters
from .changes import Likeness
from .compiled import named_parameters, plain_name, room_to_compile, state_dict, submodule
from .contract import Anatomy, Block, Bypass, Found, Kind, Layer, Refusal, Rows, as_matrix, common, from_matrix
from .convolutions import Convolution, Projection, channel_dimension, given_to, often_seen, row_dimension
from .declaration import Channels, Heads, Residual
from .declare import declare
from .declared import Declared, check_evaluating, declared, remember, time_reader
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
    "sequentially",
    "shortcut_of",
    "state_dict",
    "stored_otherwise",
    "submodule",
    "time_reader",
    "weight_of",
]


_KINDS = (joint, fused, gluconv, normed, attention, multihead, feedforward, resnet, block)  # the special ones first


def anatomy_of(denoiser: nn.Module) -> Anatomy:
    """What can be pruned in a denoiser: what was declared of it, or else what discovery finds."""
    known = declared(denoiser)
    return discover(denoiser) if known is None else known.anatomy


def discover(denoiser: nn.Module) -> Anatomy:
    """The prunable layers and blocks of a denoiser, and what of known kinds cannot be pruned, with reasons."""
    parts = dict[tuple[bool, str], Found]()
    for wrapped, module in denoiser.named_modules():
        name = plain_name(wrapped)
        for part in next(filter(None, (kind.find(name, module) for kind in _KINDS)), ()):
            parts.setdefault((isinstance(part, Block), part.name), part)  # what a block says of its parts comes first
    found = list(parts.values())
    layers = [part for part in found if isinstance(part, Layer)]
    single = [layer.name for layer in layers if layer.groups == 1]
    reason = "it has a single group (head, channel or group of a norm), and one always stays"
    return Anatomy(
        tuple(layer for layer in layers if layer.name not in single),
        tuple(part for part in found if isinstance(part, Block)),
        tuple(part for part in found if isinstance(part, Refusal)) + tuple(Refusal(name, reason) for name in single),
    )
