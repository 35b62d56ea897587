"""What a manifest says, by schema: every entry that is read later, and how the entries belong together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    model_validator,
)

from .checking import validated
from .errors import ArtefactError, DiffESError
from .pipeline import Sampling
from .placements import Compact, Resident, Streamed
from .schedule import Schedule, Stages
from .settings import made, restore, value_of
from .store import EDITED, Hash, digest, stem_of

Whole = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Positive = Annotated[Number, Field(gt=0)]
Text = Annotated[str, Strict()]


def _score(value: float) -> float:
    if math.isnan(value):
        raise ValueError("a number")
    return value


def _sampling(value: Any) -> Sampling:
    return made(Sampling, value, "sampling") if isinstance(value, Mapping) else value


def _placement(value: Any) -> Any:
    return value_of(value, "placement")


def _settings(value: dict[str, Any]) -> dict[str, Any]:
    restore(value)
    return value


Score = Annotated[float, Strict(), AfterValidator(_score)]  # -inf: ruled out
Rows = tuple[tuple[Annotated[int, Strict()] | Number, ...], ...]  # of a schedule, its timesteps as one more row


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Stage(_Entry):
    file: Text
    left_out: tuple[Text, ...]


class Described(_Entry):
    """What ``Schedule.to_json`` wrote."""

    boundaries: tuple[Number, ...]
    levels: tuple[tuple[Whole, ...], ...]

    @model_validator(mode="after")
    def fits(self) -> Self:
        self.made()
        return self

    def made(self) -> Schedule:
        return Schedule(Stages(self.boundaries), self.levels)


class _Generation(_Entry):
    index: Whole
    best: Score
    median: Score
    mean: Score
    evaluations: Whole


class Describedr(_Entry):
    name: Annotated[Text, Field(alias="_class_name")]
    trained: Annotated[Annotated[Whole, Field(le=10**6)] | None, Field(alias="num_train_timesteps")] = None


class _Origin(_Entry):
    model: Text
    config: Text | None = None
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    scheduler: Describedr


class _Sensitivity(_Entry):
    levels: tuple[tuple[tuple[Annotated[Number, Field(ge=0)], ...], ...], ...]
    steps: tuple[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[Number, Field(ge=0)]], ...] | None
    of: dict[str, Any]


_Finalist = tuple[Rows, Score, Score] | tuple[Rows, Score, Score, Whole, Annotated[bool, Strict()]]


class _About(_Entry):
    budget: Annotated[Positive, Field(le=1)]
    macs_ratio: Positive
    cost_ratio: Positive
    score: Score
    held_out_score: Score
    held_out_error: Annotated[Number, Field(ge=0)] | None = None
    asked: dict[Text, Positive] | None = None
    prices: dict[str, Any] | None = None
    finalists: Annotated[tuple[_Finalist, ...], Field(min_length=1)]
    history: tuple[_Generation, ...]
    evaluations: Whole
    steps: tuple[Whole, ...]
    timesteps: tuple[Number, ...]
    reference_timesteps: tuple[Number, ...] | None
    macs_by_level: tuple[Annotated[tuple[Whole, ...], Field(min_length=1)], ...]
    units: tuple[Text, ...]
    sensitivity: _Sensitivity
    settings: Annotated[dict[str, Any], AfterValidator(_settings)]
    origin: _Origin
    own_held_out_score: Score | None = None
    held_out_score_to_own: Score | None = None
    compact_held_out_score: Score | None = None
    speedup: Positive | None = None
    measured_speedup: Positive | None = None


def _by_hand(about: Any) -> Any:
    """None, where nothing is said but, at most, what it was made for."""
    if isinstance(about, Mapping) and about.keys() <= {"origin"}:
        if about:
            _Origin.model_validate(about["origin"])
        return None
    return about


class Point(_Entry):
    """The result for one budget."""

    schedule: Described
    stages: tuple[_Stage, ...]
    sampling: Annotated[Sampling, BeforeValidator(_sampling)]
    timesteps: tuple[Annotated[Number, Field(ge=0)], ...] | None
    corrections: tuple[tuple[Number, ...], ...]
    base: Hash
    placement: Annotated[Resident | Streamed | Compact | None, BeforeValidator(_placement)]
    about: Annotated[_About | None, BeforeValidator(_by_hand)]  # None of one made by hand
    sha256: Hash | None = None  # of all else, and of the tensors; earlier versions wrote none

    @model_validator(mode="after")
    def fits(self) -> Self:
        _same("stages", len(self.schedule.levels), len(self.stages))
        self._check_steps()
        if self.about is not None:
            self._check_about(self.about)
        return self

    def _check_about(self, about: _About) -> None:
        stages = len(self.schedule.levels)
        _same("about.steps", stages, len(about.steps))
        _same("about.macs_by_level", len(about.units), len(about.macs_by_level))
        for i, row in enumerate(self.schedule.levels):
            self._check_levels(about, f"schedule.levels[{i}]", row)
        for i, (rows, *_) in enumerate(about.finalists):
            self._check_candidate(about, f"about.finalists[{i}]", rows)
        table, chosen = about.sensitivity, self.timesteps is not None
        _same("about.sensitivity.levels", stages, len(table.levels))
        for i, stage in enumerate(table.levels):
            sizes = f"about.sensitivity.levels[{i}]"
            _same(sizes, [len(options) for options in about.macs_by_level], [len(row) for row in stage])
        _same("about.sensitivity.steps", stages if chosen else None, None if table.steps is None else len(table.steps))

    def _check_steps(self) -> None:
        """Chosen timesteps descend, and a step is corrected along no more directions than there are before it."""
        most = None if self.about is None else self.about.origin.scheduler.trained
        _descend("timesteps", self.timesteps or (), most)
        if self.corrections:
            _same("corrections", len(self.timesteps or ()), len(self.corrections))
        reach = 0
        for i, weights in enumerate(self.corrections):
            if len(weights) > 2 + reach:
                raise _unfit(f"corrections[{i}]", f"at most {2 + reach} numbers", str(len(weights)))
            reach = min(reach + 1, max(len(weights) - 1, 0))

    def _check_levels(self, about: _About, where: str, row: tuple[int | float, ...]) -> None:
        options = [len(costs) for costs in about.macs_by_level]
        _same(where, len(options), len(row))
        for level, count in zip(row, options, strict=True):
            if not isinstance(level, int) or not 0 <= level < count:
                raise _unfit(where, f"levels from 0 to {count - 1}", f"{level}")

    def _check_candidate(self, about: _About, where: str, rows: Rows) -> None:
        """A row for each stage, which begins with the number of steps where that is a choice, and then timesteps."""
        chosen, stages = self.timesteps is not None, len(self.stages)
        if len(rows) != stages and not (chosen and len(rows) == stages + 1):
            raise _unfit(where, f"{stages} rows", str(len(rows)))
        for row in rows[:stages]:
            if chosen and not (row and isinstance(row[0], int) and row[0] >= 0):
                raise _unfit(where, "a number of steps first", str(row[:1]))
            self._check_levels(about, where, row[1:] if chosen else row)
        for timesteps in rows[stages:]:
            _descend(where, timesteps, about.origin.scheduler.trained)

    def made(self) -> Schedule:
        """The schedule."""
        return self.schedule.made()


class Manifest(_Entry):
    """All results of one search."""

    chosen: Whole
    points: Annotated[tuple[Point, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def fits(self) -> Self:
        if self.chosen >= len(self.points):
            raise _unfit("chosen", f"one of {len(self.points)} points", str(self.chosen))
        return self


_MANIFEST = TypeAdapter(Manifest)


def checked(manifest: Mapping[str, Any], where: str) -> Manifest:
    """What a manifest says.

    Args:
        where: it lies.

    Raises:
        ArtefactError: an entry is missing or cannot be meant, or does not belong to the others; the message names it.
    """
    found = validated(_MANIFEST, manifest, where, EDITED, ArtefactError)
    files = {stem_of(name): facts["sha256"] for name, facts in manifest["files"].items()}
    for i, (point, entry) in enumerate(zip(found.points, manifest["points"], strict=True)):
        for j, stage in enumerate(point.stages):
            if stage.file not in files:
                place, expected = f"{where}: points[{i}].stages[{j}].file", f"one of {', '.join(files)}"
                raise ArtefactError(place, expected=expected, found=stage.file[:80], remedy=EDITED)
        if point.sha256 is not None and point.sha256 != tied(entry, files):
            expected = "the schedule, settings and tensors that were saved together"
            raise ArtefactError(f"{where}: points[{i}]", expected=expected, found="others", remedy=EDITED)
    return found


def tied(entry: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The hash of a point and of the tensors that it belongs to.

    Args:
        files: the hash of every file, by its stem.
    """
    return digest([{key: value for key, value in entry.items() if key != "sha256"}, files])


def _unfit(where: str, expected: str, found: str) -> DiffESError:
    return DiffESError(where, expected=expected, found=found[:80], remedy=EDITED)


def _same(where: str, expected: object, found: object) -> None:
    if expected != found:
        raise _unfit(where, f"a length of {expected}", f"{found}")


def _descend(where: str, timesteps: tuple[int | float, ...], most: int | None) -> None:
    if any(a <= b for a, b in pairwise(timesteps)) or (most is not None and max(timesteps, default=0) > most):
        raise _unfit(where, f"descending timesteps, none above {most}", str(timesteps))
