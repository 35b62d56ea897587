"""Scores of candidates, by this process or by workers; each is written down before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from ..execution import Crew, Work, alone
from ..execution.shipping import shipped
from ..pipelines.quiet import hushed
from ..scoring.fitness import Fitness
from ..scoring.journal import Journal, Scale
from ..search import Candidate
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


class Evaluator:
    """Scores candidates, from the journal where it knows them.

    A score depends on the candidate alone, so any number of workers gives the same scores, in whichever order they
    come.

    Args:
        ready: what is searched.
        journal: where scores are kept; each is there before it is given.
        crew: who scores; None: this process.
    """

    def __init__(self, ready: Study, journal: Journal, crew: Crew | None = None) -> None:
        self.journal, self.scorer, self._crew = journal, Scorer(ready), crew
        self._work = Work(here=self.scorer, shared=lambda: shipped(ready, ready.pipe), there=Scorer)

    def scores(
        self, candidates: Sequence[Candidate], scale: Scale = Scale.ALL, done: Callable[[], None] = lambda: None
    ) -> Mapping[Candidate, float]:
        """The score of every candidate, in their order; ``done()`` is called after each.

        Raises:
            DiffESError: workers cannot do it; as the crew says.
            StorageError: the journal's disk refused.
        """
        known, rungs = self.journal.known[scale], self.journal.known[Scale.RUNG]
        new = [one for one in candidates if one not in known]
        for _ in range(len(candidates) - len(new)):
            done()
        jobs = [Job(one, scale, rungs.get(one) if scale is Scale.ALL else None) for one in new]
        with hushed():  # once, because it takes its time
            for job, score in alone(self._work, jobs) if self._crew is None else self._crew.answers(self._work, jobs):
                self.journal.add(job.candidate, score, scale)
                done()
        return {one: known[one] for one in candidates}

    def score(self, candidate: Candidate) -> float:
        """On all probes."""
        return self.scores([candidate])[candidate]
