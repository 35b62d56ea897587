"""Everything that a result depends on besides the model and the budget, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from .errors import DiffESError
from .library import Method
from .measures import ImagePSNR, ImageSSIM, LatentSNR, Measure
from .obs import Activation, Magnitude, Obs, Ridge, Wanda
from .pipeline import Sampling
from .placements import Compact, Resident, Streamed
from .units import Depth, Grain, Width


class Levers(StrEnum):
    """What a schedule may change from stage to stage."""

    PRUNE = "prune"  # levels: the paper's search
    STEPS = "steps"  # how many sampler steps a stage of the dense model takes
    BOTH = "prune,steps"


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on, besides the model and the budget."""

    sampling: Sampling = field(default_factory=Sampling)
    stages: int = 10
    levers: Levers = Levers.BOTH
    method: Method = field(default_factory=Method)
    measure: Measure = field(default_factory=LatentSNR)
    calibration: int = 128  # samples that calibration runs
    fine: int = 4  # where steps are a choice, results are compared with so many times the user's own steps
    corrections: int = 4  # and each step is corrected along so many directions (`multistep`); 0: along none
    probes: int = 32  # noises that candidates are judged on
    heat: int | None = None  # the first of them, after which the worse half drops out; None: half of them, 0: none
    sensed: int = 10  # the first of them, on which sensitivities are measured
    finalists: int = 5  # best candidates of a search that are judged again, beside others (`final`) ...
    held_out: int = 32  # ... on so many noises that the search never saw, or more, and the winner on so many fresh ones
    population: int = 20
    generations: int = 40  # and half as many more where steps and levels are both a choice
    survivors: int = 5  # of all so far, from which offspring are drawn
    crossover: float = 0.3  # share of offspring by crossover; the others are mutations
    switches: int | None = None  # most level switches of a mutation; None: by the number of choices
    placings: int = 16  # generations in which the steps of the best schedules are moved about; 1: none
    offspring: int = 8  # of each of them
    front: tuple[float, ...] = ()  # budgets that are searched beside the one asked for
    seed: int = 0
    prompts: tuple[str, ...] | None = None  # of text pipelines, dealt to the noises; None: the pipeline's own

    def __post_init__(self) -> None:
        remedy = "Leave it out to take the default."
        counts = ("stages", "calibration", "fine", "probes", "finalists", "held_out", "population", "generations")
        for name in (*counts, "sensed", "placings", "offspring"):
            if getattr(self, name) < 1:
                raise DiffESError(name, expected="1 or more", found=str(getattr(self, name)), remedy=remedy)
        if self.corrections < 0:
            raise DiffESError("corrections", expected="0 or more", found=str(self.corrections), remedy=remedy)
        if not 0 <= self.first_heat < self.probes:
            expected = f"a number from 0, below the {self.probes} probes"
            raise DiffESError("heat", expected=expected, found=str(self.heat), remedy=remedy)

    @property
    def first_heat(self) -> int:
        """Probes of the first heat of a race; 0: candidates do not race."""
        return self.probes // 2 if self.heat is None else self.heat

    @property
    def sensed_probes(self) -> int:
        """Probes that sensitivities are measured on."""
        return min(self.sensed, self.probes)

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
_PLACEMENTS = (Resident, Streamed, Compact)
_CHOICES: dict[str, type] = {
    kind.__name__: kind
    for kind in (Sampling, Method, Width, Depth, Grain, Ridge, Levers, *_RANKINGS, *_MEASURES, *_PLACEMENTS)
}


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values; a choice is an object with the name of its type."""
    return {name: plain(value) for name, value in vars(settings).items()}


def plain(value: Any) -> Any:
    """A value as JSON values; an object of a type in ``_CHOICES`` becomes one with the name of its type."""
    if isinstance(value, StrEnum):
        return {"type": type(value).__name__, "value": value.value}
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
    if issubclass(kind, StrEnum):
        return kind(value["value"])
    return kind(**{name: value_of(entry) for name, entry in value.items() if name != "type"})
