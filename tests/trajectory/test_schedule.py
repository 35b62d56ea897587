"""Laws of stages and schedules: every step lies in exactly one stage, none is empty, and they carry over."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es.compression.manifest import ScheduleJson
from diff_es.trajectory.stages import Schedule, Stages
from diff_es.utils.errors import DiffESError

laws = settings(max_examples=60, deadline=None)
descending = st.lists(st.integers(0, 999), min_size=1, max_size=40, unique=True).map(lambda t: sorted(t, reverse=True))


def centred(steps: int) -> list[float]:
    """The middles of ``steps`` equal parts of 1000 timesteps, from noise to image."""
    return [1000 * (steps - i - 0.5) / steps for i in range(steps)]


@laws
@given(descending, st.data())
def test_stage_s_holds_the_steps_from_floor_st_over_s(timesteps: list[int], data: st.DataObject) -> None:
    T = len(timesteps)
    S = data.draw(st.integers(1, T))
    stages = Stages.split(timesteps, S)
    held = [[i for i, t in enumerate(timesteps) if stages.index(t) == s] for s in range(S)]
    assert len(stages) == S
    assert held == [list(range(s * T // S, (s + 1) * T // S)) for s in range(S)]
    assert all(held)
    assert stages.steps(timesteps) == tuple(map(len, held))


@laws
@given(descending, st.data())
def test_a_stage_covers_from_its_upper_boundary_to_above_its_lower_one(
    timesteps: list[int], data: st.DataObject
) -> None:
    stages = Stages.split(timesteps, data.draw(st.integers(1, len(timesteps))))
    edges = [float("inf"), *stages.boundaries, float("-inf")]
    for t in [*range(-1, 1001, 50), *timesteps, *stages.boundaries]:
        inside = [s for s in range(len(stages)) if edges[s] >= t > edges[s + 1]]
        assert inside == [stages.index(t)]


def test_boundaries_lie_halfway_between_the_steps_of_neighbouring_stages() -> None:
    assert Stages.split([900, 700, 500, 300, 100], 2).boundaries == (600,)  # floor(5/2) = 2 steps, then 3
    assert Stages.split([900, 700, 500, 300, 100], 3).boundaries == (800, 400)  # 1, 2, 2
    assert Stages.split([900, 700], 1).boundaries == ()


@laws
@given(st.integers(1, 60), st.data())
def test_a_split_carries_over_to_other_step_counts(T: int, data: st.DataObject) -> None:
    stages = Stages.split(centred(T), data.draw(st.integers(1, T)))
    times = data.draw(st.integers(1, 5))
    assert stages.steps(centred(T * times)) == tuple(n * times for n in stages.steps(centred(T)))
    other = centred(data.draw(st.integers(1, 120)))
    indices = [stages.index(t) for t in other]
    assert indices == sorted(indices)
    assert sum(stages.steps(other)) == len(other)
    for mine, planned in zip(stages.steps(other), stages.steps(centred(T)), strict=True):
        assert abs(mine - planned * len(other) / T) < 1 + 1e-6


@pytest.mark.parametrize("count", [-1, 0, 6])
def test_more_stages_than_steps_or_none_are_refused(count: int) -> None:
    with pytest.raises(DiffESError, match="empty stage saves nothing") as caught:
        Stages.split([900, 700, 500, 300, 100], count)
    assert str(caught.value) == (
        f"stages: expected a number from 1 to the 5 timesteps of one trajectory, found {count}. "
        "Ask for at most 5 stages, or for more sampler steps: an empty stage saves nothing."
    )
    error = caught.value
    assert (error.where, error.found) == ("stages", str(count))


@pytest.mark.parametrize("boundaries", [(1.0, 2.0), (5.0, 5.0), (9.0, 3.0, 4.0)])
def test_boundaries_that_do_not_descend_are_refused(boundaries: tuple[float, ...]) -> None:
    with pytest.raises(DiffESError, match="expected strictly descending timesteps"):
        Stages(boundaries)


@pytest.mark.parametrize(("timesteps", "count"), [([100, 300, 500], 3), ([100, 500], 2), ([900, 900, 500], 3)])
def test_timesteps_that_a_split_cannot_tell_apart_are_refused(timesteps: list[int], count: int) -> None:
    with pytest.raises(DiffESError):
        Stages.split(timesteps, count)


def test_a_second_order_sampler_never_leaves_a_stage_empty() -> None:
    # it calls the denoiser twice at one timestep: a boundary there would leave a stage empty
    assert Stages.split([900, 700, 700, 500], 2).steps([900, 700, 700, 500]) == (1, 3)
    assert Stages.split([900, 700, 700, 500, 500, 300], 4).steps([900, 700, 700, 500, 500, 300]) == (1, 2, 2, 1)


@laws
@given(descending, st.integers(1, 4), st.data())
def test_json_round_trip(timesteps: list[int], units: int, data: st.DataObject) -> None:
    stages = Stages.split(timesteps, data.draw(st.integers(1, len(timesteps))))
    row = st.lists(st.integers(0, 9), min_size=units, max_size=units).map(tuple)
    levels = data.draw(st.lists(row, min_size=len(stages), max_size=len(stages)).map(tuple))
    schedule = Schedule(stages, levels)
    again = ScheduleJson.model_validate_json(json.dumps(schedule.to_json())).made()
    assert again == schedule
    assert hash(again) == hash(schedule)


@pytest.mark.parametrize(
    "levels",
    [
        (),
        ((0,),),
        ((0,), (1,), (2,)),
        ((0,), (1, 2)),
        ((0,), (-1,)),
        ((0, 0), (0, -3)),
        ((), ()),
    ],
)
def test_malformed_levels_are_refused(levels: Any) -> None:
    with pytest.raises(DiffESError, match="one row of levels from 0 up for each of 2 stages") as caught:
        Schedule(Stages((500.0,)), levels)
    assert str(levels) in str(caught.value)
