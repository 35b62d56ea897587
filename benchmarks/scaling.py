"""What Ray costs and what workers are worth, on a local cluster of two nodes: overhead, throughput, bytes, start-up.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --results scaling.jsonl

Pieces are candidates of a search of a bundled model, pruning alone, each of them drawn at random and scored once. For
the overhead the same ones are scored in this process and by one worker, in turn. For the throughput crews of several
sizes stay open side by side, each worker pinned to a core, and score equal generations in turn; what they take is
compared with the model of ``docs/scaling.md``: recorded times of pieces, packed as ``execution.pieces`` gives them out.
Results are appended to a file; what it holds is not measured again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from common import Model, Results, ResultsFile, Rounds, Steps, options
from scaling_tables import Rows, show_overhead, show_solving, show_start, show_throughput, show_weights

from diff_es import Levers, Sampling, Settings
from diff_es.compression.evaluator import Job, Scorer
from diff_es.compression.forecast import sizes
from diff_es.compression.study import Study, study
from diff_es.compression.survey import survey
from diff_es.execution import Crew, InProcess, OnRay, Work
from diff_es.execution.cluster import OWN
from diff_es.execution.ray_crew import RayCrew
from diff_es.execution.shipping import shipped
from diff_es.pipelines.bundled import MODELS
from diff_es.pipelines.loading import load
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.budget import Budget
from diff_es.pruning.library import Library
from diff_es.pruning.solving import Solve, by_itself, by_workers
from diff_es.scoring.journal import Scale
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)
BUDGET, STORE = 0.6, 2_000_000_000


class Part(StrEnum):
    """What is measured."""

    START = "start"
    OVERHEAD = "overhead"
    THROUGHPUT = "throughput"
    LEVELS = "levels"
    BYTES = "bytes"


@dataclass(frozen=True)
class Options:
    model: Model = "bundled"
    parts: Annotated[tuple[Part, ...], "; ".join(Part)] = tuple(Part)
    shared: Annotated[tuple[str, ...], "models whose bytes are counted"] = tuple(MODELS)
    workers: Annotated[tuple[int, ...], "crews whose throughput is measured, the first of one"] = (1, 2, 4)
    noises: Annotated[tuple[int, ...], "that a piece is scored on for the overhead, which its time goes by"] = (2, 32)
    pieces: Annotated[int, "in each round, of each crew"] = 8
    rounds: Rounds = 8
    steps: Steps = 10
    results: ResultsFile = Path("scaling.jsonl")


Address: TypeAlias = Callable[[], str]
"""Of a cluster of two nodes, which is started when it is first asked for."""


class Timed(NamedTuple):
    """A score, and the seconds of it: of the clock and of the processor."""

    score: float
    wall: float
    processor: float


class Timing:
    """Scores, with its time."""

    def __init__(self, ready: Study) -> None:
        self._scorer = Scorer(ready)

    def __call__(self, job: Job) -> Timed:
        wall, processor = time.monotonic(), time.process_time()
        (score,) = self._scorer(job)
        return Timed(score, time.monotonic() - wall, time.process_time() - processor)


class Places(NamedTuple):
    """What pinned workers share: a study, and a folder in which each of them takes the next place."""

    ready: Study
    folder: Path


def pinned(places: Places) -> Timing:
    """Scores in a worker that stays on one core: the first on the first, the next on the next."""
    for place in itertools.count():
        try:
            (places.folder / f"{place}").touch(exist_ok=False)
        except FileExistsError:
            continue
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})
        return Timing(places.ready)
    raise AssertionError


class Candidates:
    """Random schedules within the budget, none of them twice."""

    def __init__(self, ready: Study) -> None:
        self._space, self._rng, self._seen = ready.costs.space(BUDGET), np.random.default_rng(0), set[Any]()

    def __call__(self, count: int) -> list[Job]:
        found = list[Job]()
        while len(found) < count:
            drawn = self._space.random(self._rng)
            if drawn not in self._seen:
                self._seen.add(drawn)
                found.append(Job(drawn, Scale.ALL))
        return found


def main(asked: Options) -> None:
    results = Results(asked.results)
    with ExitStack() as stack:
        address: Address = cache(lambda: stack.enter_context(two_nodes(max(2, sum(asked.workers)))))
        for name in (one for one in asked.parts if not results.holds({"part": one})):
            load = os.getloadavg()[0]
            results.add([{"part": name, "load": load, **one} for one in PARTS[name][0](asked, address)])
    for name in asked.parts:
        print()
        PARTS[name][1]([one for one in results.rows() if one["part"] == name])


def made(pipe: Any, asked: Options, noises: int) -> Study:
    """A study of a small search."""
    settings = Settings(
        sampling=Sampling(asked.steps, 2.0),
        levers=Levers.PRUNE,
        stages=min(5, asked.steps),
        calibration_samples=4,
        search_noises=noises,
        first_rung=0,
    )
    return study(survey(pipe, settings, QUIET, Budget.of(BUDGET)), QUIET, 1 << 30)


@contextmanager
def two_nodes(workers: int) -> Iterator[str]:
    """The address of a cluster of two nodes on this machine, which it alone can reach, with room for so many."""
    os.environ.update(OWN)  # before Ray is imported
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": -(-workers // 2), "node_ip_address": "127.0.0.1", "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def start_up(asked: Options, address: Address) -> Iterator[dict[str, Any]]:
    """Seconds of Ray's start, of a worker's until it opens what is shared, of that, and of its end."""
    pipe = load(asked.model, dtype=torch.float32)
    ready = made(pipe, asked, 2)
    work, jobs, times = scoring(ready), Candidates(ready)(2), [time.monotonic()]
    with OnRay(workers=1).crew(QUIET) as crew:
        assert isinstance(crew, RayCrew)
        times.append(time.monotonic())
        for job in jobs:
            list(crew.answers(work, [job]))
            times.append(time.monotonic())
    times.append(time.monotonic())
    ray, first, piece, end = (after - before for before, after in itertools.pairwise(times))
    opened = crew.figures.busy - piece
    yield {"ray": ray, "worker": first - opened, "open": opened - piece, "piece": piece, "end": end}


def scoring(ready: Study) -> Work[Job, Timed]:
    return Work(here=Timing(ready), shared=lambda: shipped(ready.for_scoring(1), ready.pipe), there=Timing)


def overhead(asked: Options, address: Address) -> Iterator[dict[str, Any]]:
    """Seconds of the same pieces in this process and by one worker, in turn."""
    pipe = load(asked.model, dtype=torch.float32)
    with InProcess().crew(QUIET) as own, OnRay(workers=1, address=address()).crew(QUIET) as other:
        crews = {"alone": own, "ray": other}
        for noises in asked.noises:
            ready = made(pipe, asked, noises)
            work, drawn = scoring(ready), Candidates(ready)
            jobs = drawn(2)
            for crew in crews.values():
                timed(crew, work, jobs)  # opened, and warm
            for index in range(asked.rounds):
                jobs, order = drawn(asked.pieces), [*crews][:: 1 if index % 2 else -1]
                took = {name: timed(crews[name], work, jobs)[0] for name in order}
                yield {"noises": noises, "round": index, "pieces": len(jobs), **took}


def timed(crew: Crew, work: Work[Job, Timed], jobs: Sequence[Job]) -> tuple[float, list[Timed]]:
    """Seconds in which a crew answers, and the answers."""
    began = time.monotonic()
    answers = [answer for _, answer in crew.answers(work, jobs)]
    return time.monotonic() - began, answers


def throughput(asked: Options, address: Address) -> Iterator[dict[str, Any]]:
    """Seconds of equal generations by crews of several sizes, in turn, and those of their pieces."""
    pipe = load(asked.model, dtype=torch.float32)
    ready, cores = made(pipe, asked, asked.noises[-1]), len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        drawn, folder = Candidates(ready), Path(stack.enter_context(TemporaryDirectory()))
        crews = list[tuple[int, Crew, Work[Job, Timed]]]()
        for workers in asked.workers:
            (own := folder / f"{workers}").mkdir()
            places = Places(ready.for_scoring(workers), own)
            work = Work(here=Timing(ready), shared=partial(shipped, places, pipe), there=pinned)
            crew = stack.enter_context(OnRay(workers=workers, address=address()).crew(QUIET))
            while len(list(own.iterdir())) < workers:
                list(crew.answers(work, drawn(workers)))
            crews.append((workers, crew, work))
        for index in range(asked.rounds):
            for workers, crew, work in crews if index % 2 else crews[::-1]:
                wall, answers = timed(crew, work, drawn(asked.pieces))
                busy, processor = ([getattr(one, name) for one in answers] for name in ("wall", "processor"))
                yield {"workers": workers, "cores": cores, "round": index, "wall": wall, "busy": busy, "cpu": processor}


def solving(asked: Options, address: Address) -> Iterator[dict[str, Any]]:
    """Seconds in which levels are ranked and solved by this process and by two workers, in turn."""
    pipe = load(asked.model, dtype=torch.float32)
    ready = made(pipe, asked, 2)
    given = (ready.anatomy, ready.statistics, ready.settings.method, QUIET, ready.units)
    with OnRay(workers=2, address=address()).crew(QUIET) as crew:
        solvers: dict[str, Solve] = {"alone": by_itself, "ray": partial(by_workers, pipe, crew)}
        Library(denoiser_of(pipe), *given, solve=solvers["ray"])  # opened, and warm
        for index in range(asked.rounds):
            took = dict[str, float]()
            for name in [*solvers][:: 1 if index % 2 else -1]:
                began = time.monotonic()
                Library(denoiser_of(pipe), *given, solve=solvers[name])
                took[name] = time.monotonic() - began
            yield {"round": index, **took}


def weights(asked: Options, address: Address) -> Iterator[dict[str, Any]]:
    """Bytes that travel to a machine once, with a piece, and with an answer."""
    from ray import cloudpickle

    for name in asked.shared:
        pipe = load(name, dtype=torch.float32)
        own = replace(asked, steps=min(asked.steps, len(pipe.scheduler.timesteps)))
        ready = made(pipe, own, 2)
        here = made(type(pipe)(**pipe.components), own, 2)
        (job,), (gathered, levels) = Candidates(ready)(1), sizes(ready)[:2]
        travels = (len(cloudpickle.dumps(one)) for one in (job, 0.5))  # type: ignore[no-untyped-call]
        whole, in_memory = (shipped(one.for_scoring(1), one.pipe).bytes for one in (ready, here))
        each = {**dict(zip(("piece", "answer"), travels, strict=True)), "statistics": gathered, "levels": levels}
        yield {"model": name, "origin": whole, "memory": in_memory, **each}


PARTS: dict[Part, tuple[Callable[[Options, Address], Iterator[dict[str, Any]]], Callable[[Rows], None]]] = {
    Part.START: (start_up, show_start),
    Part.OVERHEAD: (overhead, show_overhead),
    Part.THROUGHPUT: (throughput, show_throughput),
    Part.LEVELS: (solving, show_solving),
    Part.BYTES: (weights, show_weights),
}


if __name__ == "__main__":
    main(options(Options, __doc__))
