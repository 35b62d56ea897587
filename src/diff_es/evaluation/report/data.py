"""What a report is made of: plain numbers, names and images, checked when they are put together."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeGuard, TypeVar

from PIL import Image


@dataclass(frozen=True)
class Appearance:
    name: str  # in tables and plots
    prose: str  # in a sentence
    marker: str  # SVG path around (0, 0); the shape repeats what the colour says
    way: str  # how it samples, in a sentence: for those whose schedule is not drawn


CONTENDERS = {  # in the order of every table, grid and legend; the colours are the page's
    "dense": Appearance(
        "Dense", "the dense model", "M-4 -4H4V4H-4Z", "The dense model at every step, as the sampler takes them."
    ),
    "fewer-steps": Appearance(
        "Fewer steps",
        "fewer steps of the dense model",
        "M-4 -4H4V4H-4Z",
        "The dense model at every step; only fewer of them.",
    ),
    "trailing": Appearance(
        "Trailing, corrected",
        "trailing steps with corrections",
        "M-4 -4H4V4H-4Z",
        "The dense model at fewer steps, each corrected by what was fitted to its own trajectory.",
    ),
    "uniform": Appearance(
        "Uniform", "uniform pruning", "M0 -5.2L5 4H-5Z", "The same share is pruned from every layer at every step."
    ),
    "mosaicdiff": Appearance(
        "MosaicDiff-like",
        "MosaicDiff-like pruning",
        "M0 5.2L5 -4H-5Z",
        "The stages in the middle are pruned least, by rule and not by search.",
    ),
    "random": Appearance(
        "Random",
        "the best random schedule",
        "M0 -5.4L5.4 0L0 5.4L-5.4 0Z",
        "The best of some schedules drawn at random.",
    ),
    "pruning": Appearance(
        "Diff-ES, pruning alone",
        "our pruning alone",
        "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",
        "The same search over levels alone: every step of the sampler is taken.",
    ),
    "diff-es": Appearance(
        "Diff-ES", "Diff-ES", "M-5.2 0a5.2 5.2 0 1 0 10.4 0a5.2 5.2 0 1 0 -10.4 0Z", "A schedule that was searched for."
    ),
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
    tried: int | None = None  # schedules that the search for it ran; None: nothing was searched, or it is not known

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
    contender: str  # whose schedule it is, at which budget: of a row
    budget: float
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


class CaseKind(StrEnum):
    """Why a noise is shown."""

    WORST = "worst"
    TYPICAL = "typical"


@dataclass(frozen=True)
class Case:
    noise: int  # its number among those evaluated
    kind: CaseKind
    asked: str = ""  # class or prompt; empty where nothing is asked of the model


@dataclass(frozen=True)
class Strip:
    contender: str
    budget: float
    images: tuple[Image.Image, ...]  # one per case, in the order of every other strip
    snr_db: tuple[float, ...] = ()  # of each to the reference; of the reference none

    def __post_init__(self) -> None:
        _known(self.contender)
        if self.snr_db and len(self.snr_db) != len(self.images):
            raise ValueError(f"strip {key_of(self)}: {len(self.snr_db)} SNRs of {len(self.images)} images")


@dataclass(frozen=True)
class Sensed:
    """What the search measured: the share of all added error that one unit adds where it alone is pruned as far as it
    can be in one stage, if errors add up."""

    shares: tuple[tuple[float, ...], ...]  # [stages][units], all together 1
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.shares or {len(stage) for stage in self.shares} != {len(self.units)}:
            raise ValueError(
                f"sensitivities {self.shares}: expected a share of each of {len(self.units)} units by stage"
            )


Ranked = TypeVar("Ranked", Row, Strip)


def key_of(item: Row | Strip | Heat) -> str:
    """One point of the comparison, such as `diff-es-0.5`, by which the page finds all that it has of it."""
    return f"{item.contender}-{item.budget:g}"


@dataclass(frozen=True)
class Story:
    title: str
    model: str
    facts: tuple[tuple[str, str], ...]  # (label, value): sampler, guidance, device, versions, time taken, …
    rows: tuple[Row, ...]
    strips: tuple[Strip, ...] = ()
    cases: tuple[Case, ...] = ()  # what the images of each strip are
    heats: tuple[Heat, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    sensed: Sensed | None = None
    command: str = ""  # that made the page; empty where none did

    def __post_init__(self) -> None:
        counts = {len(strip.images) for strip in self.strips}
        if self.strips and counts != {len(self.cases)}:
            expected = f"one of each of {len(self.cases)} cases in each"
            raise ValueError(f"strips hold {sorted(counts)} images; expected {expected}")
        for what, items in (("rows", self.rows), ("strips", self.strips)):
            seen = [(item.contender, item.budget) for item in items]
            for twice in {each for each in seen if seen.count(each) > 1}:
                raise ValueError(f"{what}: two for {twice[0]!r} at budget {twice[1]:g}; expected one of each")


def ordered(items: Sequence[Ranked]) -> list[Ranked]:
    """By contender, then from the loosest budget to the tightest."""
    ranks = list(CONTENDERS)
    return sorted(items, key=lambda item: (ranks.index(item.contender), -item.budget))


def budgets(items: Sequence[Row] | Sequence[Strip]) -> list[float]:
    """All that there are, the loosest first."""
    return sorted({item.budget for item in items}, reverse=True)


def is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _known(contender: str) -> None:
    if contender not in CONTENDERS:
        raise ValueError(f"unknown contender {contender!r}; expected one of {', '.join(CONTENDERS)}")
