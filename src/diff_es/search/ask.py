"""Ask and tell: a search proposes candidates and is told their scores.

A `Search` remembers the scores told so far and nothing else; what comes next is a pure function of them. So a search
that was killed resumes by being told its journal again (`replay`), and one worker finds what any number of them find.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isnan
from statistics import median
from typing import NamedTuple

from diff_es.search.candidate import Candidate


class Scored(NamedTuple):
    candidate: Candidate
    score: float  # higher is better; -inf: ruled out


@dataclass(frozen=True)
class Generation:
    """A closed generation."""

    index: int
    best: float  # of all candidates so far; never falls
    median: float  # of this generation's own candidates, those ruled out left aside; -inf where all are
    mean: float  # of the same
    evaluations: int  # so far, this generation included


Propose = Callable[[int, tuple[Scored, ...]], tuple[Candidate, ...]]
"""(generation, all evaluated candidates, best first) -> the candidates of that generation, distinct and new.

An empty answer ends the search. It must depend on its arguments alone.
"""


class Search:
    """Proposes candidates generation by generation and remembers their scores."""

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self._scores: dict[Candidate, float] = {}
        self._history: list[Generation] = []
        self._cohort = propose(0, ())

    def ask(self) -> tuple[Candidate, ...]:
        """The candidates of the current generation that have no score yet, always in the same order; () when done."""
        return tuple(candidate for candidate in self._cohort if candidate not in self._scores)

    def tell(self, scores: Mapping[Candidate, float]) -> None:
        """Record scores, higher is better, of any of the asked candidates; the last one closes the generation.

        Telling the same score again does nothing. ValueError, with nothing recorded, where a score is NaN, where a
        candidate was not asked for, or where it has another score already.
        """
        for candidate, score in scores.items():
            if isnan(score):
                raise ValueError(
                    f"Search.tell: expected a number as the score of {candidate}, found NaN; "
                    "find out why its evaluation failed, or tell -inf to rule it out"
                )
            if candidate in self._scores:
                if self._scores[candidate] != score:
                    raise ValueError(
                        f"Search.tell: {candidate} has the score {self._scores[candidate]!r}, found {score!r}; a "
                        "candidate has one score, so fix the probes, or begin a new search if they changed"
                    )
            elif candidate not in self._cohort:
                raise ValueError(
                    f"Search.tell: expected a candidate of generation {len(self._history)}, found {candidate}; tell "
                    "what ask() returned (a journal fits only the space, settings and starts that it was written with)"
                )
        self._scores.update((candidate, float(score)) for candidate, score in scores.items())
        if self._cohort and not self.ask():
            self._close()

    def _close(self) -> None:
        ranking = self.ranking()
        scores = [score for candidate in self._cohort if (score := self._scores[candidate]) > -inf] or [-inf]
        self._history.append(
            Generation(
                index=len(self._history),
                best=ranking[0].score,
                median=median(scores),
                mean=sum(scores) / len(scores),
                evaluations=len(ranking),
            )
        )
        self._cohort = self._propose(len(self._history), ranking)

    @property
    def done(self) -> bool:
        return not self._cohort

    @property
    def best(self) -> Scored:
        """The best candidate so far. ValueError before the first score."""
        if not self._scores:
            raise ValueError("Search.best: expected at least one score, found none; ask(), evaluate and tell() first")
        return self.ranking()[0]

    @property
    def history(self) -> tuple[Generation, ...]:
        return tuple(self._history)

    def ranking(self) -> tuple[Scored, ...]:
        """All evaluated candidates, best first; equal scores in the order of candidates."""
        return tuple(sorted((Scored(*item) for item in self._scores.items()), key=lambda c: (-c.score, c.candidate)))


def replay(search: Search, journal: Mapping[Candidate, float]) -> None:
    """Tell a fresh search the scores that an earlier run of it wrote down, in whichever order; it goes on from there.

    Scores that the search does not ask for are passed over.
    """
    while known := {candidate: journal[candidate] for candidate in search.ask() if candidate in journal}:
        search.tell(known)
