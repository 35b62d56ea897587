"""What carries its own level in a schedule: the whole denoiser, a layer kind, or a block; and what each may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import torch

from ..layers import Anatomy, Cut, Layer, Plan
from ..utils.arguments import LISTED, Text, checked
from ..utils.calls import Kwargs
from ..utils.errors import DiffESError
from ..utils.limits import Level, Levels, Multiple


@checked()
@dataclass(frozen=True)
class Depth:
    """Level l leaves out the l least important blocks, each replaced by a fitted linear map; one block always stays."""

    bypass: bool = True  # False leaves nothing in a block's place


@checked()
@dataclass(frozen=True)
class Width:
    """Levels 0 to ``levels`` - 1: level l removes floor(l n / levels) of the n heads or channels of every layer.

    Level ``levels`` itself would leave nothing of a layer and is not offered.

    Args:
        levels: L.
        multiple: numbers of channels that stay are rounded up to a multiple of it, or of the largest half, quarter, ...
            of it that a level's n / L channels hold; None takes what the device and the precision like.
        dense: (layer, level) pairs that are left dense because they would run slower; None measures them.
        depth: how blocks may be skipped whole instead; None leaves them alone.
    """

    levels: Levels = 8
    multiple: Multiple | None = None
    dense: Annotated[tuple[Annotated[tuple[Text, Level], LISTED], ...], LISTED] | None = None
    depth: Depth | None = None

    def kept(self, layer: Layer, level: int) -> int:
        """How many groups of a layer stay at a level."""
        exact, step = layer.kept(level, self.levels), self.multiple or 1
        if (layer.follows or layer.name, level) in (self.dense or ()):
            return layer.groups
        while step > 1 and step * self.levels > layer.groups:
            step //= 2
        return min(layer.groups, -(-exact // step) * step) if layer.width == 1 else exact


Ladder = Width | Depth


class Granularity(StrEnum):
    """How finely levels are chosen."""

    WHOLE = "whole"  # one level for the denoiser, as in the paper
    KIND = "kind"  # one for all attention layers, one for all feed-forward layers
    BLOCK = "block"  # one for each block


def counts_by_layer(units: Sequence[Unit]) -> dict[str, set[int]]:
    """The numbers of groups that the levels of units leave in each layer, by its name; all of them among these."""
    counts = dict[str, set[int]]()
    for unit in units:
        for option in unit.options:
            if isinstance(option, Thin):
                for layer, count in zip(unit.layers, option.kept, strict=True):
                    counts.setdefault(layer.name, set()).add(count)
    return counts


def usual_granularity(ladder: Ladder) -> Granularity:
    """Blocks, for which better schedules are found than for the whole (docs/benchmarks.md); but where levels are
    numbers of skipped blocks, these are ranked among all."""
    return Granularity.WHOLE if isinstance(ladder, Depth) else Granularity.BLOCK


@dataclass(frozen=True)
class Thin:
    """An option: so many groups stay in each of the unit's layers, in their order."""

    kept: tuple[int, ...]


@dataclass(frozen=True)
class Skip:
    """An option: these blocks are left out; None names so many of the least important ones of the stage."""

    blocks: tuple[str, ...] | int


Option = Thin | Skip


@dataclass(frozen=True)
class Unit:
    """What carries its own level; level l is ``options[l]``, and level 0 is dense."""

    name: str
    layers: tuple[Layer, ...]
    options: tuple[Option, ...]


def units_of(anatomy: Anatomy, ladder: Ladder, granularity: Granularity) -> tuple[Unit, ...]:
    """The units of a denoiser.

    Raises:
        DiffESError: skipping blocks by rank is a choice for the whole denoiser or for each block, not for layer kinds;
            or levels of depth alone in units of another granularity, or ranked skipping of blocks that are not alike.
    """
    depth = ladder if isinstance(ladder, Depth) else ladder.depth
    if (isinstance(ladder, Depth) and granularity is not Granularity.WHOLE) or (
        depth is not None and granularity is Granularity.KIND
    ):
        remedy = "Take one level for the denoiser, or width with skipping in units of blocks."
        found = f"units of granularity {granularity.value} with {type(ladder).__name__}"
        raise DiffESError("units", expected="units that a ladder can have", found=found, remedy=remedy)
    if depth is not None and granularity is Granularity.WHOLE and not anatomy.uniform:
        remedy = "Let each block choose for itself: `--units block --prune width,depth`."
        found = "blocks of several kinds, so that skipping one saves more than skipping another"
        raise DiffESError(
            "units", expected="blocks that are alike, to skip so many of them", found=found, remedy=remedy
        )
    ranked = tuple(Skip(count) for count in range(1, len(anatomy.blocks)))
    if isinstance(ladder, Depth):
        return (Unit("denoiser", anatomy.layers, (Thin(tuple(layer.groups for layer in anatomy.layers)), *ranked)),)
    if granularity is Granularity.WHOLE:
        options = _thinned(anatomy.layers, ladder) + (ranked if depth else ())
        return (Unit("denoiser", anatomy.layers, options),)
    parts = dict[str, list[Layer]]()
    leaders = _leaders(anatomy)
    for layer in anatomy.layers:
        parts.setdefault(_part(anatomy, leaders[layer.name], granularity), []).append(layer)
    blocks, units = {block.name for block in anatomy.blocks}, list[Unit]()
    for name, layers in parts.items():
        skip = (Skip((name,)),) if depth is not None and name in blocks else ()
        units.append(Unit(name, tuple(layers), _thinned(layers, ladder) + skip))
    return tuple(units)


def undivided(anatomy: Anatomy) -> tuple[Unit, ...]:
    """The one unit of a denoiser of which nothing is pruned: it stays at level 0."""
    return (Unit("denoiser", anatomy.layers, (Thin(tuple(layer.groups for layer in anatomy.layers)),)),)


def bare(anatomy: Anatomy, units: Sequence[Unit], level: int) -> Plan:
    """A plan of the shapes of units at a level, whose weights mean nothing."""
    blocks, cuts, bypasses = {block.name: block for block in anatomy.blocks}, dict[str, Cut](), Kwargs()
    for unit in units:
        option = unit.options[level]
        if isinstance(option, Thin):
            pairs = zip(unit.layers, option.kept, strict=True)
            cuts |= {layer.name: Cut(torch.arange(count)) for layer, count in pairs if count < layer.groups}
        else:
            names = option.blocks
            if isinstance(names, int):
                names = tuple(block.name for block in anatomy.blocks[:names])
            bypasses |= {name: blocks[name].blank() for name in names}
    return Plan(cuts, bypasses)


def never_thinned(layers: Sequence[Layer], ladder: Width) -> list[str]:
    """The layers that lose no group at any level, because they would run no faster."""
    levels = range(1, ladder.levels)
    return [layer.name for layer in layers if all(ladder.kept(layer, level) == layer.groups for level in levels)]


def _part(anatomy: Anatomy, layer: Layer, granularity: Granularity) -> str:
    """The unit that a layer belongs to; a layer outside of all blocks is its own."""
    if granularity is Granularity.KIND:
        return layer.kind.value
    return next((block.name for block in anatomy.blocks if layer.name.startswith(f"{block.name}.")), layer.name)


def _leaders(anatomy: Anatomy) -> dict[str, Layer]:
    """The layer that decides for each layer: those that follow one, or share its output, are in its unit."""
    layers, leaders = {layer.name: layer for layer in anatomy.layers}, dict[str, Layer]()
    for sharing in anatomy.sharing():
        first = layers[sharing[0].follows or sharing[0].name]
        leaders |= {layer.name: first for layer in sharing}
    return leaders


def _thinned(layers: Sequence[Layer], ladder: Width) -> tuple[Option, ...]:
    return tuple(Thin(tuple(ladder.kept(layer, level) for layer in layers)) for level in range(ladder.levels))
