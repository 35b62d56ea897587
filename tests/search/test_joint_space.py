"""Laws of the space in which stages also choose their steps: levels, steps, or both may vary."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diff_es.search import Candidate, Evolution, Space, StageChoice, Steps, evolutionary_search

laws = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def joint_spaces(draw: st.DrawFn) -> Space:
    """Small ones, of which a third vary steps alone."""
    stages, units = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]))
    most = draw(st.sampled_from([1, 3, 3]))
    row = st.lists(st.integers(0, 9), min_size=1, max_size=most).map(tuple)
    costs = tuple(tuple(draw(row) for _ in range(units)) for _ in range(stages))
    first = draw(st.sets(st.integers(1, 4), min_size=1, max_size=3))
    later = [draw(st.sets(st.integers(0, 3), min_size=1, max_size=3)) for _ in range(stages - 1)]
    counts = tuple(tuple(sorted(n)) for n in (first, *later))
    own = tuple(draw(st.sampled_from(n)) for n in counts)
    fixed = tuple(draw(st.lists(st.integers(0, 3), min_size=stages, max_size=stages)))
    stagewise = list(zip(counts, fixed, costs, strict=True))
    assume(all(alone + sum(map(min, stage)) > 0 for _, alone, stage in stagewise))
    least = sum(n[0] * (alone + sum(map(min, stage))) for n, alone, stage in stagewise)
    dearest = sum(n[-1] * (alone + sum(map(max, stage))) for n, alone, stage in stagewise)
    return Space(costs, draw(st.integers(least, dearest + 2)), Steps(counts, own), fixed)


def of(*stages: tuple[int, int]) -> Candidate:
    """From the steps and the level of each stage, where there is one unit."""
    return Candidate.of([[level] for _, level in stages], [n for n, _ in stages])


def taken(space: Space) -> Steps:
    assert space.steps is not None
    return space.steps


def every(space: Space) -> list[Candidate]:
    """All schedules whatever they cost; what changes nothing is at level 0."""
    choices = [
        {
            StageChoice(n, tuple(level if n and any(stage[u]) else 0 for u, level in enumerate(levels)))
            for n in counts
            for levels in product(*(range(len(row)) for row in stage))
        }
        for counts, stage in zip(taken(space).counts, space.costs, strict=True)
    ]
    return sorted(map(Candidate, product(*map(sorted, choices))))


@laws
@given(joint_spaces(), st.data())
def test_steps_that_are_given_and_levels_that_are_dense(space: Space, data: st.DataObject) -> None:
    counts = tuple(data.draw(st.sampled_from(n)) for n in taken(space).counts)
    fits = [candidate for candidate in every(space) if total(space, candidate) <= space.budget]
    these = [candidate for candidate in fits if candidate.steps == counts]
    assert space.pays(counts) == bool(these)
    if these:
        assert list(filter(space.taking(counts).feasible, every(space.taking(counts)))) == these
    dense = [candidate for candidate in fits if not any(map(any, candidate.levels))]
    assert (space.dense() is None) == (not dense)
    if (narrow := space.dense()) is not None:
        steps = [Candidate.of([[0]] * space.stages, candidate.steps) for candidate in dense]
        assert list(filter(narrow.feasible, every(narrow))) == steps
        assert list(map(narrow.cost, steps)) == list(map(space.cost, dense))


def total(space: Space, candidate: Candidate) -> int:
    return sum(
        n * ((space.fixed[s] if space.fixed else 0) + sum(space.costs[s][u][level] for u, level in enumerate(levels)))
        for s, (n, levels) in enumerate(zip(candidate.steps, candidate.levels, strict=True))
    )


def covers(space: Space, a: Candidate, b: Candidate) -> bool:
    """Whether b does at least what a does, everywhere: as many steps, and no cheaper level where a takes steps."""
    more = all(n >= m for m, n in zip(a.steps, b.steps, strict=True))
    return more and all(
        space.costs[s][u][y.levels[u]] >= space.costs[s][u][level]
        for s, (x, y) in enumerate(zip(a.stages, b.stages, strict=True))
        for u, level in enumerate(x.levels if x.steps else ())
    )


def maximal(space: Space) -> list[Candidate]:
    """Those within the budget that nothing dearer within it covers."""
    fits = [candidate for candidate in every(space) if total(space, candidate) <= space.budget]
    return [
        a for a in fits if not any(total(space, b) > total(space, a) and covers(space, a, b) for b in reversed(fits))
    ]


@laws
@given(joint_spaces(), seeds, st.data())
def test_repair_gives_a_maximal_candidate_and_leaves_one_alone(space: Space, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    best = set(maximal(space))
    repaired = space.repair(data.draw(st.sampled_from(every(space))), rng)
    assert repaired in best
    for candidate in sorted(best)[:40]:
        assert space.repair(candidate, rng) == candidate


@laws
@given(joint_spaces(), seeds, st.integers(0, 3))
def test_starts_and_random_candidates_are_maximal(space: Space, seed: int, gap: int) -> None:
    rng = np.random.default_rng(seed)
    best, starts = set(maximal(space)), space.starts(rng, gap)
    assert len(set(starts)) == len(starts)
    assert {*starts, *(space.random(rng) for _ in range(5))} <= best
    assert total(space, space.cheapest()) == min(total(space, candidate) for candidate in every(space))
    assert space.cheapest() in every(space)


@laws
@given(joint_spaces(), seeds, st.integers(1, 6))
def test_a_mutation_is_maximal_and_moves_wherever_it_can(space: Space, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    best = maximal(space)
    for parent in best[:40]:
        child = space.mutate(parent, rng, most)
        assert child in best
        assert (child != parent) == (len(best) > 1)


@laws
@given(joint_spaces(), seeds, st.integers(1, 6), st.data())
def test_moves_from_any_feasible_parent_are_maximal(space: Space, seed: int, most: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    feasible = st.sampled_from(list(filter(space.feasible, every(space))))
    a, b = data.draw(feasible), data.draw(feasible)
    assert {space.mutate(a, rng, most), space.crossover(a, b, rng)} <= set(maximal(space))


def rises(space: Space, candidate: Candidate) -> list[Candidate]:
    """The schedules that differ in one number alone, by the least that makes it dearer; see `covers`."""
    found = list[Candidate]()
    for s, (n, row) in enumerate(zip(candidate.steps, candidate.levels, strict=True)):
        costs, counts = space.costs[s], taken(space).counts[s]
        more = [m for m in counts if m > n][:1]
        cheapest = tuple(min(range(len(c)), key=lambda level, c=c: c[level]) for c in costs)  # type: ignore[misc]
        choices = [StageChoice(m, row if n else cheapest) for m in more]
        for u, level in enumerate(row if n else ()):
            dearer = [k for k, cost in enumerate(costs[u]) if cost > costs[u][level]]
            least = sorted(dearer, key=lambda k: costs[u][k])[:1]
            choices += [StageChoice(n, (*row[:u], k, *row[u + 1 :])) for k in least]
        found += [Candidate((*candidate.stages[:s], new, *candidate.stages[s + 1 :])) for new in choices]
    return found


@laws
@given(st.integers(3, 8), st.integers(1, 4), st.integers(1, 30), st.floats(0, 1), seeds)
def test_moves_in_larger_spaces_keep_the_budget_and_leave_no_room(
    stages: int, units: int, most: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 9, (stages, units, 5)).tolist()
    costs = tuple(tuple(tuple(row[: rng.integers(1, 6)]) for row in stage) for stage in table)
    counts = ((1, 2, 4), *(tuple(range(int(rng.integers(0, 2)), 5)) for _ in range(stages - 1)))
    steps = Steps(counts, tuple(n[-1] for n in counts))
    ends = [
        sum(n[k] * (2 + sum(map(end, stage))) for n, stage in zip(counts, costs, strict=True))
        for k, end in ((0, min), (-1, max))
    ]
    space = Space(costs, round(ends[0] + share * (ends[1] - ends[0])), steps, (2,) * stages)
    parents = [space.random(rng) for _ in range(4)]
    for k in range(20):
        a, b = parents[k % 4], parents[(k + 1) % 4]
        children = [space.mutate(a, rng, most), space.crossover(a, b, rng)]
        for child in children:
            assert total(space, child) <= space.budget
            assert all(total(space, dearer) > space.budget for dearer in rises(space, child))
        parents[k % 4] = children[k % 2]


@laws
@given(joint_spaces(), st.integers(0, 5))
def test_cost_and_feasible_agree_with_the_table(space: Space, less: int) -> None:
    smaller = space.within(max(total(space, space.cheapest()), space.budget - less))
    for candidate in every(space)[:50]:
        assert space.cost(candidate) == total(space, candidate)
        assert smaller.feasible(candidate) == (total(space, candidate) <= smaller.budget)


def reachable(space: Space, start: Candidate, draws: int) -> set[Candidate]:
    reached, frontier = set[Candidate](), {start}
    rng = np.random.default_rng(0)
    while frontier:
        reached |= frontier
        frontier = {space.mutate(parent, rng, 1) for parent in frontier for _ in range(draws)} - reached
    return reached


@settings(max_examples=8, deadline=None)
@given(joint_spaces(), seeds)
def test_moves_reach_every_maximal_candidate(space: Space, seed: int) -> None:
    best = maximal(space)
    assume(len(best) < 30)
    assert reachable(space, space.random(np.random.default_rng(seed)), 150) == set(best)


def test_a_step_moves_between_stages_and_within_a_stage_it_pays_for_levels() -> None:
    row = (8, 7, 6, 5, 4)
    space = Space(((row,),) * 4, 64, Steps(((1, 2, 3, 4), *((0, 1, 2, 3, 4),) * 3), (2, 2, 2, 2)))
    parent = of((2, 0), (2, 0), (2, 0), (2, 0))
    rng = np.random.default_rng(0)
    children = {space.mutate(parent, rng, 1) for _ in range(300)}
    assert of((3, 0), (1, 0), (2, 0), (2, 0)) in children  # a step for a step
    assert of((4, 4), (2, 0), (2, 0), (2, 0)) not in children  # that takes two
    assert of((3, 3), (2, 0), (2, 0), (2, 0)) in children  # a step for deeper levels
    assert of((2, 0), (2, 0), (2, 0), (1, 0)) not in children
    back = {space.mutate(of((3, 3), (2, 0), (2, 0), (2, 0)), rng, 1) for _ in range(300)}
    assert parent in back


def test_a_stage_left_out_is_at_level_0_and_comes_back_at_its_cheapest() -> None:
    space = Space((((4, 2),), ((4, 2),)), 4, Steps(((1,), (0, 1)), (1, 1)))
    rng = np.random.default_rng(0)
    assert space.repair(of((1, 0), (0, 1)), rng) == of((1, 0), (0, 0))
    assert {space.random(rng) for _ in range(50)} == {of((1, 0), (0, 0)), of((1, 1), (1, 1))}
    assert space.mutate(of((1, 0), (0, 0)), rng, 1) == of((1, 1), (1, 1))


def test_fewer_steps_are_spread_evenly_or_with_most_of_them_early() -> None:
    space = Space((((10, 5),),) * 5, 50, Steps(((1, 2, 3, 4), *((0, 1, 2, 3, 4),) * 4), (2,) * 5))
    assert space.thinned() == of(*[(1, 0)] * 5)
    assert space.thinned(level=1) == of(*[(2, 1)] * 5)
    assert space.thinned(early=True) == of((2, 0), (1, 0), (1, 0), (1, 0), (0, 0))
    assert space.uniform() == of(*[(2, 1)] * 5)


@laws
@given(joint_spaces())
def test_the_number_of_genes_is_that_of_choices(space: Space) -> None:
    columns = list(zip(*(candidate.numbers() for candidate in every(space)), strict=True))
    assert space.genes == sum(len(set(column)) > 1 for column in columns) or any(
        counts == (0,) for counts in taken(space).counts
    )


@pytest.mark.parametrize(
    ("counts", "own", "message"),
    [
        ((), (), "expected counts and own steps of each stage"),
        (((1,), (0,)), (1,), "expected counts and own steps of each stage"),
        (((0, 1),), (1,), r"counts\[0\]: expected rising numbers, 1 or more, found \(0, 1\)"),
        (((1,), ()), (1, 0), r"counts\[1\]: expected rising numbers, 0 or more, found \(\)"),
        (((1,), (2, 1)), (1, 1), r"counts\[1\]: expected rising numbers"),
        (((1,), (0, 2)), (1, 1), r"own\[1\]: expected one of its counts \(0, 2\), found 1"),
    ],
)
def test_malformed_steps_are_refused(counts: tuple[tuple[int, ...], ...], own: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Steps(counts, own)


def test_helpful_errors() -> None:
    steps = Steps(((1, 2), (0, 1)), (2, 1))
    for fixed in ((-1, 0), (0,)):
        with pytest.raises(ValueError, match=r"Space.fixed: expected 2 costs of 0 or more, found \("):
            Space((((4, 5),),) * 2, 9, steps, fixed)
    with pytest.raises(ValueError, match=r"costs\[1\]: expected a step to cost something at any level, found 0"):
        Space((((2,),), ((2, 0),)), 9, steps)
    with pytest.raises(ValueError, match="steps: expected 1 stages, found 2"):
        Space((((2,),),), 9, steps)
    with pytest.raises(ValueError, match="at most 3, but the cheapest schedule costs 4; raise the budget to 4"):
        Space((((4, 5),),) * 2, 3, steps)
    space = Space((((4, 5),),) * 2, 9, steps)
    with pytest.raises(ValueError, match=r"2 stages x the steps and 1 units, found 2 .*, and steps \[None, None\]"):
        space.cost(Candidate.of([[0], [0]]))
    with pytest.raises(ValueError, match=r"a number of steps out of \(0, 1\) in stage 1, found 2"):
        space.cost(of((1, 0), (2, 0)))
    with pytest.raises(ValueError, match=r"a level from 0 to 1 at \[1\]\[0\], found 2"):
        space.cost(of((1, 0), (1, 2)))
    with pytest.raises(ValueError, match="thinned: expected a space whose stages choose their steps"):
        Space((((4, 5),),) * 2, 9).thinned()


@pytest.mark.parametrize("seed", range(2))
def test_the_search_finds_the_optimum_that_brute_force_finds(seed: int) -> None:
    steps = Steps(((1, 2, 3), *((0, 1, 2),) * 3), (2,) * 4)
    space = Space((((7, 5, 2), (3, 1)),) * 4, 40, steps, (1,) * 4)

    def fitness(candidate: Candidate) -> float:
        stages = zip((9, 4, 2, 1), candidate.steps, candidate.levels, strict=True)
        alone = [w * (4 / (n + 1) + n * (a**2 / 6 + b / 5)) for w, n, (a, b) in stages]
        return -sum(alone) - abs(alone[0] - alone[1]) / 4

    search = evolutionary_search(space, Evolution(generations=30, seed=seed))
    while asked := search.ask():
        search.tell({candidate: fitness(candidate) for candidate in asked})
    fits = [candidate for candidate in every(space) if total(space, candidate) <= space.budget]
    assert len(fits) > 5000
    assert search.best.score == max(map(fitness, fits))
