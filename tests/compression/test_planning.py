"""Laws of how much work a search does: sizes by an effort or by hours, and a table of few measurements."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.tiny import settings, tiny

from diff_es import DiffESError, Effort, Method, Ridge, Run, Settings, Width, compress, with_effort, within_hours
from diff_es.compression.effort import SIZES, sizes_of
from diff_es.compression.machine import Machine
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.study import Study, prepare
from diff_es.pruning.granularity import Granularity
from diff_es.scoring.journal import Scale
from diff_es.scoring.speed import Speed
from diff_es.search import Candidate
from diff_es.utils.progress import Course, Reporter

QUIET = Reporter(quiet=True)


# ------------------------------------------------------------------------------------------------------------- sizes


def test_no_size_shrinks_with_more_effort_and_the_standard_one_is_the_default() -> None:
    efforts = [sizes_of(effort) for effort in (0.001, 0.01, *Effort, 0.5, 1.0)]
    for name in SIZES:
        found = [sizes[name] for sizes in sorted(efforts, key=lambda sizes: sizes["generations"])]
        assert found == sorted(found)
        assert found[0] < found[-1]
    assert with_effort(Settings(), Effort.STANDARD) == Settings()
    assert with_effort(Settings(), 1) == with_effort(Settings(), Effort.THOROUGH)
    kept = with_effort(Settings(generations=7), Effort.THOROUGH, keep=["generations"])
    assert kept == replace(with_effort(Settings(), 1.0), generations=7)


@pytest.mark.parametrize("effort", [0, -1, 1.5, math.nan, "much", None, True])
def test_an_effort_of_no_sense_is_refused(effort: Any) -> None:
    with pytest.raises(DiffESError, match=r"effort: expected .* Or take quick, standard, thorough"):
        with_effort(Settings(), effort)


def test_a_size_that_is_none_cannot_be_kept() -> None:
    with pytest.raises(DiffESError, match=r"keep: expected some of search_noises, .* found seed"):
        with_effort(Settings(), 0.5, keep=["seed"])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every call takes a second."""
    module = sys.modules[within_hours.__module__]
    machine = Machine(Speed(1.0, 0.0, 1.0, *[0.0] * 7), 0.0, 0.0)
    monkeypatch.setattr(module, "machine_of", lambda surveyed: machine)


def test_a_search_is_as_large_as_the_hours_allow(slow: None) -> None:
    sized = [within_hours(tiny(), hours, 0.7, settings()) for hours in (0.25, 0.4, 1000.0)]
    assert sized[2] == with_effort(settings(), Effort.THOROUGH)
    assert sized[0].generations < sized[1].generations < sized[2].generations
    kept = within_hours(tiny(), 1000.0, 0.7, settings(generations=3), keep=["generations"])
    assert (kept.generations, kept.population) == (3, sized[2].population)


def test_hours_choose_among_the_efforts_that_a_first_rung_allows(slow: None) -> None:
    asked = settings(search_noises=32, first_rung=16)
    assert within_hours(tiny(), 1000.0, 0.7, asked) == with_effort(asked, Effort.THOROUGH)
    with pytest.raises(DiffESError, match="hours: expected at least"):
        within_hours(tiny(), 0.1, 0.7, asked)


def test_too_few_hours_are_refused_with_what_it_takes(slow: None) -> None:
    with pytest.raises(DiffESError, match=r"hours: expected at least 0\.\d+, what the smallest search takes .*0.001"):
        within_hours(tiny(), 0.001, 0.7, settings())


def test_a_resumed_search_keeps_its_sizes(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    compress(tiny(), 0.7, settings(), Run(journal=journal))
    again = within_hours(tiny(), 1e-9, 0.7, Settings(), Run(journal=journal, resume=True))
    assert {name: getattr(again, name) for name in SIZES} == {name: getattr(settings(), name) for name in SIZES}


# ------------------------------------------------------------------------------------------------------------- table


@pytest.fixture(scope="module", params=[Ridge(), None])
def blocks(request: pytest.FixtureRequest) -> Study:
    method = Method(Width(8, dense=()), granularity=Granularity.BLOCK, compensation=request.param)
    return prepare(tiny(layers=3, heads=8), settings(method=method))


class Scored:
    """Scores by a function of stage, unit and level, of candidates that change one of them."""

    def __init__(self, ready: Study, error: Callable[[int, int, int], float]) -> None:
        self.ready, self._error, self.asked = ready, error, list[tuple[int, int, int]]()

    def scores(
        self, candidates: Sequence[Candidate], scale: Scale, done: Callable[[], None]
    ) -> Mapping[Candidate, float]:
        found = dict[Candidate, float]()
        for candidate in candidates:
            ((stage, unit),) = (
                (s, u) for s, row in enumerate(candidate.levels) for u, level in enumerate(row) if level
            )
            self.asked.append((stage, unit, candidate.levels[stage][unit]))
            found[candidate] = -10 * math.log10(self._error(*self.asked[-1]))
        return found


def test_what_compensation_leaves_times_gains_is_found_from_one_level_of_each_unit(blocks: Study) -> None:
    gains = np.random.default_rng(0).lognormal(size=(2, 10))

    def error(stage: int, unit: int, level: int) -> float:
        return 1e-3 * blocks.left(stage, unit, level) * gains[0, stage] * gains[1, unit]

    scored: Any = Scored(blocks, error)
    table = sensitivity(blocks, scored, QUIET)
    stages, units = len(blocks.stages), len(blocks.units)
    assert sorted(scored.asked) == [(stage, unit, 4) for stage in range(stages) for unit in range(units)]
    for stage in range(stages):
        for unit in range(units):
            expected = [0.0, *(error(stage, unit, level) for level in range(1, 8))]
            assert table.levels[stage][unit] == pytest.approx(expected, rel=1e-6)


def test_the_noise_of_an_entry_is_halved_and_what_all_say_stays(blocks: Study) -> None:
    def error(stage: int, unit: int, level: int) -> float:
        return 1e-3 * blocks.left(stage, unit, level) * (4.0 if (stage, unit) == (1, 1) else 1.0)

    stages, units = len(blocks.stages), len(blocks.units)
    exact = 1e-3 * blocks.left(1, 1, 4)
    scored: Any = Scored(blocks, error)
    found = sensitivity(blocks, scored, QUIET).levels[1][1][4]
    regressed = 1 / stages + 1 / units - 1 / (stages * units)  # the part of an outlier that the gains take up
    assert found == pytest.approx(exact * 4 ** ((1 + regressed) / 2), rel=1e-6)


def test_more_levels_are_measured_where_asked() -> None:
    method = Method(Width(8, dense=()), granularity=Granularity.BLOCK)
    ready = prepare(tiny(), settings(method=method, sensitivity_levels=3))
    scored: Any = Scored(ready, lambda stage, unit, level: 1e-4 * level**2)
    table = sensitivity(ready, scored, QUIET)
    assert {level for _, _, level in scored.asked} == {1, 4, 7}
    for row in table.levels:
        for unit in row:
            assert unit == pytest.approx([1e-4 * level**2 for level in range(8)])


# ------------------------------------------------------------------------------------------------------------ course


def test_what_is_left_of_a_course_follows_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    course = Course({"first": [10.0], "second": [30.0]})
    assert course.reached("first", 0.0) == pytest.approx(40)
    now = 10.0
    assert course.reached("second", 0.0) == pytest.approx(30), "as foretold"
    now = 20.0
    assert 30 < course.reached("second", 0.0) < 60, "the first task took twice as long"
    now = 50.0
    assert course.reached("second", 0.5) == pytest.approx(15 * 54 / 29)  # 4 s of doubt
    assert course.reached("unheard of", 0.5) == 0, "all that was foretold is done"


def test_of_a_course_the_first_units_of_a_task_may_take_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    course = Course({"falling": [6.0, 9.0, 10.0], "nothing": [0.0]})
    for done, now in enumerate([0.0, 6.0, 9.0, 10.0]):
        assert course.spent("falling", done / 3) == pytest.approx(now / 10)
        assert course.reached("falling", done / 3) == pytest.approx(10 - now), "as foretold"
    assert course.spent("falling", 0.5) == pytest.approx(0.75)
    assert course.spent("nothing", 0.5) == course.spent("unheard of", 0.5) == 0.5


def test_units_that_were_to_take_no_time_and_do_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = Reporter()
    reporter.follow(Course({"work": [0.0, 5.0]}))
    with reporter.task("work", 2) as task:
        now = 20.0
        task.advance()
    assert "work: 1/2, 20 s, 20 s to go" in capsys.readouterr().err
