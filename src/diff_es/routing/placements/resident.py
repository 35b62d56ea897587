"""All weights on the device: the fastest switch, and the most memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...layers import Anatomy, Plan, Weights
from ...utils.arguments import checked
from ..realise import realise
from ..switch import Switch
from .contract import Store, distinct, parameter_bytes


@checked()
@dataclass(frozen=True)
class Resident:
    """Every stage's weights stay beside the dense ones, on the device unless these are offloaded; stages of the same
    plan share theirs."""

    def open(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> Store:
        made = {id(plan): realise(denoiser, anatomy, plan) for plan in distinct(plans)}
        return ResidentStore(denoiser, [made[id(plan)] for plan in plans])


class ResidentStore:
    """Weights that are ready, one for each stage; a switch exchanges references, and nothing is ever copied."""

    def __init__(self, denoiser: nn.Module, weights: Sequence[Weights]) -> None:
        self._switch = Switch(denoiser)
        distinct_weights = {id(stage): stage for stage in weights}
        prepared = {key: self._switch.prepare(stage) for key, stage in distinct_weights.items()}
        self._contents = [prepared[id(stage)] for stage in weights]
        self._bytes = parameter_bytes(denoiser) + sum(stage.bytes for stage in distinct_weights.values())

    @property
    def weight_bytes(self) -> int:
        return self._bytes

    @property
    def peak_bytes(self) -> int:
        return self._bytes

    def to(self, stage: int) -> None:
        self._switch.put(self._contents[stage])

    def rest(self) -> None:
        self._switch.put({})

    def settle(self) -> None:
        """They have never been elsewhere."""

    def close(self) -> None:
        self.rest()
