"""Laws of the candidate: it is ordered as its rows are, and nothing is lost on the way through JSON or numbers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_es.compression.format3 import candidate_of, rows_of
from diff_es.search import Candidate, StageChoice

levels = st.integers(0, 2)
timesteps = st.lists(st.sampled_from([999.0, 500.5, 500.0, 3.0]), unique=True).map(
    lambda found: sorted(found, reverse=True)
)


@st.composite
def alike(draw: st.DrawFn, count: int) -> list[Candidate]:
    """Candidates of one shape, out of so few values that many are equal or begin alike."""
    stages, units, steps = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    table = st.lists(st.lists(levels, min_size=units, max_size=units), min_size=stages, max_size=stages)
    counts = st.lists(st.integers(0, 2), min_size=stages, max_size=stages)
    return [
        Candidate.of(draw(table), draw(counts), draw(timesteps)) if steps else Candidate.of(draw(table))
        for _ in range(count)
    ]


one_alone = alike(1).map(lambda found: found[0])


def has_steps(candidate: Candidate) -> bool:
    return candidate.stages[0].steps is not None


@given(alike(6))
def test_candidates_are_ordered_as_their_rows_are(found: list[Candidate]) -> None:
    for a, b in product(found, repeat=2):
        assert (a < b) == (rows_of(a) < rows_of(b))
        assert (a <= b) == (rows_of(a) <= rows_of(b))
    assert list(map(rows_of, sorted(found))) == sorted(map(rows_of, found))


@given(alike(6))
def test_equal_candidates_have_equal_rows_and_one_hash(found: list[Candidate]) -> None:
    for a, b in product(found, repeat=2):
        assert (a == b) == (rows_of(a) == rows_of(b))
        assert a != b or hash(a) == hash(b)
    assert len(set(found)) == len({json.dumps(rows_of(one)) for one in found})


@given(one_alone)
def test_nothing_is_lost_on_the_way_through_json_rows_and_a_pickle(one: Candidate) -> None:
    again = (
        Candidate.from_json(json.loads(json.dumps(one.to_json()))),
        candidate_of(json.loads(json.dumps(rows_of(one))), len(one.stages), steps=has_steps(one)),
        pickle.loads(pickle.dumps(one)),
    )
    for other in again:
        assert (other, hash(other)) == (one, hash(one))
        assert repr(other) == repr(one)  # 1 and 1.0 are equal


def test_what_another_process_sends_is_found() -> None:
    """Hashes of some values differ between processes."""
    made = "Candidate.of([[0], [1]]), Candidate.of([[0], [1]], [2, 1], [999.0, 500.5, 3.0])"
    code = f"import pickle, sys; from diff_es.search import Candidate; sys.stdout.buffer.write(pickle.dumps(({made})))"
    sent = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60).stdout
    assert set(pickle.loads(sent)) == {
        Candidate.of([[0], [1]]),
        Candidate.of([[0], [1]], [2, 1], [999.0, 500.5, 3.0]),
    }


@given(one_alone)
def test_numbers_tell_all_but_timesteps(one: Candidate) -> None:
    again = Candidate.of_numbers(one.numbers(), len(one.stages), steps=has_steps(one))
    assert again == one.at(())
    assert [float(n) for row in rows_of(again) for n in row] == one.numbers()


@given(alike(2))
def test_a_changed_candidate_is_the_one_made_anew(found: list[Candidate]) -> None:
    one, other = found
    steps = one.steps if has_steps(one) else None
    assert one.at_levels(other.levels) in {Candidate.of(other.levels, steps, one.timesteps)}
    changed = one.at(other.timesteps)
    for stage, choice in enumerate(other.stages):
        changed = changed.at_stage(stage, choice)
    assert changed in {other}
    for choice in one.stages:
        for unit, level in enumerate(choice.levels):
            deeper = choice.at_level(unit, level + 1)
            assert [b - a for a, b in zip(choice.levels, deeper.levels, strict=True)].count(1) == 1
            assert deeper.at_level(unit, level) == choice
        assert StageChoice(choice.steps, ()).followed_by(choice.levels) == choice
    assert one.pruned == any(level for row in one.levels for level in row)


def test_what_cannot_be_meant_is_refused() -> None:
    one = Candidate.of([[0], [1]])
    with pytest.raises(ValueError, match=r"Candidate\.steps: expected a candidate that chooses its steps, found"):
        _ = one.steps
    for steps in ([1], [1, 1, 1]):
        with pytest.raises(ValueError, match="zip"):
            Candidate.of([[0], [1]], steps)
    with pytest.raises(ValueError, match="zip"):
        one.at_levels([[0]])
    with pytest.raises(FrozenInstanceError):
        one.timesteps = (1.0,)  # type: ignore[misc]
