"""What a search found and on what, with its way to JSON and back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, Field, Strict

from ..pipelines.origin import Origin
from ..pruning.budget import Budget, MeasuredPrices
from ..scoring.journal import CandidateJson
from ..search import Generation
from .final import Judged
from .sensitivity import Sensitivity, SensitivityOf
from .settings import Settings, describe, restore

Whole = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Positive = Annotated[Number, Field(gt=0)]
Text = Annotated[str, Strict()]


@dataclass(frozen=True)
class SearchReport:
    """What a search found within one budget, and on what. Costs are relative to the user's own setting."""

    budget: Budget  # that was asked for
    limit: float  # the most that a schedule may cost, in the unit of the budget
    macs_ratio: float
    cost_ratio: float  # in the unit of the budget
    score: float  # mean closeness on the search's probes
    held_out_score: float  # and on fresh ones, which have chosen nothing
    held_out_error: float | None  # standard error of that mean; None: of one probe
    finalists: tuple[Judged, ...]  # the winner first
    history: tuple[Generation, ...]
    evaluations: int  # candidates that were run, those of the table of sensitivities among them
    steps: tuple[int, ...]  # of the sampler, in each stage
    timesteps: tuple[float, ...]
    reference_timesteps: tuple[float, ...] | None  # of the run that results are compared with; None: the user's own
    macs_by_level: tuple[tuple[int, ...], ...]  # of a denoiser call, by [unit][level]
    units: tuple[str, ...]
    sensitivity: SensitivityOf
    settings: Settings
    prices: MeasuredPrices | None = None  # by which a budget of time is kept
    own_held_out_score: float | None = None  # of the user's own setting, where the reference is another
    held_out_score_to_own: float | None = None  # of the result, compared with the user's own setting
    compact_held_out_score: float | None = None  # of the result, with factored corrections
    measured_speedup: float | None = None  # of the whole pipeline, on the device that searched
    speedup_doubt: str = ""  # why that is not to be believed


def report_to_json(report: SearchReport) -> dict[str, object]:
    """JSON values, for :class:`ReportJson`."""
    facts = {**vars(report), "budget": report.budget.to_json(), "settings": describe(report.settings)}
    facts["finalists"] = [{**vars(one), "candidate": one.candidate.to_json()} for one in report.finalists]
    facts["history"] = [asdict(generation) for generation in report.history]
    facts["sensitivity"] = report.sensitivity.to_json()
    facts["prices"] = None if report.prices is None else report.prices.model_dump()
    return facts


def _score(value: float) -> float:
    if math.isnan(value):
        raise ValueError("a number")
    return value


def _settings(value: dict[str, object]) -> dict[str, object]:
    restore(value)
    return value


Score = Annotated[float, Strict(), AfterValidator(_score)]  # -inf: ruled out
Described = Annotated[dict[str, object], AfterValidator(_settings)]


class Entry(BaseModel):
    """Of a manifest."""

    model_config = ConfigDict(frozen=True)


class _Finalist(Entry):
    candidate: CandidateJson
    score: Score
    held_out: Score
    noises: Whole
    corrected: Annotated[bool, Strict()]

    def made(self) -> Judged:
        return Judged(**{**dict(self), "candidate": self.candidate.made()})


class GenerationJson(Entry):
    """What ``asdict`` wrote of a generation."""

    index: Whole
    best: Score
    median: Score
    mean: Score
    evaluations: Whole


class SchedulerJson(BaseModel):
    """Class and settings of a scheduler, of which others than these two may be anything."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[Text, Field(alias="_class_name")]
    trained: Annotated[Annotated[Whole, Field(le=10**6)] | None, Field(alias="num_train_timesteps")] = None


class OriginJson(Entry):
    """What ``asdict`` wrote of an origin."""

    model: Text
    config: Text | None = None
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    scheduler: SchedulerJson

    def made(self) -> Origin:
        """The origin."""
        return Origin(self.model, self.dtype, self.scheduler.model_dump(by_alias=True, exclude_unset=True), self.config)


class SensitivityJson(Entry):
    """What ``SensitivityOf.to_json`` wrote."""

    levels: tuple[tuple[tuple[Annotated[Number, Field(ge=0)], ...], ...], ...]
    steps: tuple[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[Number, Field(ge=0)]], ...] | None
    of: dict[str, object]

    def made(self) -> SensitivityOf:
        """The table."""
        steps = None if self.steps is None else tuple({int(n): e for n, e in row.items()} for row in self.steps)
        return SensitivityOf(Sensitivity(self.levels, steps), self.of)


class Facts(Entry):
    """What reports of all formats say alike."""

    macs_ratio: Positive
    cost_ratio: Positive
    score: Score
    held_out_score: Score
    held_out_error: Annotated[Number, Field(ge=0)] | None = None
    history: tuple[GenerationJson, ...]
    evaluations: Whole
    steps: tuple[Whole, ...]
    timesteps: tuple[Number, ...]
    reference_timesteps: tuple[Number, ...] | None
    macs_by_level: tuple[Annotated[tuple[Whole, ...], Field(min_length=1)], ...]
    units: tuple[Text, ...]
    sensitivity: SensitivityJson
    settings: Described
    prices: MeasuredPrices | None = None
    own_held_out_score: Score | None = None
    held_out_score_to_own: Score | None = None
    compact_held_out_score: Score | None = None
    measured_speedup: Positive | None = None
    speedup_doubt: Annotated[str, Strict()] = ""

    def report(self, budget: Budget, limit: float, finalists: tuple[Judged, ...]) -> SearchReport:
        """The report, with what the formats say otherwise."""
        facts = {name: getattr(self, name) for name in Facts.model_fields}
        facts["history"] = tuple(Generation(**dict(one)) for one in self.history)
        settings = restore(self.settings)
        if self.reference_timesteps is None:  # earlier versions told of corrections of levels alone, and made none
            settings = replace(settings, corrections=0)
        facts |= {"sensitivity": self.sensitivity.made(), "settings": settings}
        return SearchReport(budget=budget, limit=limit, finalists=finalists, **facts)


class ReportJson(Facts):
    """What :func:`report_to_json` wrote."""

    budget: dict[Text, Positive | None]
    limit: Annotated[Positive, Field(le=1)]
    finalists: Annotated[tuple[_Finalist, ...], Field(min_length=1)]

    def made(self) -> SearchReport:
        """The report."""
        finalists = tuple(one.made() for one in self.finalists)
        return self.report(Budget.from_json(self.budget), self.limit, finalists)
