"""Workers of a Ray cluster: who dies is replaced, what was lost is done again, and how busy they were is told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import JsonValue

from ..utils.errors import DiffESError
from ..utils.progress import Reporter
from .contract import A, J, Work
from .pieces import TRIES, Pieces
from .ray_worker import Answered, Arithmetic, Failed, Kind, Worker

_LOOK = 1.0
"""Seconds after which it is looked for pieces that take too long."""
_IDLE, _WHILE = 0.5, 60.0
"""A share of waiting of which the user is told, after so many seconds."""


class Terms(Protocol):
    """What of ``OnRay`` is needed here."""

    @property
    def workers(self) -> int: ...
    @property
    def gpus_per_worker(self) -> float | None: ...
    @property
    def mixed(self) -> bool: ...
    @property
    def patience(self) -> float: ...


@dataclass(frozen=True)
class Figures:
    """What workers have done."""

    workers: int
    pieces: int = 0
    seconds: float = 0.0  # in which there was work, from the first worker's start on
    busy: float = 0.0  # of all workers
    deaths: int = 0
    repeated: int = 0  # pieces that two did

    @property
    def utilisation(self) -> float:
        """The share of their time in which workers worked."""
        return min(1.0, self.busy / max(1e-9, self.workers * self.seconds))

    @property
    def rate(self) -> float:
        """Pieces a second."""
        return self.pieces / max(1e-9, self.seconds)

    def to_json(self) -> dict[str, JsonValue]:
        """JSON values."""
        return {**vars(self), "pieces_a_second": self.rate, "utilisation": self.utilisation}


class RayCrew:
    """Workers, from their first piece to :meth:`close`.

    Args:
        ray: the module, connected.
        arithmetic: of each worker.
    """

    def __init__(self, ray: Any, terms: Terms, arithmetic: Arithmetic, reporter: Reporter) -> None:
        self._ray, self._terms, self._arithmetic, self._reporter = ray, terms, arithmetic, reporter
        self._starting, self._idle = dict[Any, Any](), list[Any]()  # workers, the first by who tells their kind
        self._running = dict[Any, tuple[Any, Pieces, int]]()  # by answer to come: worker, of which call, piece
        self._shared = list[tuple[Work[Any, Any], Any, bool]]()  # and the reference to what it is opened from
        self._kind: Kind | None = None
        self._begun, self._failed_starts = time.monotonic(), 0
        self._ready: float | None = None  # since when there has been a worker
        self.figures = Figures(terms.workers)

    @property
    def size(self) -> int:
        """Pieces that are done at a time."""
        return self._terms.workers

    def close(self) -> None:
        """Nobody works any more."""
        for worker in [*self._starting.values(), *self._idle, *(one for one, *_ in self._running.values())]:
            self._ray.kill(worker)
        self._starting, self._idle, self._running, self._shared = {}, [], {}, []

    def tell(self) -> None:
        """The user how busy they were."""
        told = self.figures
        if not told.pieces:
            return
        self._reporter.figures["workers"] = told.to_json()
        idle = 1 - told.utilisation
        again = f", {told.deaths} of which died and were replaced" if told.deaths else ""
        self._reporter.say(
            f"{told.pieces} pieces by {told.workers} workers{again}, {told.rate:.2g} a second; they waited {idle:.0%} "
            "of their time."
        )
        if told.workers > 1 and idle > _IDLE and told.seconds > _WHILE:
            self._reporter.warn(
                "Workers waited more than they worked: take fewer of them, and let others do another search meanwhile."
            )

    def answers(self, work: Work[J, A], pieces: Sequence[J]) -> Iterator[tuple[J, A]]:
        """Each piece and its answer, in the order in which they come.

        Raises:
            DiffESError: a piece failed as often as it may, no worker is ready in time, or devices are of several kinds.
        """
        if not pieces:
            return
        number, left, began = self._number(work), Pieces(len(pieces)), time.monotonic()
        try:
            while not left.all_done:
                self._hire(self._shared[number][2])
                self._give(number, left, pieces)
                for index, answer in self._heard(left, work):
                    yield pieces[index], answer
        finally:
            if self._ready is not None:
                self._count(seconds=time.monotonic() - max(began, self._ready))
            if not left.all_done:
                self._leave()

    def _number(self, work: Work[Any, Any]) -> int:
        """Of a work, whose workers can open it from now on."""
        for number, (known, *_) in enumerate(self._shared):
            if known is work:
                return number
        content = work.shared()
        self._shared.append((work, self._ray.put(content), content.accelerated))
        return len(self._shared) - 1

    def _hire(self, accelerated: bool) -> None:
        """Have as many workers as were asked for."""
        missing = self._terms.workers - len(self._starting) - len(self._idle) - len(self._running)
        if missing and not (self._idle or self._running):
            self._begun = time.monotonic()
        gpus = (self._terms.gpus_per_worker or 1) if accelerated else 0
        kind = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(Worker)
        for _ in range(missing):
            worker = kind.remote(self._arithmetic, accelerated)
            self._starting[worker.kind.remote()] = worker

    def _give(self, number: int, left: Pieces, pieces: Sequence[Any]) -> None:
        """Pieces to those who have none."""
        work, reference, _ = self._shared[number]
        while self._idle and (index := left.next()) is not None:
            worker = self._idle.pop()
            answer = worker.answer.remote(number, [reference], work.there, pieces[index])
            self._running[answer] = worker, left, index

    def _heard(self, left: Pieces, work: Work[Any, Any]) -> Iterator[tuple[int, Any]]:
        """The pieces that were answered, after waiting for some."""
        watched = [*self._starting, *self._running]
        ready, _ = self._ray.wait(watched, num_returns=len(watched), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(watched, num_returns=1, timeout=_LOOK)
        if not ready and not (self._idle or self._running) and self._waited() > self._terms.patience:
            remedy = "See whether the cluster has as many CPUs and GPUs free (`ray status`); or take fewer workers."
            found = f"none after {self._terms.patience:g} seconds"
            raise DiffESError("workers", expected="one that is ready", found=found, remedy=remedy)
        for answer in ready:
            if answer in self._starting:
                self._started(answer)
                continue
            worker, of, index = self._running.pop(answer)
            told, died = self._asked(answer)
            if not died:
                self._idle.append(worker)
            if of is not left:
                continue  # of a call that has ended
            if isinstance(told, Answered):
                first = left.done(index)
                self._count(pieces=int(first), repeated=int(not first), busy=told.seconds)
                if first:
                    yield index, told.value
            elif left.failed(index, for_good=told.error is not None):
                raise _failure(told, work, self.figures.workers)

    def _waited(self) -> float:
        return time.monotonic() - self._begun

    def _started(self, answer: Any) -> None:
        """A worker is ready, if it computes as the others do; one that died is replaced, but not for ever."""
        worker = self._starting.pop(answer)
        kind, died = self._asked(answer)
        if isinstance(kind, Failed):
            if not died:  # it lives, and cannot say what it is
                self._ray.kill(worker)
            self._failed_starts += 1
            if self._failed_starts >= TRIES * self._terms.workers:
                remedy = "See that diff-es is installed on every machine of the cluster, and that they have memory."
                found = f"one that does not: {kind.trace.splitlines()[-1]}"
                raise DiffESError("workers", expected="processes that start", found=found, remedy=remedy)
            return
        self._kind, self._ready = self._kind or kind, self._ready or time.monotonic()
        self._idle.append(worker)
        if kind.versions != self._kind.versions or (kind != self._kind and not self._terms.mixed):
            remedy = "Take machines of one kind and the same versions; or `mixed=True` (`--mixed`), for other devices."
            expected, found = f"workers that all compute on {self._kind}", f"one on {kind}"
            raise DiffESError("workers", expected=expected, found=found, remedy=remedy)

    def _asked(self, answer: Any) -> tuple[Any, bool]:
        """What a worker says, and whether it died instead."""
        try:
            return self._ray.get(answer), False
        except self._ray.exceptions.RayTaskError as error:  # before our code, such as a module that is not there
            return Failed(None, str(error), memory=False, peak=0), False
        except self._ray.exceptions.RayError as error:
            self._count(deaths=1)
            memory = isinstance(error, self._ray.exceptions.OutOfMemoryError)
            return Failed(None, f"{type(error).__name__}: {error}".rstrip(), memory, 0), True

    def _leave(self) -> None:
        """What runs, nobody waits for."""
        for worker, *_ in self._running.values():
            self._ray.kill(worker)
        self._running = {}

    def _count(self, **more: float) -> None:
        own = vars(self.figures)
        self.figures = Figures(**{**own, **{name: own[name] + value for name, value in more.items()}})


def _failure(told: Failed, work: Work[Any, Any], workers: int) -> DiffESError:
    """What ends a run."""
    if told.error is not None:
        return told.error
    last = told.trace.splitlines()[-1] if told.trace else "nothing said"
    if told.memory:
        peak = f", at {told.peak / 1e9:.1f} GB" if told.peak else ""
        return DiffESError("workers", expected="memory for a piece", found=f"none{peak} ({last})", remedy=work.remedy)
    error = DiffESError(
        "workers",
        expected=f"a piece that is done in {TRIES} tries",
        found=f"one that fails: {last}",
        remedy="What was finished is kept: mend it, and go on with --resume.",
    )
    error.add_note(f"in a worker\n{told.trace}")
    return error
