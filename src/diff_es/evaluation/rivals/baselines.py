"""What users and earlier methods do instead, at the same real cost."""

from __future__ import annotations

import math

from ...layers import Anatomy
from ...pruning.macs import MacCounter
from ...search import NoneFits


def fewer_steps(steps: int, fraction: float) -> int:
    """The most sampler steps of the dense model within the budget; at least one."""
    return max(1, math.floor(steps * fraction + 1e-9))


def uniform_width(counter: MacCounter, anatomy: Anatomy, fraction: float) -> tuple[int, ...]:
    """One share of groups removed from every layer in all stages, as little as the budget allows.

    The share is not bound to the ladder's levels. Where layers have few groups, one of each is much: then some layers,
    spread over the network, keep what the next smaller share leaves them, as many as the budget allows. So uniform
    pruning gets the same compute as its rivals to within a group or two of a layer.

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
    return _filled(counter, anatomy, kept(high), kept(max(0, high - 1)), fraction * dense)


def _filled(
    counter: MacCounter, anatomy: Anatomy, kept: tuple[int, ...], more: tuple[int, ...], budget: float
) -> tuple[int, ...]:
    """With ``more`` groups in some layers, those that keep the same ones together, spread over the network."""
    places = {layer.name: place for place, layer in enumerate(anatomy.layers)}
    families = dict.fromkeys(frozenset(places[one.name] for one in anatomy.family(own)) for own in anatomy.layers)
    spread = sorted(enumerate(families), key=lambda family: family[0] * _GOLDEN % 1)
    for _, family in spread:
        fuller = tuple(more[place] if place in family else count for place, count in enumerate(kept))
        if counter.thinned(fuller) <= budget:
            kept = fuller
    return kept


_GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it fill an interval evenly, however many there are (Weyl 1916)."""
