"""Laws of searches on workers, on a real Ray cluster of two nodes: they find what one process does, whoever dies."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.helpers.on_ray import Standing
from tests.helpers.own import WORK, fixed, own
from tests.helpers.tiny import LITTLE, assert_same_plans, joint, tiny

from diff_es import Compressed, Levers, Method, Run, Settings, Width, compress
from diff_es.execution import OnRay
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.pruning.granularity import Granularity
from diff_es.utils.errors import DiffESError

NODE = {"num_cpus": 4, "node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}


def assert_same(some: Compressed, other: Compressed) -> None:
    assert (some.schedule, some.timesteps, some.report) == (other.schedule, other.timesteps, other.report)
    assert some.corrections == other.corrections
    assert_same_plans(some.plans, other.plans)


@pytest.mark.parametrize("levers", list(Levers))
def test_any_number_of_workers_finds_what_one_process_does(
    levers: Levers, hired: Callable[[int], Standing], tmp_path: Path
) -> None:
    wanted = joint(levers=levers)
    alone = compress(tiny(), 0.6, wanted, run=Run(journal=tmp_path / "alone"))
    for count in (1, 2, 4):
        run = Run(executor=hired(count), journal=tmp_path / str(count))
        assert_same(compress(tiny(), 0.6, wanted, run=run), alone)
        lines = [(tmp_path / name).read_bytes().splitlines() for name in ("alone", str(count))]
        assert sorted(lines[0]) == sorted(lines[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "levers", "count"),
    [
        ("bundled", Levers.BOTH, 2),
        ("bundled-unet", Levers.PRUNE, 1),
    ],
)
def test_workers_open_the_bundled_models_by_themselves(
    model: str, levers: Levers, count: int, hired: Callable[[int], Standing]
) -> None:
    settings = Settings(sampling=Sampling(4, 2.0, batch=2), stages=2, levers=levers, reference_multiple=2)
    settings = replace(settings, **LITTLE, first_rung=0, timestep_generations=1, front=())
    method = Method(Width(3, dense=()), granularity=Granularity.WHOLE)  # no timing: its findings may differ
    settings = replace(settings, method=method)
    alone, together = (
        compress(load(model, device="cpu"), 0.6, settings, run=run) for run in (Run(), Run(executor=hired(count)))
    )
    assert_same(together, alone)


@pytest.mark.slow
def test_a_loop_of_the_users_own_goes_to_workers(hired: Callable[[int], Standing]) -> None:
    work = replace(WORK, levers=Levers.PRUNE)
    alone, together = (compress(own(), 0.6, work, run=run) for run in (Run(), Run(executor=hired(2))))
    assert_same(together, alone)


def test_a_loop_that_nobody_can_have_a_copy_of_is_refused(hired: Callable[[int], Standing]) -> None:
    lock = threading.Lock()

    def sample(denoiser: Any, noise: Any) -> Any:
        with lock:
            return fixed(denoiser, noise)

    sampler = own(sample=sample, times=None, corrects=False)
    with pytest.raises(DiffESError, match=r"workers: expected what other processes can have a copy of.*lock"):
        compress(sampler, 0.6, replace(WORK, levers=Levers.PRUNE), run=Run(executor=hired(2)))


@pytest.mark.slow
def test_ten_workers_and_two_nodes_may_die_in_one_search(cluster: Any, tmp_path: Path) -> None:
    wanted = joint(population=12, generations=5, timestep_generations=5)
    alone = compress(tiny(), 0.6, wanted, run=Run(journal=tmp_path / "alone"))
    ended, deaths = threading.Event(), list[str]()
    doomed = [cluster.add_node(**NODE) for _ in range(2)]
    killer = threading.Thread(target=kill, args=(cluster, doomed, tmp_path / "together", ended, deaths))
    killer.start()
    try:
        run = Run(executor=OnRay(workers=3), journal=tmp_path / "together")
        together = compress(tiny(), 0.6, wanted, run=run)
    finally:
        ended.set()
        killer.join()
    assert deaths.count("worker") >= 10
    assert deaths.count("node") == 2
    assert_same(together, alone)
    lines = [(tmp_path / name).read_bytes().splitlines() for name in ("alone", "together")]
    assert sorted(lines[0]) == sorted(lines[1])  # none lost, none twice


def kill(cluster: Any, doomed: list[Any], journal: Path, ended: threading.Event, deaths: list[str]) -> None:
    """Ten workers and two nodes, one after the other: after some more scores were written down, so many that the piece
    which failed is among them and fails no third time, or, of every third, soon, whoever started last."""
    rng, wanted = random.Random(0), (["worker"] * 5 + ["node"]) * 2
    lines, due = 2, math.inf  # a death comes with the first of the two
    while wanted and not ended.is_set():
        time.sleep(0.02)
        written = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if written < lines and time.monotonic() < due:
            continue
        if wanted[0] == "node":
            cluster.remove_node(doomed.pop(), allow_graceful=False)
        elif alive := working():
            (max(alive, key=psutil.Process.create_time) if due < math.inf else rng.choice(alive)).kill()
        else:
            continue
        deaths.append(wanted.pop(0))
        soon = len(wanted) % 3 == 0
        lines, due = written + rng.randint(4, 7), time.monotonic() + rng.uniform(0, 2) if soon else math.inf


def working() -> list[psutil.Process]:
    """The workers of this process's nodes that are at a piece, or wait for one."""
    found = list[psutil.Process]()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [one] if one.name().startswith("ray::Worker") else []
    return found
