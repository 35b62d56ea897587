"""What can be pruned in a denoiser, found by layer kind; one file per kind, each under the contract in contract.py."""

from __future__ import annotations

from torch import nn

from .adapters import adapted, base_parameters, image_adapters
from .compiled import named_parameters, room_to_compile, state_dict, submodule
from .contract import Anatomy, Block, Bypass, Found, Kind, Layer, Refusal, Rows, as_matrix, common, from_matrix
from .convolutions import Convolution, Projection, channel_dimension, given_to, often_seen, row_dimension
from .declaration import Channels, Heads, Residual
from .declared import Declared, check_evaluating, declared, remember, time_reader
from .discovery import discover
from .fingerprint import fingerprint
from .offload import check_groups, lost, sequentially, stored_otherwise
from .plan import DENSE, Cut, Factor, Plan, Weights
from .separate import SeparateAttention, separate_attention

__all__ = [
    "DENSE",
    "Anatomy",
    "Block",
    "Bypass",
    "Channels",
    "Convolution",
    "Cut",
    "Declared",
    "Factor",
    "Found",
    "Heads",
    "Kind",
    "Layer",
    "Plan",
    "Projection",
    "Refusal",
    "Residual",
    "Rows",
    "SeparateAttention",
    "Weights",
    "adapted",
    "anatomy_of",
    "as_matrix",
    "base_parameters",
    "channel_dimension",
    "check_evaluating",
    "check_groups",
    "common",
    "declared",
    "discover",
    "fingerprint",
    "from_matrix",
    "given_to",
    "image_adapters",
    "lost",
    "named_parameters",
    "often_seen",
    "remember",
    "room_to_compile",
    "row_dimension",
    "separate_attention",
    "sequentially",
    "state_dict",
    "stored_otherwise",
    "submodule",
    "time_reader",
]


def anatomy_of(denoiser: nn.Module) -> Anatomy:
    """What can be pruned in a denoiser: what was declared of it, or else what discovery finds."""
    known = declared(denoiser)
    return discover(denoiser) if known is None else known.anatomy
