"""Everything that a result depends on besides the model and the budget, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field

from ..pipelines.families import Sampling
from ..pruning.compensation import Ridge
from ..pruning.granularity import Depth, Grain, Width
from ..pruning.importance import Activation, Magnitude, Obs, Wanda
from ..pruning.library import Method
from ..routing.placements import Compact, Resident, Streamed
from ..scoring.fidelity import ImagePSNR, ImageSSIM, LatentSNR, Measure
from ..utils.arguments import LISTED, Text, checked, named
from ..utils.checking import shown
from ..utils.errors import DiffESError
from ..utils.limits import Chance, Count, CountOrNone, Directions, Finer, Seed, Share, Steps

Prompts: TypeAlias = Annotated[tuple[Text, ...], LISTED, Field(min_length=1)]


class Levers(StrEnum):
    """What a schedule may change from stage to stage."""

    PRUNE = "prune"  # levels: the paper's search
    STEPS = "steps"  # how many sampler steps a stage of the dense model takes
    BOTH = "prune,steps"


@checked("")
@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on, besides the model and the budget."""

    sampling: Sampling = field(default_factory=Sampling)
    stages: Steps = 10
    levers: Annotated[Levers, named(Levers)] = Levers.BOTH
    method: Method = field(default_factory=Method)
    measure: Measure = field(default_factory=LatentSNR)
    calibration: Count = 128  # samples that calibration runs
    fine: Finer = 4  # where steps are a choice, results are compared with so many times the user's own steps
    corrections: Directions = 4  # and each step is corrected along so many directions (`multistep`); 0: along none
    probes: Count = 32  # noises that candidates are judged on
    heat: CountOrNone | None = None  # the first of them, after which the worse half drops out; None: half, 0: none
    sensed: Count = 10  # the first of them, on which sensitivities are measured
    finalists: Count = 5  # best candidates of a search that are judged again, beside others (`final`) ...
    held_out: Count = 32  # ... on so many noises that the search never saw, or more; the winner on so many fresh ones
    population: Count = 20
    generations: Count = 40  # and half as many more where steps and levels are both a choice
    survivors: Count = 5  # of all so far, from which offspring are drawn
    crossover: Chance = 0.3  # share of offspring by crossover; the others are mutations
    switches: Count | None = None  # most level switches of a mutation; None: by the number of choices
    placings: Count = 16  # generations in which the steps of the best schedules are moved about; 1: none
    offspring: Count = 8  # of each of them
    front: Annotated[tuple[Share, ...], LISTED] = ()  # budgets that are searched beside the one asked for
    seed: Seed = 0
    prompts: Prompts | None = None  # of text pipelines, dealt to the noises; None: the pipeline's own

    def __post_init__(self) -> None:
        if self.first_heat >= self.probes:
            expected, remedy = f"a number from 0, below the {self.probes} probes", "Leave it out to take the default."
            raise DiffESError("heat", expected=expected, found=str(self.heat), remedy=remedy)

    @property
    def first_heat(self) -> int:
        """Probes of the first heat of a race; 0: candidates do not race."""
        return self.probes // 2 if self.heat is None else self.heat

    @property
    def sensed_probes(self) -> int:
        """Probes that sensitivities are measured on."""
        return min(self.sensed, self.probes)


_RANKINGS, _MEASURES = (Obs, Wanda, Magnitude, Activation), (LatentSNR, ImagePSNR, ImageSSIM)
_PLACEMENTS = (Resident, Streamed, Compact)
_CHOICES: dict[str, type] = {
    kind.__name__: kind
    for kind in (Sampling, Method, Width, Depth, Grain, Ridge, Levers, *_RANKINGS, *_MEASURES, *_PLACEMENTS)
}
_EARLIER: dict[tuple[type, str], str] = {
    (Sampling, "steps"): "num_inference_steps",
    (Sampling, "guidance"): "guidance_scale",
    (Sampling, "frames"): "num_frames",
}
"""What artefacts of format 3 call a field."""
_EDITED = "Compress again, with the settings that are meant."


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
    """The settings that :func:`describe` wrote down; raises as :func:`made` does."""
    return made(Settings, described, "settings")


def value_of(value: Any, where: str = "value") -> Any:
    """The value that :func:`plain` wrote down; raises as :func:`made` does."""
    if isinstance(value, list):
        return tuple(value_of(entry, where) for entry in value)
    if not isinstance(value, Mapping):
        return value
    kind = _CHOICES.get(str(value.get("type")))
    if kind is None:
        found, expected = shown(value.get("type")), f"the type of a choice, one of {', '.join(_CHOICES)}"
        raise DiffESError(where, expected=expected, found=found, remedy=_EDITED)
    if not issubclass(kind, StrEnum):
        return made(kind, {name: entry for name, entry in value.items() if name != "type"}, where)
    if (name := value.get("value")) not in list(kind):
        raise DiffESError(where, expected=f"one of {', '.join(kind)}", found=shown(name), remedy=_EDITED)
    return kind(name)


Kind = TypeVar("Kind")


def made(kind: type[Kind], described: Mapping[str, Any], where: str) -> Kind:
    """An object of a dataclass from what :func:`plain` wrote of its fields; those that are missing take their default.

    Raises:
        DiffESError: a field that the class has not, or a value that it cannot have.
    """
    said = {_EARLIER.get((kind, name), name): entry for name, entry in described.items()}
    try:
        return kind(**{name: value_of(entry, f"{where}.{name}") for name, entry in said.items()})
    except DiffESError as error:
        inside = error.where if error.where.startswith(where) else f"{where}: {error.where}"
        raise DiffESError(inside, expected=error.expected, found=error.found, remedy=_EDITED) from error
