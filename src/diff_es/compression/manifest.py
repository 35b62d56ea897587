"""What a manifest says, by schema: every entry that is read later, and how the entries belong together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from ..pipelines.families import Sampling
from ..routing.placements import Compact, Resident, Streamed
from ..scoring.journal import CandidateJson
from ..trajectory.stages import Schedule, Stages
from ..utils.checking import validated
from ..utils.errors import ArtefactError, DiffESError
from ..utils.files import digest
from . import format3
from .report import Entry, Number, OriginJson, ReportJson, Text, Whole
from .settings import made, value_of
from .store import EDITED, Hash, stem_of


def _sampling(value: Any) -> Sampling:
    return made(Sampling, value, "sampling") if isinstance(value, Mapping) else value


def _placement(value: Any) -> Any:
    return value_of(value, "placement")


class _Stage(Entry):
    file: Text
    left_out: tuple[Text, ...]


class ScheduleJson(Entry):
    """What ``Schedule.to_json`` wrote."""

    boundaries: tuple[Number, ...]
    levels: tuple[tuple[Whole, ...], ...]

    @model_validator(mode="after")
    def fits(self) -> Self:
        self.made()
        return self

    def made(self) -> Schedule:
        return Schedule(Stages(self.boundaries), self.levels)


class Point(Entry):
    """The result for one budget."""

    schedule: ScheduleJson
    stages: tuple[_Stage, ...]
    sampling: Annotated[Sampling, BeforeValidator(_sampling)]
    timesteps: tuple[Annotated[Number, Field(ge=0)], ...] | None
    corrections: tuple[tuple[Number, ...], ...]
    base: Hash
    placement: Annotated[Resident | Streamed | Compact | None, BeforeValidator(_placement)]
    origin: OriginJson | None
    report: ReportJson | None  # None of one made by hand
    sha256: Hash | None = None  # of all else, and of the tensors; earlier versions wrote none

    @model_validator(mode="after")
    def fits(self) -> Self:
        _same("stages", len(self.schedule.levels), len(self.stages))
        self._check_steps()
        if self.report is not None:
            self._check_report(self.report)
        return self

    def _check_report(self, report: ReportJson) -> None:
        stages = len(self.schedule.levels)
        _same("report.steps", stages, len(report.steps))
        _same("report.macs_by_level", len(report.units), len(report.macs_by_level))
        for i, row in enumerate(self.schedule.levels):
            _check_levels(report, f"schedule.levels[{i}]", row)
        for i, finalist in enumerate(report.finalists):
            self._check_candidate(report, f"report.finalists[{i}]", finalist.candidate)
        table = report.sensitivity
        _same("report.sensitivity.levels", stages, len(table.levels))
        for i, stage in enumerate(table.levels):
            sizes = f"report.sensitivity.levels[{i}]"
            _same(sizes, [len(options) for options in report.macs_by_level], [len(row) for row in stage])
        if table.steps is not None:
            _same("report.sensitivity.steps", stages if self.timesteps else None, len(table.steps))

    @property
    def _trained(self) -> int | None:
        return None if self.origin is None else self.origin.scheduler.trained

    def _check_steps(self) -> None:
        """Chosen timesteps descend, and a step is corrected along no more directions than there are before it."""
        _descend("timesteps", self.timesteps or (), self._trained)
        if self.corrections:
            _same("corrections", len(self.timesteps or ()), len(self.corrections))
        reach = 0
        for i, weights in enumerate(self.corrections):
            if len(weights) > 2 + reach:
                raise _unfit(f"corrections[{i}]", f"at most {2 + reach} numbers", str(len(weights)))
            reach = min(reach + 1, max(len(weights) - 1, 0))

    def _check_candidate(self, report: ReportJson, where: str, candidate: CandidateJson) -> None:
        """Levels for each stage, and steps where they are a choice."""
        _same(where, len(self.stages), len(candidate.levels))
        if (candidate.steps is None) != (report.sensitivity.steps is None):
            found = "none" if candidate.steps is None else "some"
            raise _unfit(where, "steps where the table of sensitivities has them, and only there", found)
        for levels in candidate.levels:
            _check_levels(report, where, levels)
        _descend(where, candidate.timesteps or (), self._trained)

    def made(self) -> Schedule:
        """The schedule."""
        return self.schedule.made()


class Manifest(Entry):
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
    said = format3.upgraded(manifest, where) if manifest["format"] == format3.FORMAT else manifest
    found = validated(_MANIFEST, said, where, EDITED, ArtefactError)
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


def _check_levels(report: ReportJson, where: str, row: tuple[int, ...]) -> None:
    options = [len(costs) for costs in report.macs_by_level]
    _same(where, len(options), len(row))
    for level, count in zip(row, options, strict=True):
        if level >= count:
            raise _unfit(where, f"levels from 0 to {count - 1}", f"{level}")


def _unfit(where: str, expected: str, found: str) -> DiffESError:
    return DiffESError(where, expected=expected, found=found[:80], remedy=EDITED)


def _same(where: str, expected: object, found: object) -> None:
    if expected != found:
        raise _unfit(where, f"a length of {expected}", f"{found}")


def _descend(where: str, timesteps: tuple[int | float, ...], most: int | None) -> None:
    if any(a <= b for a, b in pairwise(timesteps)) or (most is not None and max(timesteps, default=0) > most):
        raise _unfit(where, f"descending timesteps, none above {most}", str(timesteps))
