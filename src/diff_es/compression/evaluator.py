"""Who scores candidates: this process, or several workers with a copy of everything; each score is written down."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import NamedTuple

import torch

from ..pipelines.denoiser import device_of
from ..pipelines.quiet import hushed
from ..pipelines.sampling import denoiser_of
from ..scoring.fitness import Fitness
from ..scoring.journal import Journal, Scale
from ..search import Candidate
from ..utils.errors import DiffESError
from ..utils.pool import Workers
from .study import Study


class Job(NamedTuple):
    """One candidate to be scored; ``rung`` is its score on the first rung, which the one on all noises goes on from."""

    candidate: Candidate
    scale: Scale
    rung: float | None = None


class Scorer:
    """Scores the jobs of one study in this process."""

    def __init__(self, ready: Study) -> None:
        self._ready = ready

    @cached_property
    def fitness(self) -> Fitness:
        settings = self._ready.settings
        return self._ready.fitness("search", settings.search_noises, settings.rung_noises)

    @cached_property
    def alone(self) -> Fitness:
        return self._ready.fitness_alone()

    def __call__(self, job: Job) -> float:
        if job.scale is Scale.ALONE:
            return self.alone(job.candidate)
        if job.scale is Scale.RUNG:
            return self.fitness.first(job.candidate)
        return self.fitness(job.candidate) if job.rung is None else self.fitness.second(job.candidate, job.rung)


class Evaluator(AbstractContextManager["Evaluator"]):
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
        self._workers = None if workers == 1 else _workers(ready, workers)

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.close()

    def scores(
        self, candidates: Sequence[Candidate], scale: Scale = Scale.ALL, done: Callable[[], None] = lambda: None
    ) -> Mapping[Candidate, float]:
        """The score of every candidate, in their order; ``done()`` is called after each.

        Raises:
            DiffESError: a worker has died.
            StorageError: the journal's disk refused, or the temporary folder has no room for what workers share.
        """
        known, rungs = self.journal.known[scale], self.journal.known[Scale.RUNG]
        new = [one for one in candidates if one not in known]
        for _ in range(len(candidates) - len(new)):
            done()
        jobs = [Job(one, scale, rungs.get(one) if scale is Scale.ALL else None) for one in new]
        with hushed():  # once, because it takes its time
            for job, score in self._scored(jobs):
                self.journal.add(job.candidate, score, scale)
                done()
        return {one: known[one] for one in candidates}

    def score(self, candidate: Candidate) -> float:
        """On all probes."""
        return self.scores([candidate])[candidate]

    def _scored(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, float]]:
        if self._workers is None:
            return ((job, self.scorer(job)) for job in jobs)
        return self._workers.answers(jobs)


def _workers(ready: Study, count: int) -> Workers[Job, float]:
    """Processes that receive a copy of a study, each on its own device where there are several."""
    here, threads = device_of(denoiser_of(ready.pipe)), torch.get_num_threads()
    cuda = here.type == "cuda"
    devices = [f"cuda:{index % torch.cuda.device_count()}" if cuda else str(here) for index in range(count)]
    return Workers(partial(_content, ready), [partial(_scorer, device, threads) for device in devices])


def _content(ready: Study) -> memoryview:
    """A copy of a study, for other processes of this run; nothing of it is kept."""
    copy = io.BytesIO()
    torch.save(ready, copy)
    return copy.getbuffer()


def _scorer(device: str, threads: int, path: str) -> Scorer:
    """What a worker scores with. As many threads as in the parent: results depend on their number in the last bit."""
    torch.set_num_threads(threads)
    return Scorer(torch.load(path, map_location=device, mmap=True, weights_only=False))
