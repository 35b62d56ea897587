"""Laws of timing: intervals hold what they say, and a machine that is busy with something else is noticed."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from tests.helpers.tiny import CALL, tiny

from diff_es.scoring.pairs import Pair, Spent, interval
from diff_es.scoring.timing import Runner, _timing, measure
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)


def pair(dense: float, own: float, processors: float = 2.0) -> Pair:
    return Spent(dense, dense / 2, processors * dense), Spent(own, own / 2, processors * own)


@pytest.mark.parametrize("count", range(1, 16))
def test_an_interval_holds_the_median_in_nine_of_ten_cases_and_is_no_wider_than_that_takes(count: int) -> None:
    found = interval([float(i) for i in range(count)])
    chances = [math.comb(count, below) / 2**count for below in range(count + 1)]  # so many lie below the median
    if found is None:
        assert chances[0] + chances[-1] > 0.1
        return
    low, high = map(int, found)
    assert low + high == count - 1
    assert sum(chances[low + 1 : high + 1]) >= 0.9
    assert sum(chances[low + 2 : high]) < 0.9


def test_an_interval_holds_the_truth_of_samples_as_often() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        low, high = interval(sorted(rng.lognormal(0, 1, 7))) or (2.0, 0.0)
        inside += low <= 1 <= high  # the median of what was drawn from
    assert inside >= 430


def test_a_quiet_machine_leaves_no_doubt() -> None:
    found = _timing([pair(100 + i, 50 + i / 2) for i in range(5)], 0.5)
    assert (found.speedup, found.denoiser_speedup, found.pairs, found.doubt) == (2.0, 2.0, 5, "")
    assert (found.speedup_low, found.speedup_high) == (2.0, 2.0)
    assert (found.pipeline_ms, found.denoiser_ms) == (51.0, 25.5)


def test_runs_that_had_fewer_processors_do_not_count() -> None:
    disturbed = [pair(800, 50, 2.0) for _ in range(3)]
    disturbed = [(replace(dense, processor=dense.pipeline), own) for dense, own in disturbed]
    found = _timing([*disturbed, *(pair(100, 50) for _ in range(5))], 0.5)
    assert (found.speedup, found.pairs, found.doubt) == (2.0, 5, "")
    few = _timing([*disturbed, *(pair(100, 50) for _ in range(4))], 0.5)
    assert few.doubt.startswith(
        "in 3 of 7 pairs of runs something else used the processors; it lies anywhere from 2.00"
    )


def test_what_cannot_be_is_doubted_and_says_why() -> None:
    assert _timing([pair(795, 50)] * 5, 0.5).doubt == "15.90 is more than its MACs can give, 2.00"
    assert _timing([pair(109, 50)] * 5, 0.5).doubt == "", "a tenth above is within what small things do"
    assert _timing([pair(100, 50)] * 4, 0.5).doubt == "4 pairs of runs are too few"
    wide = _timing([pair(100, own) for own in (40, 45, 50, 55, 60)], 0.5)
    assert (wide.speedup, wide.doubt) == (2.0, "it lies anywhere from 1.67 to 2.50")
    assert _timing([pair(100, 10)] * 5, None).doubt == "", "of unknown MACs nothing is too much"


def test_every_runner_runs_once_a_round_next_to_the_dense_one() -> None:
    pipe = tiny()
    runners = [Runner(name, CALL) for name in ("dense", "a", "b", "c")]
    found = measure(pipe, runners, 2, QUIET)
    assert [one.pairs for one in found[1:]] == [2, 2, 2]
    assert found[0].pairs in (5, 6), "a run of its own for each, but those that had fewer processors"
    assert found[0].speedup == found[0].denoiser_speedup == 1
    assert all(one.doubt == "2 pairs of runs are too few" for one in found[1:])


BURN = "import sys, time\nwhile time.monotonic() < float(sys.argv[1]): sum(range(1000))"


@contextmanager
def burning(seconds: float) -> Iterator[None]:
    """Something else that uses all processors for a while."""
    command = [sys.executable, "-S", "-c", BURN, str(time.monotonic() + seconds)]
    others = [subprocess.Popen(command) for _ in range(4)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


@pytest.mark.slow
def test_a_busy_machine_gives_the_speed_up_or_says_that_it_cannot() -> None:
    pipe = tiny(layers=4, heads=8, head_size=16)
    dense = replace(CALL, num_inference_steps=16, batch=8)
    runners = [Runner("dense", dense), Runner("half", replace(dense, num_inference_steps=8))]
    with burning(1.5):
        _, found = measure(pipe, runners, 5, QUIET, [1.0, 0.5])
    assert found.doubt or found.speedup == pytest.approx(2, rel=0.2)  # less than 2: the decoder runs as before
