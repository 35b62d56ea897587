"""Laws of where steps stand: the user's own to the bit, each stage by its own number, and the published placements."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_es import DiffESError
from diff_es.trajectory.stages import Stages
from diff_es.trajectory.timesteps import Trajectory, exponential, karras, placed, quadratic, step_choices, trailing

LINEAR = tuple((((1 - a) / a) ** 0.5) for a in np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)).tolist())
FLOW = tuple(t / 1000 for t in range(1001))
TRAILING = Trajectory(tuple(999.0 - 50 * k for k in range(20)), -1.0, True, LINEAR)
LEADING = Trajectory(tuple(951.0 - 50 * k for k in range(20)), 0.0, True, LINEAR)
LINSPACE = Trajectory(tuple(np.linspace(999, 0, 20, dtype=np.float32).tolist()), -1.0, False, LINEAR)
SHIFTED = Trajectory(
    tuple(np.float32(3000 * s / (1 + 2 * s)).item() for s in np.linspace(1, 0.05, 20)), 0.0, False, FLOW
)
PATHS = {"trailing": TRAILING, "leading": LEADING, "linspace": LINSPACE, "flow matching": SHIFTED}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def room(path: Trajectory, stages: Stages, stage: int) -> int:
    firsts = [path.timesteps[0], *stages.boundaries, path.end]
    return int(firsts[stage] - firsts[stage + 1])


@every_path
@pytest.mark.parametrize("count", [1, 3, 7, 10, 20])
def test_the_users_numbers_are_the_users_timesteps(path, count):
    stages = path.stages(count)
    assert placed(path, stages, stages.steps(path.timesteps)) == path.timesteps


@every_path
@pytest.mark.parametrize("count", [1, 3, 10, 20])
def test_stages_hold_the_users_timesteps_as_ever(path, count):
    split = Stages.split(path.timesteps, count)
    assert [path.stages(count).index(t) for t in path.timesteps] == [split.index(t) for t in path.timesteps]


@every_path
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_stage_gets_its_number_by_itself(path, data):
    stages = path.stages(data.draw(st.integers(1, 20)))
    rooms = [min(room(path, stages, s), 30) for s in range(len(stages))]
    counts, others = ([data.draw(st.integers(int(s == 0), most)) for s, most in enumerate(rooms)] for _ in "ab")
    timesteps = placed(path, stages, counts)
    assert timesteps[0] == path.timesteps[0]
    assert all(a > b for a, b in pairwise([*timesteps, path.end]))
    assert stages.steps(timesteps) == tuple(counts)
    assert all(t == np.float32(t) and t >= 0 for t in timesteps)
    assert not path.whole or all(t.is_integer() for t in timesteps)
    mixed = [counts[0], *others[1:]]
    assert placed(path, stages, mixed)[: counts[0]] == timesteps[: counts[0]]
    last = slice(len(timesteps) - counts[-1], None)
    assert placed(path, stages, [*others[:-1], counts[-1]])[-counts[-1] or 10**6 :] == timesteps[last]


def test_an_example_by_hand():
    timesteps = placed(TRAILING, TRAILING.stages(10), [4, 2, 1, 1, 0, 1, 0, 1, 0, 3])
    assert timesteps == (999, 974, 949, 924, 899, 849, 799, 699, 499, 299, 99, 66, 32)
    halves = placed(TRAILING, TRAILING.stages(10), [8, *[0] * 9])
    assert halves == (999, 987, 974, 962, 949, 937, 924, 912)  # 986.5 and the like go up


def test_twice_the_users_numbers_are_twice_as_many_trailing():
    assert placed(TRAILING, TRAILING.stages(10), [4] * 10) == trailing(TRAILING, 40) == tuple(range(999, 0, -25))


@every_path
@pytest.mark.parametrize("place", [trailing, quadratic, karras, exponential])
@pytest.mark.parametrize("steps", [1, 2, 20, 200])
def test_placements_run_from_the_users_first_timestep_downwards(path, place, steps):
    timesteps = place(path, steps)
    assert len(timesteps) == steps
    assert timesteps[0] == path.timesteps[0]
    assert all(a > b for a, b in pairwise([*timesteps, path.end]))
    assert min(timesteps) >= 0
    assert not path.whole or all(t.is_integer() for t in timesteps)


def test_placements_are_even_in_their_own_measure():
    measures = {
        trailing: lambda t: t,
        quadratic: lambda t: (t + 1) ** 0.5,
        karras: lambda t: LINSPACE.sigma(t) ** (1 / 7),
        exponential: lambda t: np.log(LINSPACE.sigma(t)),
    }
    for place, measure in measures.items():
        gaps = np.diff(measure(np.array(place(LINSPACE, 12))))
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3, err_msg=place.__name__)


def test_even_the_least_noise_is_reached():
    assert karras(TRAILING, 10)[-1] == exponential(TRAILING, 10)[-1] == 0
    assert karras(LEADING, 10)[-1] == 1


@pytest.mark.parametrize("place", [trailing, quadratic, karras, exponential])
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_too_few_and_too_many_are_refused(place, steps):
    assert place(TRAILING, 1000) == tuple(range(999, -1, -1))
    with pytest.raises(DiffESError, match="steps: expected a number from 1 to 1000"):
        place(TRAILING, steps)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([0, 2, 2, 2], "at least 1"),
        ([5, -1, 5, 5], "from 0 up"),
        ([5, 5, 5], "expected 4 numbers"),
        ([251, 5, 5, 5], "stage 0: expected at most 250 timesteps from 999 to above 749, found 251"),
        ([5, 5, 5, 251], "stage 3: expected at most 250 timesteps from 249 to above -1, found 251"),
    ],
)
def test_numbers_that_cannot_be_placed_are_refused(counts, message):
    with pytest.raises(DiffESError, match=message):
        placed(TRAILING, TRAILING.stages(4), counts)


def test_a_stage_may_be_filled_to_the_last_timestep():
    assert placed(TRAILING, TRAILING.stages(4), [250] * 4) == tuple(range(999, -1, -1))
    assert placed(LEADING, LEADING.stages(4), [1, 1, 1, 201])[-1] == 1


def test_fractions_stop_at_timestep_zero():
    assert placed(LINSPACE, LINSPACE.stages(20), [1] * 20)[-1] == 0
    with pytest.raises(DiffESError, match="stage 19: expected at most 1 timesteps"):
        placed(LINSPACE, LINSPACE.stages(20), [1] * 19 + [2])


@settings(max_examples=300)
@given(
    ends=st.sampled_from([-1.0, 0.0]),
    whole=st.booleans(),
    least=st.sampled_from([0.0, 1.0, 1.07, 3.5, 40.0]),
    steps=st.integers(2, 30),
    power=st.sampled_from([1.0, 3.0, 7.0]),
    data=st.data(),
)
def test_every_choice_of_every_stage_can_be_placed(
    ends: float, whole: bool, least: float, steps: int, power: float, data: st.DataObject
) -> None:
    """Evenly, or dense towards the image, as Karras' are, whose last stages begin close to the end."""
    own = [least + (999 - least) * (left / (steps - 1)) ** power for left in reversed(range(steps))]
    own = [float(t) for t in dict.fromkeys(round(t) if whole else float(np.float32(t)) for t in own)]
    path = Trajectory(tuple(own), ends, whole, ())
    stages = path.stages(data.draw(st.integers(1, min(10, len(own)))))
    choices = step_choices(stages.steps(path.timesteps), 4, path.room(stages))
    counts = [data.draw(st.sampled_from(numbers)) for numbers in choices]
    assert stages.steps(placed(path, stages, counts)) == tuple(counts)


def test_boundaries_between_timesteps_are_refused_where_steps_would_cross_them():
    between = Stages.split(TRAILING.timesteps, 10)
    assert placed(TRAILING, between, [2, 1] * 5) == placed(TRAILING, TRAILING.stages(10), [2, 1] * 5)
    with pytest.raises(DiffESError, match="stage 0: expected a boundary at 899"):
        placed(TRAILING, between, [4] * 10)


def test_stages_of_another_trajectory_are_refused():
    with pytest.raises(DiffESError, match="user timesteps in each"):
        placed(TRAILING, Stages((998.0, 997.0, 500.0)), [1, 1, 1, 1])


@pytest.mark.parametrize("timesteps", [(), (3.0, 3.0), (1.0, 2.0)])
def test_a_trajectory_descends(timesteps):
    with pytest.raises(DiffESError, match="strictly descending"):
        Trajectory(timesteps, -1.0, True, LINEAR)
