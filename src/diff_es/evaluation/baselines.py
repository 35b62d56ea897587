"""What users and earlier methods do instead, at the same real cost."""

from __future__ import annotations

import math

from ..layers import Anatomy
from ..pruning.macs import MacCounter
from ..search import NoneFits


def fewer_steps(steps: int, fraction: float) -> int:
    """The most sampler steps of the dense model within the budget; at least one."""
    return max(1, math.floor(steps * fraction + 1e-9))


def uniform_width(counter: MacCounter, anatomy: Anatomy, fraction: float) -> tuple[int, ...]:
    """One share of groups removed from every layer in all stages, as little as the budget allows.

    The share is not bound to the ladder's levels, so that uniform pruning gets the same compute as its rivals to
    within one feed-forward channel.

    Raises:
        NoneFits: one group of each layer is above the budget.
    """
    dense, finest = counter.dense(), max(layer.groups for layer in anatomy.layers)

    def kept(share: int) -> tuple[int, ...]:
        return tuple(max(1, layer.kept(share, finest)) for layer in anatomy.layers)

    low, high = 0, finest  # invariant: `high` is within the budget
    while low < high:
        middle = (low + high) // 2
        if counter.thinned(kept(middle)) <= fraction * dense:
            high = middle
        else:
            low = middle + 1
    if counter.thinned(kept(high)) > fraction * dense:
        least = counter.thinned(kept(high)) / dense
        raise NoneFits(f"uniform_width: expected {least:g} of the cost or more, found {fraction:g}; raise the budget")
    return kept(high)
