"""The numbers that make up a schedule: the level of a unit, and the number of sampler steps of a stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Steps:
    """How many sampler steps each stage may take. ValueError where that is malformed."""

    counts: tuple[tuple[int, ...], ...]  # [stage], rising; 0 leaves the stage out, which stage 0 cannot be
    own: tuple[int, ...]  # [stage], one of the counts: what the user's sampler takes

    def __post_init__(self) -> None:
        if not self.counts or len(self.own) != len(self.counts):
            raise ValueError(f"Steps: expected counts and own steps of each stage, found {self.counts}, {self.own}")
        for s, (counts, own) in enumerate(zip(self.counts, self.own, strict=True)):
            least = 1 if s == 0 else 0
            if not counts or counts[0] < least or any(a >= b for a, b in pairwise(counts)):
                raise ValueError(f"Steps.counts[{s}]: expected rising numbers, {least} or more, found {counts}")
            if own not in counts:
                raise ValueError(f"Steps.own[{s}]: expected one of its counts {counts}, found {own}")


@dataclass(frozen=True)
class Slot:
    """What one number may be, and for each option the options next to it in price."""

    prices: Mapping[int, int]  # of a step at each level; or each number of steps, its own price
    dearer: Mapping[int, tuple[int, ...]]  # the next dearer price; () at the dearest
    cheaper: Mapping[int, tuple[int, ...]]  # the next cheaper price; () at the cheapest
    peers: Mapping[int, tuple[int, ...]]  # the same price, itself excluded; () where the slot is idle
    options: tuple[int, ...]
    cheapest: tuple[int, ...]  # the options of the least price
    least: int  # the least price
    idle: bool  # every option is free: the choice changes nothing


def make_slot(prices: Mapping[int, int]) -> Slot:
    ladder = sorted(set(prices.values()))
    rungs = [tuple(option for option, price in prices.items() if price == rung) for rung in ladder]
    rung_of = {option: ladder.index(price) for option, price in prices.items()}
    return Slot(
        prices=prices,
        dearer={option: rungs[r + 1] if r + 1 < len(rungs) else () for option, r in rung_of.items()},
        cheaper={option: rungs[r - 1] if r > 0 else () for option, r in rung_of.items()},
        peers={
            option: tuple(peer for peer in rungs[r] if peer != option and any(ladder)) for option, r in rung_of.items()
        },
        options=tuple(prices),
        cheapest=rungs[0],
        least=ladder[0],
        idle=not any(ladder),
    )
