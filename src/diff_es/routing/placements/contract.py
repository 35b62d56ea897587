"""What routing knows of a placement: a type that opens a store, and a store that makes a stage's weights active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import nn

from ...layers import Anatomy, Plan


class Store(Protocol):
    """The weights of all stages of one routed denoiser, from opening to :meth:`close`."""

    @property
    def weight_bytes(self) -> int:
        """Bytes on the device now (in host memory under sequential offload): the denoiser's parameters and everything
        that waits beside them."""

    @property
    def peak_bytes(self) -> int:
        """The most that ``weight_bytes`` has been."""

    def to(self, stage: int) -> None:
        """Run with this stage's weights from now on."""

    def rest(self) -> None:
        """Put the dense parameters back by reference, until the next ``to``; they may lie elsewhere, or in another
        order."""

    def settle(self) -> None:
        """After ``rest``, before anyone looks at them: have the dense parameters where they belong, to the bit."""

    def close(self) -> None:
        """Put the dense weights back, to the bit, and leave nothing behind."""


class Placement(Protocol):
    """Where weights wait.

    Of a denoiser that is offloaded sequentially, the weights of all stages wait beside the dense ones in host memory,
    whatever the placement, and the hooks that bring in the dense ones of each module bring in a stage's.
    """

    def open(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> Store:
        """Lay out the weights of every stage.

        Raises:
            ArtefactError: a plan does not fit the denoiser; nothing has changed then.
        """


def distinct(plans: Iterable[Plan]) -> tuple[Plan, ...]:
    """Each plan once."""
    return tuple({id(plan): plan for plan in plans}.values())


def parameter_bytes(denoiser: nn.Module) -> int:
    """Bytes of a denoiser's own parameters."""
    return sum(parameter.nbytes for parameter in denoiser.parameters())
