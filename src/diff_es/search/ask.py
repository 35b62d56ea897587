"""Ask and tell: a search proposes candidates and is told their scores.

A `Search` remembers the scores told so far and nothing else; what comes next is a pure function of them. So a search
that was killed resumes by being told its journal again (`replay`), and one worker finds what any number of them find.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isnan
from statistics import median
from typing import NamedTuple

from diff_es.search.space import Levels


class Scored(NamedTuple):
    levels: Levels
    score: float  # higher is better; -inf: ruled out


@dataclass(frozen=True)
class Generation:
    """A closed generation."""

    index: int
    best: float  # of all candidates so far; never falls
    median: float  # of this generation's own candidates, those ruled out left aside; -inf where all are
    mean: float  # of the same
    evaluations: int  # so far, this generation included


Propose = Callable[[int, tuple[Scored, ...]], tuple[Levels, ...]]
"""(generation, all evaluated candidates, best first) -> the candidates of that generation, distinct and new.

An empty answer ends the search. It must depend on its arguments alone.
"""


class Search:
    """Proposes candidates generation by generation and remembers their scores."""

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self._scores: dict[Levels, float] = {}
        self._history: list[Generation] = []
        self._cohort = propose(0, ())

    def ask(self) -> tuple[Levels, ...]:
        """The candidates of the current generation that have no score yet, always in the same order; () when done."""
        return tuple(levels for levels in self._cohort if levels not in self._scores)

    def tell(self, scores: Mapping[Levels, float]) -> None:
        """Record scores, higher is better, of any of the asked candidates; the last one closes the generation.

        Telling the same score again does nothing. ValueError, with nothing recorded, where a score is NaN, where a
        candidate was not asked for, or where it has another score already.
        """
        for levels, score in scores.items():
            if isnan(score):
                raise ValueError(
                    f"Search.tell: expected a number as the score of {levels}, found NaN; "
                    "find out why its evaluation failed, or tell -inf to rule it out"
                )
            if levels in self._scores:
                if self._scores[levels] != score:
                    raise ValueError(
                        f"Search.tell: {levels} has the score {self._scores[levels]!r}, found {score!r}; a candidate "
                        "has one score, so fix the probes, or begin a new search if they changed"
                    )
            elif levels not in self._cohort:
                raise ValueError(
                    f"Search.tell: expected a candidate of generation {len(self._history)}, found {levels}; tell what "
                    "ask() returned (a journal fits only the space, settings and starts that it was written with)"
                )
        self._scores.update((levels, float(score)) for levels, score in scores.items())
        if self._cohort and not self.ask():
            self._close()

    def _close(self) -> None:
        ranking = self.ranking()
        scores = [score for levels in self._cohort if (score := self._scores[levels]) > -inf] or [-inf]
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
        """All evaluated candidates, best first; equal scores in the order of their levels."""
        return tuple(sorted((Scored(*item) for item in self._scores.items()), key=lambda c: (-c.score, c.levels)))


def replay(search: Search, journal: Mapping[Levels, float]) -> None:
    """Tell a fresh search the scores that an earlier run of it wrote down, in whichever order; it goes on from there.

    Scores that the search does not ask for are passed over.
    """
    while known := {levels: journal[levels] for levels in search.ask() if levels in journal}:
        search.tell(known)
