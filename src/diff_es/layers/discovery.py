"""Looks for what can be pruned in a denoiser, kind by kind."""

from __future__ import annotations

from torch import nn

from . import attention, block, feedforward, fused, gluconv, joint, multihead, normed, resnet
from .compiled import plain_name
from .contract import Anatomy, Block, Found, Layer, Refusal

_KINDS = (joint, fused, gluconv, normed, attention, multihead, feedforward, resnet, block)  # the special ones first


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
