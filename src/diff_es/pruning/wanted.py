"""What calibration gathers, how much room that takes, and in which parts it fits a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from ..layers import Block, Layer
from ..utils.errors import DiffESError

Part: TypeAlias = Sequence[tuple[int, str]]
"""Some of the statistics: stages, and names of layers or of blocks' streams."""


@dataclass(frozen=True)
class Wanted:
    """The moments of the inputs of layers' output projections (of a convolution, one vector for each tap that looks at
    a pixel, or at the padding), and of the inputs and residuals of blocks, for each of their streams.

    Args:
        squares: whether of layers' inputs the power of each is enough.
    """

    layers: Sequence[Layer] = ()
    blocks: Sequence[Block] = ()
    squares: bool = False

    @property
    def names(self) -> list[str]:
        """Of layers and streams."""
        return [layer.name for layer in self.layers] + [name for block in self.blocks for name in block.streams]

    @property
    def powers(self) -> frozenset[str]:
        """The names of what is gathered without the products of one input with another."""
        return frozenset(layer.name for layer in self.layers if self.squares)

    def sizes(self) -> dict[str, int]:
        """Bytes of the sums of each layer and of each stream of a block."""
        sizes = {layer.name: 4 * (layer.size if self.squares else layer.size**2) for layer in self.layers}
        for block in self.blocks:
            matrices = [shape for shape in block.shapes().values() if len(shape) == 2]  # (outputs, inputs) of a stream
            sizes |= {name: 4 * sum(shape) ** 2 for name, shape in zip(block.streams, matrices, strict=True)}
        return sizes


def parts_within(memory: int | None, stages: int, sizes: Mapping[str, int]) -> list[Part]:
    """All statistics, stage by stage, in parts that take no more than so many bytes at a time.

    Raises:
        DiffESError: one of them alone takes more.
    """
    whole = [(stage, name) for stage in range(stages) for name in sizes]
    if memory is None or stages * sum(sizes.values()) <= memory:
        return [whole]
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > memory:
        expected, found = f"at least {sizes[largest] / 1e9:.3f} GB, for {largest}", f"{memory / 1e9:.3f} GB"
        remedy = (
            "Give more, take a method without matrices (`--ranking wanda --no-compensate`, and `--prune width`: what "
            "skips blocks has some), or search steps alone (`--levers steps`)."
        )
        raise DiffESError("memory", expected=expected, found=found, remedy=remedy)
    parts, room = list[list[tuple[int, str]]](), 0
    for stage, name in whole:
        if not parts or sizes[name] > room:
            parts.append([])
            room = memory
        parts[-1].append((stage, name))
        room -= sizes[name]
    return list(parts)


def shared_out(whole: Part, workers: int) -> list[Part]:
    """All statistics in parts that so many workers gather in about the same time.

    Runs for a part end with its last stage, and gathering takes about as long as the runs: 0.9 of their time with the
    bundled transformer, 0.3 with the U-Net, on one core. Then workers take the same time where each gathers half as
    much as the one before, and many are twice as fast as one.
    """
    ends = [round(len(whole) * (1 - 2.0**-i) / (1 - 2.0**-workers)) for i in range(workers + 1)]
    return [whole[start:end] for start, end in pairwise(ends) if start < end] or [whole]
