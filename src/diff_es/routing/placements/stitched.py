"""The rival that routing is compared with: a pruned network of its own for every stage, as MosaicDiff stitches them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass

from torch import nn

from ...layers import Anatomy, Plan, sequentially
from ...utils.arguments import checked
from ...utils.errors import DiffESError
from ...utils.patching import exchanged
from ..realise import realise
from ..switch import Switch
from .contract import Store, distinct, parameter_bytes


@checked()
@dataclass(frozen=True)
class Stitched:
    """One whole network per distinct plan, all on the device; for comparison."""

    def open(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> Store:
        if sequentially(denoiser):
            found, remedy = "sequential offload", "Compare without it: call pipe.remove_all_hooks()."
            raise DiffESError("Stitched", expected="weights on one device", found=found, remedy=remedy)
        return StitchedStore(denoiser, anatomy, plans)


class StitchedStore:
    """Hands the calls of the denoiser to the network of the stage."""

    def __init__(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> None:
        self._denoiser, networks = denoiser, dict[int, nn.Module]()
        for plan in distinct(plans):
            copy = deepcopy(denoiser)
            Switch(copy).to(realise(copy, anatomy, plan))
            networks[id(plan)] = copy
        self._bytes = sum(parameter_bytes(network) for network in networks.values())
        self._networks = [networks[id(plan)] for plan in plans]
        self._stack = ExitStack()  # of the call under way

    @property
    def weight_bytes(self) -> int:
        return self._bytes

    @property
    def peak_bytes(self) -> int:
        return self._bytes

    def to(self, stage: int) -> None:
        self.rest()
        self._stack.enter_context(exchanged(self._denoiser, "forward", self._networks[stage].forward))

    def rest(self) -> None:
        self._stack.close()

    def settle(self) -> None:
        """The denoiser itself is never changed."""

    def close(self) -> None:
        self.rest()
