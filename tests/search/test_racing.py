"""Laws of racing: who goes on is a function of the scores, and scores of different rungs never meet."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_es.search import (
    Candidate,
    Evolution,
    Search,
    Space,
    evolutionary_search,
    promoted,
    race,
    racing,
    tier,
)

SPACE = Space((((7, 5, 2),),) * 8, 34)


def of(level: int) -> Candidate:
    """One stage of one unit."""
    return Candidate.of([[level]])


told = st.dictionaries(st.integers(0, 99).map(of), st.integers(-4, 4).map(float), min_size=1)


@given(told, st.floats(0.01, 1), st.randoms(use_true_random=False))
def test_the_best_share_goes_on_in_whatever_order_scores_came(
    scores: dict[Candidate, float], share: float, chance: object
) -> None:
    kept = promoted(scores, share)
    assert len(kept) == ceil(share * len(scores) - 1e-9)
    assert list(kept) == [candidate for candidate in scores if candidate in kept]
    key = {candidate: (-score, candidate) for candidate, score in scores.items()}
    out = [key[candidate] for candidate in scores if candidate not in kept]
    assert not out or max(key[candidate] for candidate in kept) <= min(out)
    assert set(promoted(dict(reversed(scores.items())), share)) == set(kept)


@given(told)
def test_peers_compete_with_each_other_alone(scores: dict[Candidate, float]) -> None:
    kept = promoted(scores, 0.5, lambda one: one.levels[0][0] % 3)
    for group in range(3):
        alone = {one: score for one, score in scores.items() if one.levels[0][0] % 3 == group}
        assert {one for one in kept if one in alone} == set(promoted(alone, 0.5) if alone else ())


def test_what_failed_does_not_go_on() -> None:
    a, b, c = map(of, range(3))
    assert promoted({a: -inf, b: 1.0, c: -inf}, 1.0) == (b,)
    assert race([a, c], lambda _, left: dict.fromkeys(left, -inf), [0.5]) == {a: -inf, c: -inf}


def test_only_the_last_rung_counts_and_nobody_is_judged_after_dropping_out() -> None:
    cohort = [of(k) for k in range(8)]
    calls: list[tuple[int, int]] = []

    def judge(rung: int, left: tuple[Candidate, ...]) -> Mapping[Candidate, float]:
        calls.append((rung, len(left)))
        return {one: 100.0 - rung * 50 + one.levels[0][0] for one in left}

    assert race(cohort, judge, (0.5, 0.5)) == {of(k): (k if k > 5 else -inf) for k in range(8)}
    assert calls == [(0, 8), (1, 4), (2, 2)]
    assert race(cohort, judge, ()) == {of(k): 100.0 + k for k in range(8)}


def raced(search: Search, calls: list[int]) -> Search:
    """A noisy first rung and an exact second one."""

    def judge(rung: int, left: tuple[Candidate, ...]) -> Mapping[Candidate, float]:
        calls.append(len(left))
        return {one: exact(one) + (0.3 * (hash(one.levels) % 7) if rung == 0 else 0.0) for one in left}

    while asked := search.ask():
        search.tell(race(asked, judge, (0.5,), tier(SPACE.cost, (20, 34))))
    return search


def exact(candidate: Candidate) -> float:
    return -float(sum(level**2 * (s + 1) for s, (level,) in enumerate(candidate.levels)))


def test_a_raced_search_ranks_full_scores_alone_and_repeats() -> None:
    calls: list[int] = []
    search = raced(evolutionary_search(SPACE, Evolution(population=16, generations=12)), calls)
    finished = [scored for scored in search.ranking() if scored.score > -inf]
    assert all(score == exact(candidate) for candidate, score in finished)
    assert len(finished) == sum(calls[1::2]) <= sum(calls[::2]) / 2 + len(calls)
    assert raced(evolutionary_search(SPACE, Evolution(population=16, generations=12)), []).ranking() == search.ranking()
    best = [generation.best for generation in search.history]
    assert best == sorted(best)
    assert all(generation.mean > -inf for generation in search.history)


def test_helpful_errors() -> None:
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="promoted: expected a share above 0, at most 1, found"):
            promoted({}, share)


def test_the_example_runs() -> None:
    results = doctest.testmod(racing)
    assert results.attempted > 0
    assert results.failed == 0
