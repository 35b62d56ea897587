"""Everything that a result depends on besides the model and the budget, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import DiffESError
from .fitness import ImagePSNR, ImageSSIM, LatentSNR, Measure
from .library import Depth, Method, Width
from .obs import Activation, Magnitude, Obs, Ridge, Wanda
from .pipeline import Sampling
from .placements import Compact, Resident, Streamed


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on, besides the model and the budget."""

    sampling: Sampling = field(default_factory=Sampling)
    stages: int = 10
    method: Method = field(default_factory=Method)
    measure: Measure = field(default_factory=LatentSNR)
    calibration: int = 128  # samples that calibration runs
    probes: int = 8  # noises that every candidate is judged on
    finalists: int = 5  # best candidates that are judged again ...
    held_out: int = 32  # ... on so many noises that the search never saw
    population: int = 20
    generations: int = 100
    survivors: int = 5  # of all so far, from which offspring are drawn
    crossover: float = 0.3  # share of offspring by crossover; the others are mutations
    switches: int = 3  # most level switches of a mutation
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("stages", "calibration", "probes", "finalists", "held_out", "population", "generations"):
            if getattr(self, name) < 1:
                remedy = "Leave it out to take the default."
                raise DiffESError(name, expected="1 or more", found=str(getattr(self, name)), remedy=remedy)

    def changed(self, **changes: Any) -> Settings:
        """The same with some values exchanged; steps, guidance and batch are those of ``sampling``.

        Raises:
            DiffESError: a name that is no setting.
        """
        own = {name: value for name, value in changes.items() if name not in vars(self.sampling)}
        for name in own:
            if name not in vars(self):
                known = ", ".join([*vars(self.sampling), *vars(self)])
                raise DiffESError("settings", expected=f"one of {known}", found=name, remedy="Mind the spelling.")
        sampling = {name: value for name, value in changes.items() if name not in own}
        before = own.get("sampling", self.sampling)
        return replace(self, **{**own, "sampling": replace(before, **sampling)})


_RANKINGS, _MEASURES = (Obs, Wanda, Magnitude, Activation), (LatentSNR, ImagePSNR, ImageSSIM)
_CHOICES: dict[str, type] = {
    kind.__name__: kind
    for kind in (Sampling, Method, Width, Depth, Ridge, *_RANKINGS, *_MEASURES, Resident, Streamed, Compact)
}


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values; a choice is an object with the name of its type."""
    return {name: plain(value) for name, value in vars(settings).items()}


def plain(value: Any) -> Any:
    """A value as JSON values; an object of a type in ``_CHOICES`` becomes one with the name of its type."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, tuple):
        return [plain(entry) for entry in value]
    return {"type": type(value).__name__, **{name: plain(entry) for name, entry in vars(value).items()}}


def restore(described: Mapping[str, Any]) -> Settings:
    """The settings that :func:`describe` wrote down."""
    return Settings(**{name: value_of(value) for name, value in described.items()})


def value_of(value: Any) -> Any:
    """The value that :func:`plain` wrote down."""
    if isinstance(value, list):
        return tuple(value_of(entry) for entry in value)
    if not isinstance(value, Mapping):
        return value
    kind = _CHOICES[value["type"]]
    return kind(**{name: value_of(entry) for name, entry in value.items() if name != "type"})
