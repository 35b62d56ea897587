"""What a report is made of: plain numbers, names and images, checked when they are put together."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeGuard, TypeVar

from PIL import Image


@dataclass(frozen=True)
class Appearance:
    name: str  # in tables and plots
    prose: str  # in a sentence
    marker: str  # SVG path around (0, 0); the shape repeats what the colour says


CONTENDERS = {  # in the order of every table, grid and legend; the colours are the page's
    "dense": Appearance("Dense", "the dense model", "M-4 -4H4V4H-4Z"),
    "fewer-steps": Appearance("Fewer steps", "fewer steps of the dense model", "M-4 -4H4V4H-4Z"),
    "trailing": Appearance("Trailing, corrected", "trailing steps with corrections", "M-4 -4H4V4H-4Z"),
    "uniform": Appearance("Uniform", "uniform pruning", "M0 -5.2L5 4H-5Z"),
    "mosaicdiff": Appearance("MosaicDiff-like", "MosaicDiff-like pruning", "M0 5.2L5 -4H-5Z"),
    "random": Appearance("Random", "a random schedule", "M0 -5.4L5.4 0L0 5.4L-5.4 0Z"),
    "pruning": Appearance("Diff-ES, pruning alone", "our pruning alone", "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z"),
    "diff-es": Appearance("Diff-ES", "Diff-ES", "M-5.2 0a5.2 5.2 0 1 0 10.4 0a5.2 5.2 0 1 0 -10.4 0Z"),
}


UNRELIABLE = "unreliable"
"""In the place of a speed-up that was not measured reliably."""


@dataclass(frozen=True)
class Row:
    contender: str  # a key of CONTENDERS
    budget: float  # share of the dense compute allowed
    steps: int  # sampler steps taken
    macs_ratio: float  # MACs of the whole trajectory over the dense model's
    latency_ms: float  # median for one batch, whole pipeline
    latency_spread: float  # half of the interquartile range, ms
    speedup: float  # dense latency over this one, whole pipeline
    denoiser_speedup: float  # the same for the denoiser alone
    snr_db: float | None  # final latent against the reference; None for the reference itself
    own_snr_db: float | None  # final latent against the dense model's in the user's own setting; None for that
    psnr_db: float | None  # final image against the reference
    frechet_distance: float | None  # to real data; None without reference statistics
    weight_bytes: int
    speedup_low: float | None = None  # the interval of the speed-up; None: too few runs for one
    speedup_high: float | None = None
    doubt: str = ""  # why the speed-up was not measured reliably; empty where it was

    def __post_init__(self) -> None:
        _known(self.contender)

    def sped(self, times: str = "x") -> str:
        """The speed-up as it is shown."""
        return UNRELIABLE if self.doubt else f"{self.speedup:.2f}{times}"

    def to_json(self) -> dict[str, str | int | float | None]:
        """Field names to plain values, ready for json.dump; Row(**d) is the way back."""
        return asdict(self)


@dataclass(frozen=True)
class Heat:
    title: str
    levels: tuple[tuple[int, ...], ...]  # [stages][units]
    most: int  # the largest level there is
    steps: tuple[int, ...]  # [stages] sampler steps
    timesteps: tuple[tuple[float, float], ...]  # [stages] first and last
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        stages, widths = len(self.levels), {len(stage) for stage in self.levels}
        found = f"{len(self.steps)} steps, {len(self.timesteps)} timesteps, {sorted(widths)} levels per stage"
        expected = f"{stages} steps and timesteps, {len(self.units)} levels per stage, and at least one stage and unit"
        if {len(self.steps), len(self.timesteps)} != {stages} or widths != {len(self.units)} or widths == {0}:
            raise ValueError(f"heat map {self.title!r}: found {found}; expected {expected}")
        if max(map(max, self.levels)) > self.most or min(map(min, self.levels)) < 0:
            raise ValueError(f"heat map {self.title!r}: found levels {self.levels}; expected 0 to {self.most}")


@dataclass(frozen=True)
class Curve:
    title: str
    points: tuple[tuple[int, float], ...]  # evaluations so far, best score in dB


@dataclass(frozen=True)
class Strip:
    contender: str
    budget: float
    images: tuple[Image.Image, ...]  # one per noise, in the order of every other strip

    def __post_init__(self) -> None:
        _known(self.contender)


Ranked = TypeVar("Ranked", Row, Strip)


@dataclass(frozen=True)
class Story:
    title: str
    model: str
    facts: tuple[tuple[str, str], ...]  # (label, value): sampler, guidance, device, versions, time taken, …
    rows: tuple[Row, ...]
    strips: tuple[Strip, ...] = ()
    heats: tuple[Heat, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(strip.images) for strip in self.strips}
        if len(counts) > 1:
            raise ValueError(f"strips hold {sorted(counts)} images; expected the same noises, so as many, in each")
        for what, items in (("rows", self.rows), ("strips", self.strips)):
            seen = [(item.contender, item.budget) for item in items]
            for twice in {each for each in seen if seen.count(each) > 1}:
                raise ValueError(f"{what}: two for {twice[0]!r} at budget {twice[1]:g}; expected one of each")


def ordered(items: Sequence[Ranked]) -> list[Ranked]:
    """By contender, then from the loosest budget to the tightest."""
    ranks = list(CONTENDERS)
    return sorted(items, key=lambda item: (ranks.index(item.contender), -item.budget))


def is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _known(contender: str) -> None:
    if contender not in CONTENDERS:
        raise ValueError(f"unknown contender {contender!r}; expected one of {', '.join(CONTENDERS)}")
