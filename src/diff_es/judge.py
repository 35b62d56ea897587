"""Who scores candidates: this process, or several workers with a copy of everything; each score is written down."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import cached_property
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch

from .errors import DiffESError
from .fitness import Fitness
from .journal import Journal, Scale
from .pipeline import denoiser_of, hushed
from .search import Levels
from .study import Study


class Job(NamedTuple):
    """One candidate to be scored; ``heat`` is its score in the first heat, which the one on all probes goes on from."""

    levels: Levels
    scale: Scale
    heat: float | None = None


class Scorer:
    """Scores the jobs of one study in this process."""

    def __init__(self, ready: Study) -> None:
        self._ready = ready

    @cached_property
    def fitness(self) -> Fitness:
        settings = self._ready.settings
        return self._ready.fitness("search", settings.probes, settings.first_heat)

    @cached_property
    def alone(self) -> Fitness:
        return self._ready.fitness_alone()

    def __call__(self, job: Job) -> float:
        if job.scale is Scale.ALONE:
            return self.alone(job.levels)
        if job.scale is Scale.HEAT:
            return self.fitness.first(job.levels)
        return self.fitness(job.levels) if job.heat is None else self.fitness.second(job.levels, job.heat)


class Judge(AbstractContextManager["Judge"]):
    """Scores candidates, from the journal where it knows them.

    A score depends on the candidate alone, so any number of workers gives the same scores, in whichever order they
    come.

    Args:
        ready: what is searched.
        journal: where scores are kept; each is there before it is given.
        workers: processes that score at the same time, each with a copy of the pipeline and the library; on CUDA they
            are dealt over the devices. 1: this process alone.
    """

    def __init__(self, ready: Study, journal: Journal, workers: int = 1) -> None:
        if workers < 1:
            remedy = "Leave it out to take one."
            raise DiffESError("workers", expected="1 or more", found=str(workers), remedy=remedy)
        self.journal, self.scorer = journal, Scorer(ready)
        self._pool = None if workers == 1 else _pool(ready, workers)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def scores(
        self, candidates: Sequence[Levels], scale: Scale = Scale.ALL, done: Callable[[], None] = lambda: None
    ) -> Mapping[Levels, float]:
        """The score of every candidate, in their order; ``done()`` is called after each.

        Raises:
            DiffESError: a worker has died.
            StorageError: the journal's disk refused.
        """
        known, heats = self.journal.known[scale], self.journal.known[Scale.HEAT]
        new = [levels for levels in candidates if levels not in known]
        for _ in range(len(candidates) - len(new)):
            done()
        jobs = [Job(levels, scale, heats.get(levels) if scale is Scale.ALL else None) for levels in new]
        with hushed():  # once, because it takes its time
            for job, score in self._scored(jobs):
                self.journal.add(job.levels, score, scale)
                done()
        return {levels: known[levels] for levels in candidates}

    def score(self, levels: Levels) -> float:
        """On all probes."""
        return self.scores([levels])[levels]

    def _scored(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, float]]:
        if self._pool is None:
            yield from ((job, self.scorer(job)) for job in jobs)
            return
        futures: dict[Future[float], Job] = {}
        try:
            futures |= {self._pool.submit(_score, job): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            remedy = "Take fewer workers if memory ran out, and go on with --resume: nothing that was scored is lost."
            found = "one that died"
            raise DiffESError("workers", expected="living processes", found=found, remedy=remedy) from error
        finally:
            for future in futures:
                future.cancel()


def _pool(ready: Study, workers: int) -> ProcessPoolExecutor:
    """Processes that have received a copy of a study, each on its own device where there are several."""
    copy, context = io.BytesIO(), get_context("spawn")
    torch.save(ready, copy)  # in memory, between processes of one run; nothing of it is kept
    here = denoiser_of(ready.pipe).device
    devices = context.SimpleQueue()
    for index in range(workers):
        devices.put(f"cuda:{index % torch.cuda.device_count()}" if here.type == "cuda" else str(here))
    given = (copy.getvalue(), devices, torch.get_num_threads())
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=given)


_SCORER: Scorer | None = None  # of a worker process


def _begin(copy: bytes, devices: Any, threads: int) -> None:
    """What a worker does first. As many threads as in the parent: results depend on their number in the last bit."""
    global _SCORER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _SCORER = Scorer(torch.load(io.BytesIO(copy), map_location=devices.get(), weights_only=False))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _score(job: Job) -> float:
    assert _SCORER is not None
    return _SCORER(job)
