"""Scores of candidates, by this process or by workers; those of a search are written down before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..execution import Alone, Crew, Work
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


class Plain(NamedTuple):
    """One candidate to be scored on the search's probes, its steps not corrected."""

    candidate: Candidate


class Trial(NamedTuple):
    """One candidate to be scored on a part of the held-out probes, as ``Study.part`` numbers them."""

    candidate: Candidate
    corrected: bool
    part: int


Piece: TypeAlias = Job | Plain | Trial
P = TypeVar("P", bound=Piece)


class Scorer:
    """Scores candidates of one study in this process."""

    def __init__(self, ready: Study) -> None:
        self._ready = ready

    @property
    def fitness(self) -> Fitness:
        return self._ready.searching

    @cached_property
    def alone(self) -> Fitness:
        return self._ready.fitness_alone()

    def __call__(self, piece: Piece) -> list[float]:
        """The score; of a trial, that on each of its probes."""
        if isinstance(piece, Trial):
            return self._ready.part(piece.part).each(piece.candidate, corrected=piece.corrected)
        return [self.fitness.plain(piece.candidate) if isinstance(piece, Plain) else self._score(piece)]

    def _score(self, job: Job) -> float:
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
        self.journal, self.scorer, self._crew = journal, Scorer(ready), crew or Alone()
        size = self._crew.size
        self._work: Work[Any, list[float]] = Work(
            here=self.scorer, shared=lambda: shipped(ready.for_scoring(size), ready.pipe), there=Scorer
        )

    def scores(
        self, candidates: Sequence[Candidate], scale: Scale = Scale.ALL, done: Callable[[], None] = lambda: None
    ) -> Mapping[Candidate, float]:
        """The score of every candidate, in their order; ``done()`` is called after each.

        Raises:
            DiffESError: workers cannot do it; as the crew says.
            StorageError: the journal's disk refused.
        """
        known, rungs = self.journal.known[scale], self.journal.known[Scale.RUNG]
        new = [one for one in dict.fromkeys(candidates) if one not in known]
        for _ in range(len(candidates) - len(new)):
            done()
        jobs = [Job(one, scale, rungs.get(one) if scale is Scale.ALL else None) for one in new]
        for job, (score,) in self._answers(jobs):
            self.journal.add(job.candidate, score, scale)
            done()
        return {one: known[one] for one in candidates}

    def score(self, candidate: Candidate) -> float:
        """On all probes."""
        return self.scores([candidate])[candidate]

    def plain(self, candidates: Sequence[Candidate]) -> Mapping[Candidate, float]:
        """The scores on all probes of schedules whose steps are not corrected, in their order; raises as the crew does.

        They are few, so they are not written down.
        """
        found = {piece.candidate: score for piece, (score,) in self._answers([Plain(one) for one in candidates])}
        return {one: found[one] for one in candidates}

    def held_out(self, trials: Sequence[Trial], done: Callable[[], None] = lambda: None) -> list[list[float]]:
        """What each comes to on its probes, in their order; ``done()`` is called after each. Raises as the crew does.

        A worker has dense runs of the same probes to compare with, and fits corrections, for itself: noises and
        schedules travel, not latents. What is judged so is not written down, as it is few beside a search.
        """
        found = dict[Trial, list[float]]()
        for trial, scores in self._answers(trials):
            found[trial] = scores
            done()
        return [found[one] for one in trials]

    def _answers(self, pieces: Sequence[P]) -> Iterator[tuple[P, list[float]]]:
        """Each of them with its scores, in the order in which they come."""
        with hushed():  # once, because it takes its time
            yield from self._crew.answers(self._work, pieces)
