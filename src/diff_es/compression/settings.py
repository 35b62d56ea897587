"""Everything that a result depends on besides the model and the budget, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field

from ..pipelines.families import Sampling
from ..pruning.compensation import Ridge
from ..pruning.granularity import Depth, Granularity, Width
from ..pruning.importance import Activation, Magnitude, Obs, Wanda
from ..pruning.method import Method
from ..routing.placements import Compact, Resident, Streamed
from ..scoring.distribution import Blend, Distribution
from ..scoring.fidelity import BandSNR, ImagePSNR, ImageSSIM, LatentSNR, Measure
from ..utils.arguments import LISTED, Text, checked, named
from ..utils.checking import shown
from ..utils.errors import DiffESError
from ..utils.limits import Chance, Count, CountOrNone, Directions, Finer, Seed, Share, Steps

Prompts: TypeAlias = Annotated[tuple[Text, ...], LISTED, Field(min_length=1, max_length=10_000)]
"""As many as a search may draw from: they are in its journal, and in the manifest of its result."""


class Levers(StrEnum):
    """What a schedule may change from stage to stage."""

    PRUNE = "prune"  # levels: the paper's search
    STEPS = "steps"  # how many sampler steps a stage of the dense model takes
    BOTH = "prune,steps"


@checked("")
@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on, besides the model and the budget.

    The sizes of the search are those of ``Effort.STANDARD``; ``with_effort`` gives others.

    Args:
        sampling: as the user samples.
        stages: that the trajectory is cut into; None: ten, or one for each step where there are fewer.
        levers: what a schedule may change from stage to stage; None: levels and steps, but levels alone where the
            sampler draws noise on the way, takes no timesteps, or takes one twice.
        method: how levels are made.
        measure: of closeness to the dense model.
        calibration_samples: that calibration runs; None: as many as it takes to see 16 vectors for each column of most
            layers, 64 to 256.
        reference_multiple: where steps are a choice, results are compared with a run of so many times the user's own;
            None: 4, but 1 for fewer than ten steps, as models take that were distilled to them.
        corrections: the most directions along which each step is corrected (``trajectory.corrections``); 0: none;
            None: 6 where steps are a choice. With levels alone they are fitted to the dense run of the same steps, and
            a step makes up for what the pruned ones before it left.
        search_noises: that candidates are judged on.
        first_rung: so many of them first, after which the worse half drops out (successive halving); None: half of
            them, 0: all at once.
        sensitivity_noises: so many of them measure the sensitivities, None: by the number of stages and units; ...
        sensitivity_levels: ... of so many levels of a unit that thin, where there are several units. Of one, the others
            follow from what its layers lose, known without a run; of more, they lie between them.
        finalists: best candidates of a search that are judged again, beside others (``final``) ...
        held_out_noises: ... on so many noises that the search never saw, or more; the winner on so many fresh ones.
        population: candidates per generation.
        generations: of the search, and half as many more where steps and levels are both a choice.
        survivors: best candidates of all so far, from which offspring are drawn.
        crossover: share of offspring by crossover; the others are mutations.
        switches: most level switches of a mutation; None: by the number of choices.
        timestep_generations: in which the timesteps of the best schedules are moved about; 1: none.
        timestep_offspring: candidates in each of these.
        front: other budgets to search along, as shares like ``MacsRatio.ratio``.
        seed: of every random draw.
        prompts: of text pipelines, dealt to the noises; None: the pipeline's own.

    Raises:
        DiffESError: a setting of no sense.
    """

    sampling: Sampling = field(default_factory=Sampling)
    stages: Steps | None = None
    levers: Annotated[Levers, named(Levers)] | None = None
    method: Method = field(default_factory=Method)
    measure: Measure = field(default_factory=LatentSNR)
    calibration_samples: Count | None = None
    reference_multiple: Finer | None = None
    corrections: Directions | None = None
    search_noises: Count = 16
    first_rung: CountOrNone | None = None
    sensitivity_noises: Count | None = None
    sensitivity_levels: Count = 1
    finalists: Count = 3
    held_out_noises: Count = 10
    population: Count = 13
    generations: Count = 4
    survivors: Count = 5
    crossover: Chance = 0.3
    switches: Count | None = None
    timestep_generations: Count = 3
    timestep_offspring: Count = 8
    front: Annotated[tuple[Share, ...], LISTED] = ()
    seed: Seed = 0
    prompts: Prompts | None = None

    def __post_init__(self) -> None:
        if self.rung_noises >= self.search_noises:
            expected = f"a number from 0, below the {self.search_noises} search noises"
            remedy = "Leave it out to take the default."
            raise DiffESError("first_rung", expected=expected, found=str(self.first_rung), remedy=remedy)

    @property
    def rung_noises(self) -> int:
        """Noises of the first rung of a race; 0: candidates do not race."""
        return self.search_noises // 2 if self.first_rung is None else self.first_rung

    @property
    def sensed_noises(self) -> int:
        """Noises that sensitivities are measured on, where it is said how many at the most."""
        return (
            self.search_noises if self.sensitivity_noises is None else min(self.sensitivity_noises, self.search_noises)
        )


_RANKINGS = (Obs, Wanda, Magnitude, Activation)
_MEASURES = (LatentSNR, BandSNR, ImagePSNR, ImageSSIM, Distribution, Blend)
_PLACEMENTS = (Resident, Streamed, Compact)
_CHOICES: dict[str, type] = {
    kind.__name__: kind
    for kind in (Sampling, Method, Width, Depth, Granularity, Ridge, Levers, *_RANKINGS, *_MEASURES, *_PLACEMENTS)
}
_CHOICES["Grain"] = Granularity  # in format 3
_EARLIER: dict[type, dict[str, str]] = {
    Sampling: {"steps": "num_inference_steps", "guidance": "guidance_scale", "frames": "num_frames"},
    Method: {"grain": "granularity"},
    Settings: {
        "calibration": "calibration_samples",
        "fine": "reference_multiple",
        "probes": "search_noises",
        "heat": "first_rung",
        "sensed": "sensitivity_noises",
        "held_out": "held_out_noises",
        "placings": "timestep_generations",
        "offspring": "timestep_offspring",
    },
}
"""What artefacts of format 3 call a field."""
_EDITED = "Compress again, with the settings that are meant."


def describe(settings: Settings) -> dict[str, object]:
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


def today(kind: type, described: Mapping[str, Any]) -> dict[str, Any]:
    """Entries by what fields are called now, of whichever format."""
    return {_EARLIER.get(kind, {}).get(name, name): entry for name, entry in described.items()}


Kind = TypeVar("Kind")


def made(kind: type[Kind], described: Mapping[str, Any], where: str) -> Kind:
    """An object of a dataclass from what :func:`plain` wrote of its fields; those that are missing take their default.

    Raises:
        DiffESError: a field that the class has not, or a value that it cannot have.
    """
    said = today(kind, described)
    try:
        return kind(**{name: value_of(entry, f"{where}.{name}") for name, entry in said.items()})
    except DiffESError as error:
        inside = error.where if error.where.startswith(where) else f"{where}: {error.where}"
        raise DiffESError(inside, expected=error.expected, found=error.found, remedy=_EDITED) from error
