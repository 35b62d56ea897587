"""Laws of whose turn it is: every piece is answered once, whoever dies, and nobody waits while there is work."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from diff_es.execution.pieces import TRIES, Pieces


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(count=st.integers(1, 30), workers=st.integers(1, 6), seed=st.integers(0, 10_000), chance=st.floats(0, 0.3))
def test_every_piece_is_answered_once_whoever_dies(count: int, workers: int, seed: int, chance: float) -> None:
    """Workers end in any order, and die by chance, though at no piece too often; a simulation with a clock."""
    rng, clock = random.Random(seed), Clock()
    pieces, running, first, deaths = Pieces(count, clock), list[int](), list[int](), [0] * count
    while not pieces.all_done:
        while len(running) < workers and (index := pieces.next()) is not None:
            running.append(index)
        assert running  # while something is left to do, somebody does it
        clock.now += rng.expovariate(1 / 5)
        index = running.pop(rng.randrange(len(running)))
        if deaths[index] < TRIES - 1 and rng.random() < chance:
            deaths[index] += 1
            assert not pieces.failed(index)
        elif pieces.done(index):
            first.append(index)
    assert sorted(first) == list(range(count))


def test_what_was_lost_comes_first_and_is_given_up_after_three_times() -> None:
    pieces = Pieces(3)
    assert [pieces.next(), pieces.next()] == [0, 1]
    for _ in range(TRIES - 1):
        assert not pieces.failed(1)
        assert pieces.next() == 1
    assert pieces.failed(1)
    assert pieces.next() == 1  # who asks decides what to do


def test_who_takes_long_gets_company_once_and_the_first_answer_counts() -> None:
    clock = Clock()
    pieces = Pieces(4, clock)
    assert [pieces.next() for _ in range(4)] == [0, 1, 2, 3]
    assert pieces.next() is None  # nothing is known of how long one takes
    clock.now = 4
    assert pieces.done(0)
    assert pieces.done(1)
    clock.now = 11.9
    assert pieces.next() is None
    clock.now = 12.1  # more than three times as long as most
    assert [pieces.next(), pieces.next(), pieces.next()] == [2, 3, None]
    assert pieces.done(3)
    assert not pieces.done(3)
    assert pieces.done(2)
    assert pieces.next() is None  # of what is done nobody is asked again, however long the slow one still takes
    assert not pieces.failed(2, for_good=True)  # that one, which nobody needs any more
    assert pieces.all_done


def test_what_no_other_try_would_mend_is_given_up_at_once() -> None:
    pieces = Pieces(2)
    assert [pieces.next(), pieces.next()] == [0, 1]
    assert pieces.done(0)
    assert pieces.failed(1, for_good=True)
