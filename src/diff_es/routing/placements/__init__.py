"""Where the weights of the stages wait for their turn; one file per placement, each under the contract in contract.py.

Resident    all on the device; a switch exchanges references
Streamed    in host memory; each stage's are copied over while the one before it runs
Compact     low-rank corrections of the dense weights, merged at each switch
Stitched    a network of its own for every stage: not for use, but to compare with
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import nn

from ...layers import Anatomy, Plan
from ...utils.memory import free_memory
from ..realise import fed_by, output_of, weight_of
from .compact import Compact
from .contract import Placement, Store, distinct, parameter_bytes
from .resident import Resident, ResidentStore
from .stitched import Stitched
from .streamed import Streamed, StreamedStore

__all__ = [
    "Compact",
    "Placed",
    "Placement",
    "Resident",
    "ResidentStore",
    "Saved",
    "Stitched",
    "Store",
    "Streamed",
    "StreamedStore",
    "choose",
    "parameter_bytes",
]


Saved: TypeAlias = Resident | Streamed | Compact
"""The placements that a result can be saved with."""
Placed: TypeAlias = Saved | Stitched
"""And that it can run with."""


def choose(denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> Placement:
    """The placement for the memory that is free now: compact where the plans were made for it, resident where the
    weights of all stages take at most half of what is free, else compact where all are slices of the dense weights, or
    streamed."""
    cuts = [cut for plan in plans for cut in plan.cuts.values()]
    if any(cut.factors for cut in cuts):
        return Compact()
    size = max((p.element_size() for p in denoiser.parameters()), default=4)
    needed = sum(_parameters(denoiser, anatomy, plan) for plan in distinct(plans)) * size
    if needed <= free_memory(next(denoiser.parameters()).device) / 2:
        return Resident()
    return Streamed() if any(cut.weight is not None for cut in cuts) else Compact()


def _parameters(denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> int:
    """Parameters of one stage's own weights."""
    total, layers = 0, {layer.name: layer for layer in anatomy.layers}
    for name, cut in plan.cuts.items():
        layer = layers[name]
        output = weight_of(output_of(denoiser, layer), layer)
        dense = sum(parameter.numel() for _, _, parameter in fed_by(denoiser, layer)) + output.numel()
        total += dense * len(cut.kept) // layer.groups + len(output)
    return total + sum(t.numel() for b in plan.bypasses.values() if b is not None for t in b.tensors().values())
