"""Laws of the final: luck on a few noises makes no winner, and what is reported chose nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from shutil import copytree
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.helpers.mutations import put_right
from tests.helpers.tiny import CALL, joint, tiny
from tests.helpers.tiny import settings as small

from diff_es import Compressed, compress, load
from diff_es.compression.evaluator import Evaluator
from diff_es.compression.evolve import evolve
from diff_es.compression.final import Finalist, select
from diff_es.compression.reopening import found_again
from diff_es.compression.search_loop import widened
from diff_es.compression.sensitivity import sensitivity
from diff_es.compression.settings import Levers
from diff_es.compression.starts import by_rule
from diff_es.compression.store import MANIFEST
from diff_es.compression.study import PARTS, Study, prepare
from diff_es.pipelines.probes import make_probes
from diff_es.scoring.fitness import Comparison, Fitness
from diff_es.scoring.journal import Journal
from diff_es.search import Candidate, choose, error_of, random_search
from diff_es.utils.progress import Reporter
from diff_es.utils.seeds import derive_seed

FORMAT_3 = Path(__file__).parents[1] / "data" / "format3" / "levels"
QUIET = Reporter(quiet=True)

# ------------------------------------------------------------------------------------------------------- the choice


class Noises:
    """Scores of finalists by quality: what a noise makes of all of them, and what it makes of each."""

    def __init__(self, quality: list[float], spread: float, seed: int, size: int = 8) -> None:
        rng = np.random.default_rng(seed)
        common = 5 * rng.standard_normal(PARTS * size)
        self.scores = np.add.outer(quality, common) + spread * rng.standard_normal((len(quality), PARTS * size))
        self.size, self.asked = size, 0

    def __call__(self, left: Sequence[int], part: int) -> list[list[float]]:
        self.asked += len(left)
        return [self.scores[one, part * self.size : (part + 1) * self.size].tolist() for one in left]


def test_of_two_that_few_noises_do_not_tell_apart_more_noises_choose_the_better_one() -> None:
    fooled = right = 0
    for seed in range(200):
        noises = Noises([20.0, 20.8], spread=1.0, seed=seed)
        first = noises.scores[:, :8].mean(1)
        if first[0] > first[1]:  # the worse one is ahead
            fooled += 1
            winner, _ = choose([0, 1], noises, PARTS)
            right += winner.candidate == 1
            assert len(winner.scores) > 8
    assert fooled >= 8
    assert right >= 0.75 * fooled


def test_who_is_clearly_worse_runs_on_no_more_noises() -> None:
    noises = Noises([20.0, 10.0, 0.0], spread=1.0, seed=0)
    assert [(one.candidate, len(one.scores)) for one in choose([2, 0, 1], noises, PARTS)] == [(0, 8), (1, 8), (2, 8)]
    assert noises.asked == 3


def test_many_that_are_close_do_not_all_run_on_everything() -> None:
    noises = Noises([20.0] * 16, spread=1.0, seed=0)
    found = choose(range(16), noises, PARTS)
    assert [len(one.scores) for one in found] == [32] * 4 + [16] * 4 + [8] * 8
    assert noises.asked == 16 + 8 + 4 + 4


def test_the_same_result_twice_is_chosen_once_and_by_order() -> None:
    noises = Noises([20.0, 19.0, 5.0], spread=0.0, seed=0)
    noises.scores[1] = noises.scores[0]
    for order in ([0, 1, 2], [1, 2, 0]):
        first, *_ = found = choose(order, noises, PARTS)
        assert first.candidate == order[0]
        assert {len(one.scores) for one in found} == {8}


FINITE = st.floats(-20, 120, width=32)


@given(st.data(), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
@examples(derandomize=True, max_examples=150, deadline=None)
def test_no_finalist_is_above_the_winner_on_the_noises_that_both_ran_on(
    data: st.DataObject, finalists: int, size: int, parts: int
) -> None:
    score = st.one_of(FINITE, st.just(-np.inf), st.sampled_from([10.0, 11.0]))
    rows = st.lists(score, min_size=size * parts, max_size=size * parts)
    table = [data.draw(rows) for _ in range(finalists)]

    def judge(left: Sequence[int], part: int) -> list[list[float]]:
        return [table[one][part * size : (part + 1) * size] for one in left]

    found = choose(range(finalists), judge, parts)
    assert sorted(one.candidate for one in found) == list(range(finalists))
    winner = found[0]
    for earlier, later in pairwise(found):
        assert len(earlier.scores) >= len(later.scores)
    for one in found:
        assert list(one.scores) == table[one.candidate][: len(one.scores)]
        assert len(one.scores) % size == 0
        shared = len(one.scores)
        assert fmean(winner.scores[:shared]) >= fmean(one.scores)
        if shared < len(winner.scores):  # it dropped out below all that went on
            assert all(fmean(other.scores[:shared]) >= fmean(one.scores) for other in found[: found.index(one)])


def test_the_error_of_a_mean() -> None:
    assert error_of([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5 / 2)
    assert error_of([1.0]) == error_of([1.0, -np.inf]) == np.inf


# -------------------------------------------------------------------------------------------------------- the noises


@pytest.fixture(scope="module")
def study() -> Study:
    return prepare(tiny(), joint(levers=Levers.STEPS, held_out_noises=3))


def test_parts_follow_each_other_and_what_is_reported_comes_after_them(study: Study) -> None:
    """With the corrections of a result, where those that choose have the search's own."""
    probes = make_probes(study.pipe, 3 * (PARTS + 1), 0, "held-out")
    for part in (0, 1, PARTS):
        own = (study.pipe, study.library, study.stages, probes[3 * part : 3 * part + 3], CALL, study.settings.measure)
        taught = study.corrections if part == PARTS else study.searching.corrections
        alone = Fitness(*own, Comparison(study.path, study.reference, corrections=4, fitted=taught))
        assert (study.fresh if part == PARTS else study.part(part)).each(study.own) == alone.each(study.own)
    assert fmean(study.fresh.each(study.own)) == pytest.approx(study.fresh(study.own), rel=1e-12)
    assert study.fresh.each(study.own, corrected=False) != study.fresh.each(study.own)


def test_corrections_of_a_result_are_fitted_on_more_noises_than_those_of_a_race(study: Study) -> None:
    few = prepare(study.pipe, replace(study.settings, search_noises=2, first_rung=1))
    assert few.settings.sampling.batch > few.settings.rung_noises == 1
    assert any(few.corrections(few.own))
    assert few.corrections(few.own) != few.searching.corrections(few.own)


def test_what_is_reported_was_measured_on_noises_that_chose_nothing(study: Study) -> None:
    evaluator = Evaluator(study, Journal(None, {}, resume=False))
    field = [Finalist(candidate, corrected) for candidate in by_rule(study, 0.7) for corrected in (True, False)]
    found = select(study, 0.7, [*field, *field], evaluator, (), 7, QUIET)
    assert sorted((one.candidate, one.corrected) for one in found.finalists) == sorted(field)
    fresh = study.fresh.each(found.candidate, corrected=found.corrected)
    assert (found.held_out, found.error) == (fmean(fresh), error_of(fresh))
    for one in found.finalists:
        parts = [study.part(part).each(one.candidate, corrected=one.corrected) for part in range(one.noises // 3)]
        assert one.held_out == fmean(chain(*parts))
        assert one.score == (
            evaluator.score(one.candidate) if one.corrected else evaluator.scorer.fitness.plain(one.candidate)
        )
    again = select(study, 0.7, field, Evaluator(study, Journal(None, {}, resume=False)), (), 7, QUIET)
    assert again == found


# ----------------------------------------------------------------------------------------------------- the finalists


@pytest.mark.parametrize("levers", [Levers.STEPS, Levers.BOTH])
def test_what_users_do_and_what_chance_finds_are_in_the_final(levers: Levers) -> None:
    few = {"population": 4, "survivors": 1, "generations": 1, "timestep_generations": 1}
    ready = prepare(tiny(), joint(levers=levers, first_rung=0, search_noises=2, **few))
    evaluator = Evaluator(ready, Journal(None, {}, resume=False))
    found = evolve(ready, (0.6, 1.0), evaluator, sensitivity(ready, evaluator, QUIET), QUIET)
    for budget, one in zip((0.6, 1.0), found, strict=True):
        assert one.limit == budget
        finalists = [(other.candidate, other.corrected) for other in one.finalists]
        rules = by_rule(ready, budget)
        fitness = evaluator.scorer.fitness
        assert (max(rules, key=fitness), True) in finalists
        assert (max(rules, key=fitness.plain), False) in finalists
        assert ((ready.own, False) in finalists) == (budget == 1.0)
        narrow = ready.costs.space(budget).dense()
        assert narrow is not None
        seed, count = derive_seed(0, "random search") % 2**32, 4 if levers is Levers.STEPS else 2
        drawn = random_search(narrow, count, seed=seed).ask()
        best = max((widened(ready, candidate) for candidate in drawn), key=evaluator.score)
        assert (best, True) in finalists
    smaller, larger = found
    assert (smaller.candidate, smaller.corrected) in [(one.candidate, one.corrected) for one in larger.finalists]


@cache
def judged_on(noises: int) -> Compressed:
    """A result whose finalists were judged on so many noises a part."""
    return compress(tiny(), 0.6, small(search_noises=2, population=4, generations=1, held_out_noises=noises))


def test_uniform_pruning_is_in_the_final() -> None:
    fast = judged_on(2)
    shapes = [{level for (level,) in one.candidate.levels} for one in found_again(fast.report).finalists]
    assert any(max(shape) - min(shape) <= 1 for shape in shapes)  # what is left of the budget is spent


def test_a_result_says_on_how_many_noises_it_was_chosen_and_how_sure_its_score_is() -> None:
    fast, one = judged_on(2), judged_on(1)
    assert {one.noises for one in fast.report.finalists} <= {2 * part for part in range(1, PARTS + 1)}
    assert fast.report.held_out_error is not None
    assert fast.report.held_out_error > 0
    assert found_again(fast.report).finalists == fast.report.finalists
    assert one.report.held_out_error is None
    assert found_again(one.report).error == np.inf


def test_a_result_of_an_earlier_version_was_chosen_on_the_held_out_noises(tmp_path: Path) -> None:
    """Format 3 has had finalists that do not say on how many noises they ran."""
    folder = tmp_path / "fast"
    copytree(FORMAT_3, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    about = manifest["points"][0]["about"]
    del about["held_out_error"]
    about["finalists"] = [entry[:3] for entry in about["finalists"]]
    put_right(folder, manifest, random.Random(0))
    fast = load(folder)
    found = found_again(fast.report)
    assert {one.noises for one in found.finalists} == {fast.report.settings.held_out_noises}
    assert (found.candidate, found.corrected) == (Candidate.of(fast.schedule.levels), True)
