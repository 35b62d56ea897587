"""Artefacts of format 3: what they say, as those of format 4 say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict, TypeAdapter

from ..pruning.budget import Budget
from ..search import Candidate
from ..utils.checking import validated
from ..utils.errors import ArtefactError, DiffESError
from .final import Judged
from .report import Entry, Facts, Number, OriginJson, Positive, Score, SensitivityJson, Text, Whole, report_to_json
from .settings import Settings, describe, restore, today
from .store import EDITED

FORMAT = 3

Rows = Sequence[Sequence[float]]


def candidate_of(rows: Rows, stages: int, *, steps: bool) -> Candidate:
    """A candidate from its rows.

    Args:
        rows: of each stage the number of steps, where it is a choice, and the levels; then, if they were moved, the
            timesteps.
        steps: whether steps are a choice.

    Raises:
        DiffESError: rows of no candidate.
    """
    whole, moved = [list(map(int, row)) for row in rows[:stages]], rows[stages:]
    if len(whole) < stages or len(moved) > steps or any(len(row) <= steps or min(row) < 0 for row in whole):
        raise DiffESError("rows", expected=f"{stages} rows of a candidate", found=str(rows)[:80], remedy=EDITED)
    if not steps:
        return Candidate.of(whole)
    return Candidate.of([row[1:] for row in whole], [row[0] for row in whole], [float(t) for row in moved for t in row])


def rows_of(candidate: Candidate) -> list[list[float]]:
    """The rows of a candidate, as :func:`candidate_of` reads them."""
    rows: list[list[float]] = [
        [*one.levels] if one.steps is None else [one.steps, *one.levels] for one in candidate.stages
    ]
    whole = [int(t) if t == int(t) else t for t in candidate.timesteps]
    return [*rows, whole] if whole else rows


_Rows = tuple[tuple[Annotated[int, Strict()] | Number, ...], ...]
_Finalist = tuple[_Rows, Score, Score] | tuple[_Rows, Score, Score, Whole, Annotated[bool, Strict()]]


def _measured_on(of: dict[str, Any]) -> dict[str, Any]:
    """What a table was measured on, as format 4 says it: settings, and what is none of them."""
    said, names = today(Settings, of), {one.name for one in fields(Settings)}
    settings = describe(restore({name: entry for name, entry in said.items() if name in names}))
    return {name: settings.get(name, entry) for name, entry in said.items()}


class _Sensitivity(SensitivityJson):
    of: Annotated[dict[str, Any], AfterValidator(_measured_on)]


class _About(Facts):
    """What a search found."""

    sensitivity: _Sensitivity
    budget: Annotated[Positive, Field(le=1)]
    asked: dict[Text, Positive] | None = None
    speedup: Positive | None = None
    finalists: Annotated[tuple[_Finalist, ...], Field(min_length=1)]
    origin: OriginJson

    def upgraded(self, stages: int, *, steps: bool) -> dict[str, object]:
        """The report as format 4 has it."""
        few, finalists = restore(self.settings).held_out_noises, list[Judged]()  # few: where it is not said
        for one in self.finalists:
            rows, score, held_out, noises, corrected = one if len(one) == 5 else (*one, few, True)
            finalists.append(Judged(candidate_of(rows, stages, steps=steps), score, held_out, noises, corrected))
        asked = self.asked or ({"macs": self.budget} if self.speedup is None else {"speedup": self.speedup})
        return report_to_json(self.report(Budget.from_json(asked), self.budget, tuple(finalists)))


def _by_hand(about: Any) -> Any:
    """Of a result made by hand nothing is said but, at most, its origin."""
    if isinstance(about, Mapping) and about.keys() <= {"origin"}:
        return OriginJson.model_validate(about["origin"]) if about else None
    return about


class _Schedule(Entry):
    levels: tuple[tuple[Whole, ...], ...]


class _Point(Entry):
    schedule: _Schedule
    timesteps: tuple[Number, ...] | None
    about: Annotated[_About | OriginJson | None, BeforeValidator(_by_hand)]

    def upgraded(self) -> dict[str, object]:
        """What format 4 says otherwise."""
        if not isinstance(self.about, _About):
            origin = None if self.about is None else asdict(self.about.made())
            return {"origin": origin, "report": None}
        report = self.about.upgraded(len(self.schedule.levels), steps=self.timesteps is not None)
        return {"origin": asdict(self.about.origin.made()), "report": report}


_POINTS = TypeAdapter(tuple[_Point, ...])


def upgraded(manifest: Mapping[str, Any], where: str) -> dict[str, object]:
    """A manifest as one of format 4, whose entries are checked as these are.

    Raises:
        ArtefactError: an entry is missing or cannot be meant; the message names it.
    """
    points = validated(_POINTS, manifest.get("points"), f"{where}: points", EDITED, ArtefactError)
    entries = zip(points, manifest["points"], strict=True)
    return {**manifest, "points": [{**entry, **point.upgraded()} for point, entry in entries]}
