"""What a user says of a denoiser whose layers no finder knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..utils.errors import DiffESError
from .contract import Rows

STREAMS = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True)
class Heads:
    """The heads of an attention: equal parts of the rows of its projections, and of the columns of its output.

    Args:
        module: name of the attention below the denoiser, "" for the denoiser itself; a ``*`` stands for any one part of
            a name.
        heads: how many there are.
        rows: names below ``module`` of the linear layers (or convolutions, or norms) whose output rows are the heads',
            in turn: queries, keys and values. :class:`Rows` says more, such as ``Rows("qkv", chunks=3)``.
        output: name below ``module`` of the linear layer (or convolution) whose input columns are the heads'.
        counts: integer attributes of ``module`` that its forward reads, with their value per head, such as
            ``(("heads", 1),)``. Those of an ``nn.GroupNorm`` among the rows need not be named.
        arguments: arguments of its forward that come at the width of all heads, such as a rotary embedding; what
            belongs to the heads that stay is gathered from their last dimension.
        start: the first of the output's input columns that is the heads', where these are joined to other inputs.
        size: how many of the columns are the heads'; None: all from ``start`` on.
    """

    module: str
    heads: int
    rows: tuple[str | Rows, ...]
    output: str
    counts: tuple[tuple[str, int], ...] = ()
    arguments: tuple[str, ...] = ()
    start: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Channels:
    """The hidden channels of a feed-forward or between convolutions: rows of the first layers, columns of the last.

    Where an ``nn.GroupNorm`` is among the rows, channels go by whole groups of it, and the number of its groups goes
    down with them.

    Args:
        module: name of a module that holds both, below the denoiser, "" for the denoiser itself; a ``*`` stands for any
            one part of a name.
        rows: as in :class:`Heads`; a gate is ``Rows("up", chunks=2)`` where it is half of one layer.
        output: name below ``module`` of the linear layer (or convolution) whose input columns are the channels.
        counts: integer attributes of modules below ``module`` that a forward reads, with their value per channel (per
            group, where a norm makes groups), such as ``(("depthwise.groups", 1),)``.
        start, size: as in :class:`Heads`.
    """

    module: str
    rows: tuple[str | Rows, ...]
    output: str
    counts: tuple[tuple[str, int], ...] = ()
    start: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Residual:
    """Whole residual blocks: the hidden states are the forward's first argument, and come back in the same shape.

    Args:
        module: name of the block below the denoiser; a ``*`` stands for any one part of a name.
        returns: where the forward returns a tuple, the names of what is in it, of "hidden_states" and
            "encoder_hidden_states", a second stream that the forward takes by that name, in second place.
        pixels: whether the hidden states are (N, channels, H, W), or (N, channels, L), rather than (..., channels);
            None: what the block's own layers say.
    """

    module: str
    returns: tuple[str, ...] = ()
    pixels: bool | None = None


Declaration: TypeAlias = Sequence[Heads | Channels | Residual]


def check_said(part: object) -> None:
    """Whether a part of a declaration is one, with rows in a tuple and whole numbers.

    Raises:
        DiffESError: it is not.
    """
    if not isinstance(part, Heads | Channels | Residual):
        remedy = "Declare a sequence of them, such as (Heads(...), Residual(...))."
        raise wrong("", "Heads, Channels and Residual", f"a {type(part).__name__}", remedy)
    if isinstance(part, Residual):
        return
    if not isinstance(part.rows, tuple | list) or not all(isinstance(row, str | Rows) for row in part.rows):
        raise wrong(part.output, "names or Rows in a tuple", str(part.rows), 'Such as rows=("q", "k", "v").')
    said = [part.size, *(n for row in part.rows if isinstance(row, Rows) for n in (row.chunks, row.width))]
    numbers = [number for number in said if number is not None]
    numbers += [part.heads] if isinstance(part, Heads) else []
    if any(type(number) is not int or number < 1 for number in numbers) or type(part.start) is not int:
        expected, remedy = "heads, chunks, widths and sizes as whole numbers above 0", "Declare those that it has."
        raise wrong(part.output, expected, str(part), remedy)


def wrong(where: str, expected: str, found: str, remedy: str) -> DiffESError:
    """A declaration that does not describe its denoiser."""
    where = f"declaration, {where}" if where else "declaration"
    return DiffESError(where, expected=expected, found=found, remedy=remedy)
