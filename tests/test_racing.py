"""Laws of racing: who goes on is a function of the scores, and scores of different rungs never meet."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_es.search import Evolution, Search, Space, evolutionary_search, promoted, race, racing, tier
from diff_es.utils.limits import Levels

SPACE = Space((((7, 5, 2),),) * 8, 34)
told = st.dictionaries(st.tuples(st.tuples(st.integers(0, 99))), st.integers(-4, 4).map(float), min_size=1)


@given(told, st.floats(0.01, 1), st.randoms(use_true_random=False))
def test_the_best_share_goes_on_in_whatever_order_scores_came(
    scores: dict[Levels, float], share: float, chance: object
) -> None:
    kept = promoted(scores, share)
    assert len(kept) == ceil(share * len(scores) - 1e-9)
    assert list(kept) == [levels for levels in scores if levels in kept]
    key = {levels: (-score, levels) for levels, score in scores.items()}
    assert max(key[levels] for levels in kept) <= min((key[x] for x in scores if x not in kept), default=(9.0, ()))
    assert set(promoted(dict(reversed(scores.items())), share)) == set(kept)


@given(told)
def test_peers_compete_with_each_other_alone(scores: dict[Levels, float]) -> None:
    kept = promoted(scores, 0.5, lambda levels: levels[0][0] % 3)
    for group in range(3):
        alone = {levels: score for levels, score in scores.items() if levels[0][0] % 3 == group}
        assert {levels for levels in kept if levels in alone} == set(promoted(alone, 0.5) if alone else ())


def test_what_failed_does_not_go_on() -> None:
    a, b, c = ((0,),), ((1,),), ((2,),)
    assert promoted({a: -inf, b: 1.0, c: -inf}, 1.0) == (b,)
    assert race([a, c], lambda _, left: dict.fromkeys(left, -inf), [0.5]) == {a: -inf, c: -inf}


def test_only_the_last_rung_counts_and_nobody_is_judged_after_dropping_out() -> None:
    cohort = [((k,),) for k in range(8)]
    calls: list[tuple[int, int]] = []

    def judge(rung: int, left: tuple[Levels, ...]) -> Mapping[Levels, float]:
        calls.append((rung, len(left)))
        return {levels: 100.0 - rung * 50 + levels[0][0] for levels in left}

    assert race(cohort, judge, (0.5, 0.5)) == {((k,),): (k if k > 5 else -inf) for k in range(8)}
    assert calls == [(0, 8), (1, 4), (2, 2)]
    assert race(cohort, judge, ()) == {((k,),): 100.0 + k for k in range(8)}


def raced(search: Search, calls: list[int]) -> Search:
    """A noisy first rung and an exact second one."""

    def judge(rung: int, left: tuple[Levels, ...]) -> Mapping[Levels, float]:
        calls.append(len(left))
        return {levels: exact(levels) + (0.3 * (hash(levels) % 7) if rung == 0 else 0.0) for levels in left}

    while asked := search.ask():
        search.tell(race(asked, judge, (0.5,), tier(SPACE.cost, (20, 34))))
    return search


def exact(levels: Levels) -> float:
    return -float(sum(level**2 * (s + 1) for s, (level,) in enumerate(levels)))


def test_a_raced_search_ranks_full_scores_alone_and_repeats() -> None:
    calls: list[int] = []
    search = raced(evolutionary_search(SPACE, Evolution(population=16, generations=12)), calls)
    finished = [candidate for candidate in search.ranking() if candidate.score > -inf]
    assert all(score == exact(levels) for levels, score in finished)
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
