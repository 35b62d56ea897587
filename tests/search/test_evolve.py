"""Laws of the search: what it finds, that it forgets nothing, and that nothing but the scores steers it."""

import doctest
import random
from collections.abc import Callable
from itertools import pairwise, product
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.search import (
    Candidate,
    Evolution,
    EvoPress,
    Search,
    Space,
    Steps,
    evolutionary_search,
    evolve,
    evopress_search,
    front_search,
    random_search,
    replay,
    usual_switches,
)

# 5 stages x 2 units x 3 levels: 3**10 schedules. The second stage is dear, the last takes no steps.
STEPS = (2, 3, 1, 1, 0)
SPACE = Space(tuple(tuple(tuple(n * c for c in row) for row in ((7, 5, 2), (4, 3, 1))) for n in STEPS), 50)
JOINT = Space(SPACE.costs, 60, Steps(((1, 2), *((0, 1, 2),) * 3, (1,)), (1,) * 5), (1,) * 5)
SMALL = Evolution(population=8, generations=6, survivors=3)
Fitness = Callable[[Candidate], float]
laws = settings(max_examples=12, deadline=None)


def fitness(candidate: Candidate) -> float:
    """Separable error with an interplay of neighbouring stages, of the steps, where they are a choice, as of levels."""
    rows = [one.levels if one.steps is None else (one.steps, *one.levels) for one in candidate.stages]
    alone = sum((9, 4, 1, 2, 3)[s] * (1 + u) * level**2 for s, row in enumerate(rows) for u, level in enumerate(row))
    jumps = sum(abs(a - b) for x, y in pairwise(rows) for a, b in zip(x, y, strict=True))
    return -float(alone + 1.5 * jumps)


def run(search: Search, judge: Fitness = fitness) -> Search:
    while asked := search.ask():
        search.tell({candidate: judge(candidate) for candidate in asked})
    return search


def searches(seed: int) -> list[Search]:
    evolution = Evolution(population=8, generations=6, survivors=3, seed=seed)
    return [
        evolutionary_search(SPACE, evolution),
        random_search(SPACE, 45, seed, batch=8),
        evolutionary_search(JOINT, evolution),
        front_search(JOINT, (40, 60, 30), evolution),
        evopress_search(JOINT, EvoPress(offspring=7, generations=6, initial=13, seed=seed)),
    ]


KINDS = range(5)
EVALUATIONS = (48, 45, 48, 48, 48)
kinds = st.sampled_from(KINDS)


def maximal(space: Space) -> set[Candidate]:
    """All candidates by brute force, where every row falls strictly or is zero."""
    stages = [list(product(*(range(len(row)) if any(row) else (0,) for row in stage))) for stage in space.costs]
    fits = set(filter(space.feasible, map(Candidate.of, product(*stages))))

    def dearer(candidate: Candidate) -> set[Candidate]:
        return {
            candidate.at_stage(s, one.at_level(u, level - 1))
            for s, one in enumerate(candidate.stages)
            for u, level in enumerate(one.levels)
            if level > 0
        }

    return {candidate for candidate in fits if not dearer(candidate) & fits}


@pytest.mark.parametrize("seed", range(6))
def test_finds_the_optimum_that_brute_force_finds(seed: int) -> None:
    candidates = maximal(SPACE)
    assert len(candidates) > 300
    search = run(evolutionary_search(SPACE, Evolution(generations=15, seed=seed)))
    assert search.best.score == max(map(fitness, candidates))
    assert {candidate for candidate, _ in search.ranking()} <= candidates


def test_beats_random_search_at_equal_evaluations() -> None:
    row = tuple(range(8, -1, -1))
    space = Space(((row,),) * 10, 40)
    weights = (23, 10.6, 5.2, 2.6, 1.0, 0.46, 0.27, 0.24, 0.33, 1.1)

    def error(candidate: Candidate) -> float:
        return -sum(w * level**2 for w, (level,) in zip(weights, candidate.levels, strict=True))

    for seed in range(3):
        evolved = run(evolutionary_search(space, Evolution(generations=15, seed=seed)), error)
        baseline = run(random_search(space, 300, seed), error)
        assert evolved.best.score > baseline.best.score
        assert len(evolved.ranking()) == len(baseline.ranking()) == 300


def changes(parent: Candidate, child: Candidate) -> int:
    """How many stages differ."""
    return sum(x != y for x, y in zip(child.stages, parent.stages, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_single_parent_stays_unless_an_offspring_is_better(seed: int) -> None:
    space = Space((((6, 5, 4, 3, 2, 1, 0),),) * 30, 90)
    search = evopress_search(space, EvoPress(offspring=4, generations=8, initial=9, switches=1, seed=seed))
    assert len(search.ask()) == 9
    while asked := search.ask():
        if search.history:
            parent = search.best.candidate
            assert [changes(parent, child) for child in asked] == [2] * 4
        search.tell({one: -float(sum(level**2 for (level,) in one.levels)) for one in asked})


def test_with_one_unit_and_unit_costs_every_candidate_has_the_same_sum_of_levels() -> None:
    space = Space((((4, 3, 2, 1, 0),),) * 6, 14)
    ranking = run(evolutionary_search(space, SMALL), lambda one: -float(one.levels[0][0])).ranking()
    assert {sum(map(sum, candidate.levels)) for candidate, _ in ranking} == {6 * 4 - 14}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_evaluated_twice_and_everything_asked_is_feasible(kind: int) -> None:
    seen: list[Candidate] = []
    space = SPACE if kind < 2 else JOINT

    def judge(candidate: Candidate) -> float:
        assert space.feasible(candidate)
        seen.append(candidate)
        return fitness(candidate)

    search = run(searches(3)[kind], judge)
    assert search.done
    assert len(seen) == len(set(seen)) == len(search.ranking()) == search.history[-1].evaluations == EVALUATIONS[kind]


@laws
@given(st.integers(0, 5), kinds, st.randoms(use_true_random=False))
def test_order_and_portions_of_telling_do_not_matter(seed: int, kind: int, chance: random.Random) -> None:
    plain, pieces = run(searches(seed)[kind]), searches(seed)[kind]
    while asked := pieces.ask():
        some = chance.sample(asked, chance.randint(1, len(asked)))
        pieces.tell({candidate: fitness(candidate) for candidate in some})
    assert pieces.ranking() == plain.ranking()
    assert pieces.history == plain.history


@laws
@given(st.integers(0, 5), kinds, st.integers(0, 48), st.randoms(use_true_random=False))
def test_resumed_equals_uninterrupted(seed: int, kind: int, life: int, chance: random.Random) -> None:
    killed, journal = searches(seed)[kind], dict[Candidate, float]()
    while len(journal) < life and (asked := killed.ask()):
        candidate = chance.choice(asked)
        journal[candidate] = fitness(candidate)
        killed.tell({candidate: journal[candidate]})

    resumed, fresh = searches(seed)[kind], list[Candidate]()
    replay(resumed, dict(chance.sample(list(journal.items()), len(journal))))
    assert resumed.ask() == killed.ask()
    run(resumed, lambda one: fresh.append(one) or fitness(one))  # type: ignore[func-returns-value]
    assert not set(fresh) & set(journal)
    plain = run(searches(seed)[kind])
    assert resumed.ranking() == plain.ranking()
    assert resumed.history == plain.history


def test_seeds_differ_and_repeat() -> None:
    for kind in KINDS:
        assert searches(1)[kind].ask() == searches(1)[kind].ask()
        assert searches(1)[kind].ask() != searches(2)[kind].ask()


@laws
@given(st.integers(0, 10), kinds, st.integers(0, 99))
def test_the_best_never_gets_worse_even_under_arbitrary_scores(seed: int, kind: int, noise: int) -> None:
    search = run(searches(seed)[kind], lambda one: float(hash((noise, *one.numbers())) % 17))
    best = [generation.best for generation in search.history]
    assert best == sorted(best)
    assert best[-1] == search.best.score


def test_history_tells_what_each_generation_did() -> None:
    search = evolutionary_search(SPACE, Evolution(population=3, generations=2))
    search.tell(dict(zip(search.ask(), (1.0, 5.0, 3.0), strict=True)))
    search.tell(dict(zip(search.ask(), (2.0, 0.0, -5.0), strict=True)))
    first, second = search.history
    assert (first.index, first.best, first.median, first.mean, first.evaluations) == (0, 5.0, 3.0, 3.0, 3)
    assert (second.index, second.best, second.median, second.mean, second.evaluations) == (1, 5.0, 0.0, -1.0, 6)
    assert search.done
    assert search.ask() == ()


def test_ties_are_ranked_in_the_order_of_candidates_whatever_arrived_first() -> None:
    search = run(searches(0)[0], lambda _: 1.0)
    ranked = [candidate for candidate, _ in search.ranking()]
    assert ranked == sorted(ranked)


def test_ends_early_when_the_space_is_exhausted() -> None:
    space = Space((((4, 2, 0),),) * 3, 6)
    for search in (evolutionary_search(space, Evolution(population=4)), random_search(space, 1000, batch=4)):
        run(search)
        assert {candidate for candidate, _ in search.ranking()} == maximal(space)
        assert len(search.history) < 10
        assert search.done


def test_a_space_of_one_candidate() -> None:
    search = run(evolutionary_search(Space((((3,),), ((0, 0),)), 3), Evolution()))
    assert [candidate for candidate, _ in search.ranking()] == [Candidate.of([[0], [0]])]
    assert len(search.history) == 1


def test_starts_come_first_once_each_and_the_rest_is_random() -> None:
    starts = [SPACE.uniform(), SPACE.cheapest(), SPACE.uniform()]
    asked = evolutionary_search(SPACE, SMALL, starts).ask()
    assert asked[:2] == (SPACE.uniform(), SPACE.cheapest())
    assert len(set(asked)) == 8
    many = list(maximal(SPACE))[:11]
    assert evolutionary_search(SPACE, SMALL, many).ask() == tuple(many)


def test_a_failed_candidate_may_be_ruled_out() -> None:
    search = evolutionary_search(SPACE, SMALL)
    first, *others = search.ask()
    search.tell({first: -inf} | {candidate: fitness(candidate) for candidate in others})
    assert search.ranking()[-1] == (first, -inf)
    scores = sorted(map(fitness, others))
    assert search.history[0].mean == pytest.approx(sum(scores) / 7)
    assert search.history[0].median == scores[3]


def test_a_generation_of_which_all_are_ruled_out_is_followed_by_random_candidates() -> None:
    search = run(evolutionary_search(SPACE, SMALL), lambda _: -inf)
    assert [(g.best, g.median, g.mean) for g in search.history] == [(-inf,) * 3] * 6
    assert len(search.ranking()) == 48


def test_what_is_ruled_out_has_no_offspring() -> None:
    """Of 30 genes a mutation leaves all but a few alone, so children tell their parents."""
    space = Space((((6, 5, 4, 3, 2, 1, 0),),) * 30, 90)
    search = evolutionary_search(space, Evolution(population=3, generations=2, crossover=0.0, switches=1))
    a, b, c = search.ask()
    search.tell({a: -inf, b: 1.0, c: -inf})
    for child in search.ask():
        assert changes(b, child) == 2


def test_more_genes_get_more_switches() -> None:
    assert [usual_switches(genes) for genes in (1, 10, 20, 50, 150)] == [3, 3, 4, 10, 30]
    assert (SPACE.genes, JOINT.genes) == (8, 12)


def test_a_refused_tell_records_nothing() -> None:
    search = evolutionary_search(SPACE, SMALL)
    first, second, *_ = asked = search.ask()
    for wrong in ({first: 1.0, second: nan}, {first: 1.0, Candidate.of([[9]]): 1.0}):
        with pytest.raises(ValueError, match=r"Search\.tell"):
            search.tell(wrong)
        assert search.ask() == asked


def test_telling_again_is_harmless_but_another_score_is_refused() -> None:
    search = evolutionary_search(SPACE, SMALL)
    told = {candidate: fitness(candidate) for candidate in search.ask()}
    search.tell(told)
    asked = search.ask()
    search.tell(told)
    assert search.ask() == asked
    candidate = next(iter(told))
    with pytest.raises(ValueError, match=r"has the score .*, found 1\.5; a candidate has one score, so fix the probes"):
        search.tell({candidate: 1.5})


def test_helpful_errors() -> None:
    search, dense = evolutionary_search(SPACE, SMALL), Candidate.of([(0, 0)] * 5)
    with pytest.raises(ValueError, match="expected at least one score, found none; ask"):
        _ = search.best
    with pytest.raises(ValueError, match=r"found NaN; find out why its evaluation failed, or tell -inf"):
        search.tell({search.ask()[0]: nan})
    with pytest.raises(ValueError, match=r"a candidate of generation 0, found .*levels=\(9,\).*; tell what ask"):
        search.tell({Candidate.of([[9]]): 1.0})
    with pytest.raises(
        ValueError, match=r"starts\[1\]: expected 5 stages x 2 units, .*; was it made for another space"
    ):
        evolutionary_search(SPACE, SMALL, [SPACE.cheapest(), Candidate.of([[0]])])
    with pytest.raises(ValueError, match=r"starts\[0\]: expected a cost of at most 50, found 77; pass it through"):
        evolutionary_search(SPACE, SMALL, [dense])
    with pytest.raises(ValueError, match=r"Evolution\.survivors: expected 1 or more, found 0"):
        Evolution(survivors=0)
    with pytest.raises(ValueError, match=r"Evolution\.crossover: expected a share from 0 to 1, found 1\.5"):
        Evolution(crossover=1.5)
    with pytest.raises(ValueError, match=r"EvoPress\.initial: expected 1 or more, found 0"):
        EvoPress(initial=0)
    with pytest.raises(ValueError, match=r"evopress_search: starts\[0\]: expected a cost of at most 50, found 77"):
        evopress_search(SPACE, EvoPress(), [dense])
    with pytest.raises(ValueError, match=r"random_search: evaluations: expected 1 or more, found 0"):
        random_search(SPACE, 0)


def test_the_example_runs() -> None:
    results = doctest.testmod(evolve)
    assert results.attempted > 0
    assert results.failed == 0
