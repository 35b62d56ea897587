"""Laws of searches on workers, on a real Ray cluster of two nodes: they find what one process does, whoever dies."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.helpers.on_ray import Standing, two_nodes
from tests.helpers.tiny import LITTLE, assert_same_plans, joint, tiny
from tests.pipelines.test_own_sampler import WORK, own

from diff_es import Compressed, Levers, Run, Settings, compress
from diff_es.execution import Crew, OnRay
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import load
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)
NODE = {"num_cpus": 4, "node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes(workers=4) as found:
        yield found


@pytest.fixture(scope="module")
def crews(cluster: Any) -> Iterator[dict[int, Crew]]:
    """Of one, two and four workers."""
    with OnRay(1).crew(QUIET) as one, OnRay(2).crew(QUIET) as two, OnRay(4).crew(QUIET) as four:
        yield {1: one, 2: two, 4: four}


def assert_same(some: Compressed, other: Compressed) -> None:
    assert (some.schedule, some.timesteps, some.report) == (other.schedule, other.timesteps, other.report)
    assert some.corrections == other.corrections
    assert_same_plans(some.plans, other.plans)


@pytest.mark.parametrize("levers", list(Levers))
def test_any_number_of_workers_finds_what_one_process_does(
    levers: Levers, crews: dict[int, Crew], tmp_path: Path
) -> None:
    wanted = joint(levers=levers)
    alone = compress(tiny(), 0.6, wanted, run=Run(journal=tmp_path / "alone"))
    for count, crew in crews.items():
        run = Run(executor=Standing(crew), journal=tmp_path / str(count))
        assert_same(compress(tiny(), 0.6, wanted, run=run), alone)
        lines = [(tmp_path / name).read_bytes().splitlines() for name in ("alone", str(count))]
        assert sorted(lines[0]) == sorted(lines[1])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bundled", "bundled-unet"])
def test_workers_open_the_bundled_models_by_themselves(model: str, crews: dict[int, Crew]) -> None:
    settings = Settings(sampling=Sampling(4, 2.0, batch=2), stages=2, levers=Levers.BOTH, reference_multiple=2)
    settings = replace(settings, **LITTLE, first_rung=0, timestep_generations=1, front=())
    alone, together = (
        compress(load(model, device="cpu"), 0.6, settings, run=run) for run in (Run(), Run(executor=Standing(crews[2])))
    )
    assert_same(together, alone)


@pytest.mark.slow
def test_a_loop_of_the_users_own_goes_to_workers(crews: dict[int, Crew]) -> None:
    work = replace(WORK, levers=Levers.PRUNE)
    alone, together = (compress(own(), 0.6, work, run=run) for run in (Run(), Run(executor=Standing(crews[2]))))
    assert_same(together, alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Workers waited")
def test_ten_workers_and_two_nodes_may_die_in_one_search(cluster: Any, tmp_path: Path) -> None:
    wanted = joint(population=12, generations=8, timestep_generations=8)
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
    """Ten workers and two nodes, one after the other, each after some more scores were written down."""
    rng, wanted, written = random.Random(0), (["worker"] * 5 + ["node"]) * 2, 1
    while wanted and not ended.is_set():
        time.sleep(0.02)
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if lines <= written:
            continue
        if wanted[0] == "node":
            cluster.remove_node(doomed.pop(), allow_graceful=False)
        elif alive := working():
            rng.choice(alive).kill()
        else:
            continue
        deaths.append(wanted.pop(0))
        written = lines + rng.randint(0, 3)


def working() -> list[psutil.Process]:
    """The workers of this process's nodes that are at a piece, or wait for one."""
    found = list[psutil.Process]()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [one] if one.name().startswith("ray::Worker") else []
    return found
