"""Laws of a crew on a real Ray cluster of two nodes: who dies makes no difference, and what cannot be done says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers import on_ray
from tests.helpers.on_ray import Standing, work

from diff_es.execution import Crew, OnRay, Work
from diff_es.execution.cluster import _initialised
from diff_es.execution.ray_crew import RayCrew
from diff_es.execution.ray_worker import Arithmetic
from diff_es.utils.errors import DiffESError
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)


@pytest.fixture
def crew(hired: Callable[[int], Standing]) -> RayCrew:
    return hired(2).workers


def answered(crew: Crew, asked: Work[Any, Any], pieces: Sequence[Any]) -> list[Any]:
    """Answers in the order of the pieces; each came once."""
    found = list(crew.answers(asked, pieces))
    assert len(found) == len(pieces)
    assert sorted(piece for piece, _ in found) == sorted(pieces)
    return [answer for _, answer in sorted(found)]


def test_every_piece_is_answered_of_several_works_and_nothing_runs_on(crew: RayCrew) -> None:
    before = crew.figures
    by_seven, by_one = work(on_ray.adding, 7), work(on_ray.adding, 1)
    assert answered(crew, by_seven, range(9)) == [piece + 7 for piece in range(9)]
    assert answered(crew, by_one, range(3)) == [1, 2, 3]
    assert answered(crew, by_seven, [2]) == [9]
    assert answered(crew, by_seven, []) == []
    told = crew.figures
    assert told.pieces - before.pieces == 13
    assert 0 < told.busy < told.seconds * 2


@pytest.mark.parametrize("there", [on_ray.dying_once, on_ray.failing_once])
def test_what_fails_by_chance_is_done_again(crew: RayCrew, there: Callable[..., Any], tmp_path: Path) -> None:
    before = crew.figures.deaths
    assert answered(crew, work(there, str(tmp_path)), range(6)) == list(range(6))
    assert crew.figures.deaths - before == (3 if there is on_ray.dying_once else 0)


def test_who_is_slow_is_not_waited_for(crew: RayCrew, tmp_path: Path) -> None:
    """It sleeps for ten minutes, and works on when the answer of somebody else is there."""
    asked = work(on_ray.slow_once, str(tmp_path))
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    assert answered(crew, asked, range(6)) == list(range(6))
    assert answered(crew, asked, range(6)) == list(range(6))  # by the others


def test_an_answer_that_comes_late_is_not_taken_for_that_of_another_call(crew: RayCrew, tmp_path: Path) -> None:
    asked = work(on_ray.late_once, str(tmp_path))
    assert answered(crew, asked, range(6)) == list(range(6))
    assert answered(crew, asked, range(100, 103)) == list(range(100, 103))  # while the first answer comes


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (work(on_ray.dying), r"workers: expected a piece that is done in 3 tries, found one that fails: .*--resume"),
        (work(on_ray.failing, KeyError("ours")), r"found one that fails: KeyError: 'ours'.*--resume"),
        (work(on_ray.failing, on_ray.REFUSED), r"^here: expected room, found none. Make some.$"),
        (work(on_ray.failing, MemoryError("full")), r"memory for a piece, found none, at \d.* GB .*full.*Take less."),
    ],
)
def test_what_cannot_be_done_ends_the_run_and_says_why(crew: RayCrew, asked: Work[Any, Any], told: str) -> None:
    found = list[Any]()
    with pytest.raises(DiffESError, match=told) as refused:
        found.extend(crew.answers(asked, range(8)))
    assert len(found) >= 4  # what was finished is there
    if "KeyError" in told:
        assert "in answer\n    raise error" in refused.value.__notes__[0]  # the worker's own traceback


def test_workers_that_nobody_has_room_for_are_not_waited_for_for_ever(cluster: Any) -> None:
    with OnRay(workers=1, gpus_per_worker=64, patience=2).crew(QUIET) as crew:
        asked = Work(here=lambda piece: piece, shared=lambda: on_ray.Given(0, accelerated=True), there=on_ray.adding)
        with pytest.raises(DiffESError, match=r"expected one that is ready, found none after 2 seconds.*ray status"):
            list(crew.answers(asked, [1]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has what the worker looks for")
def test_a_worker_that_cannot_say_what_it_is_says_why(cluster: Any) -> None:
    """Of a node with a GPU, but a PyTorch that knows of none."""
    gone = cluster.add_node(num_cpus=1, num_gpus=1, node_ip_address="127.0.0.1", object_store_memory=100_000_000)
    asked = Work(here=lambda piece: piece, shared=lambda: on_ray.Given(0, accelerated=True), there=on_ray.adding)
    told = r"expected processes that start, found one that does not: .*CUDA"
    with OnRay(workers=1).crew(QUIET) as crew, pytest.raises(DiffESError, match=told):
        list(crew.answers(asked, [1]))
    cluster.remove_node(gone)


def test_workers_compute_as_the_process_that_asks(cluster: Any) -> None:
    before = Arithmetic.own()
    torch.set_float32_matmul_precision("medium")
    try:
        with OnRay(workers=1).crew(QUIET) as crew:
            (told,) = answered(crew, work(on_ray.arithmetic), [0])
        assert told == Arithmetic.own() != before
    finally:
        before.take()


def test_ray_may_be_used_beside_the_main_thread() -> None:
    """Where no signal's handler can be set."""
    with ThreadPoolExecutor() as pool:
        ray = SimpleNamespace(shutdown=lambda: None)
        assert pool.submit(lambda: _initialised(ray, lambda: None).__enter__()).result() is None


def test_a_node_may_go(cluster: Any) -> None:
    gone = cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1", object_store_memory=100_000_000)
    with OnRay(workers=6).crew(QUIET) as crew:
        found = []
        for one in crew.answers(work(on_ray.napping), range(60)):
            found.append(one)
            if len(found) == 12:
                cluster.remove_node(gone, allow_graceful=False)
    assert sorted(found) == [(piece, piece) for piece in range(60)]
