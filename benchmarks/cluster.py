"""How long searches of published models take on clusters of up to hundreds of GPUs: gone through on an imagined clock.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --models "DiT-XL/2 256" --workers 64 --population 64

Configurations without weights and made-up scores, as in ``hours.py``. Every worker is opened as a real one is, runs the
reference for itself and keeps what it has run, so that it runs anew what only others know; pieces are given out by
``execution.pieces``, as to real workers, those that take too long twice. A piece takes its counted MACs times public
seconds an image on one H100; start, opening, network and giving out take what the options say. Linear algebra,
encoders and decoders are not counted. Nor is what gathering costs beside the runs that it watches, the one thing that
workers take off calibration; so it counts as the driver's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from math import ceil, log2
from typing import Annotated, Any, TypeAlias

from common import header, options, row
from hours import MODELS, Published, sampler
from torch import nn

from diff_es import Method, Sampling, Settings, Width, with_effort
from diff_es.compression.forecast import sizes
from diff_es.compression.simulation import simulate
from diff_es.compression.study import Study
from diff_es.compression.survey import Survey, surveyed
from diff_es.execution import Work
from diff_es.execution.contract import Shared
from diff_es.execution.pieces import Pieces
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.budget import Budget
from diff_es.scoring.imagined import Tally
from diff_es.utils.progress import Reporter

Worker: TypeAlias = Callable[[Work[Any, Any], Any], tuple[Any, float]]
"""Answers a piece of a work, and says how many seconds that takes it."""
LOOK = 1.0
"""Seconds after which idle workers are offered pieces that take too long, as by ``execution.ray_crew``."""


class Clocked:
    """A crew on a clock of its own, to which pieces are given as to workers of a Ray cluster.

    Args:
        workers: all of them, ready.
        each: seconds in which a piece is given out, one after the other.
    """

    def __init__(self, workers: Sequence[Worker], each: float = 0.0) -> None:
        self.now = self.busy = 0.0  # seconds, of the clock and of all workers
        self.pieces = self.repeated = 0  # done, and given out to two
        self._idle, self._each, self._order = [*workers], each, count()
        self._running = list[tuple[float, int, Worker, Pieces, int, Any]]()  # a heap, by the time of the end

    @property
    def size(self) -> int:
        """Pieces that are done at a time."""
        return len(self._idle) + len(self._running)

    def answers(self, work: Work[Any, Any], pieces: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """As ``execution.Crew`` says."""
        left = Pieces(len(pieces), lambda: self.now)
        while not left.all_done:
            while self._idle and (index := left.next()) is not None:
                worker = self._idle.pop()
                answer, seconds = worker(work, pieces[index])
                self.now, self.busy = self.now + self._each, self.busy + seconds
                heappush(self._running, (self.now + seconds, next(self._order), worker, left, index, answer))
            if self._idle and self._running[0][0] > self.now + LOOK:
                self.now += LOOK
                continue
            end, _, worker, of, index, answer = heappop(self._running)
            self.now = max(self.now, end)
            self._idle.append(worker)
            first = of.done(index)
            self.repeated += not first
            if of is left and first:
                self.pieces += 1
                yield pieces[index], answer


def makespan(seconds: Sequence[float], workers: int, each: float = 0.0) -> float:
    """What pieces that take so long take together."""
    crew = Clocked([lambda _, piece: (None, piece)] * workers, each)
    for _ in crew.answers(ASKED, seconds):
        pass
    return crew.now


def _nothing() -> Shared:
    raise NotImplementedError


ASKED: Work[Any, Any] = Work(here=float, shared=_nothing, there=lambda _: float)
"""Of pieces that nobody looks at."""


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], "which of them", tuple(MODELS)] = ("DiT-XL/2 256", "SDXL 1024")
    workers: Annotated[tuple[int, ...], "a GPU each"] = (1, 8, 64, 512)
    effort: Annotated[float, "share of the thorough search's work; 0.1 is the default of the library"] = 0.1
    population: Annotated[tuple[int, ...], "candidates of a generation; none: as the effort has them"] = ()
    memory: Annotated[float, "GB for weights of levels and known steps"] = 35.0
    stages: Annotated[int, "that the trajectory is cut into"] = 10
    start: Annotated[float, "seconds until a worker is ready"] = 15.0
    disk: Annotated[float, "GB a second at which a worker reads the model"] = 1.0
    network: Annotated[float, "GB a second into a machine"] = 1.25
    together: Annotated[int, "workers of a machine"] = 8
    each: Annotated[float, "milliseconds in which the driver gives out a piece"] = 5.0


@dataclass(frozen=True)
class Spent:
    """Of a search, in seconds: all of it, what of it goes by before workers have their first piece, and what the driver
    does alone; of all workers together, what they work, and what one process would."""

    seconds: float
    start: float
    driver: float
    busy: float
    alone: float
    pieces: int


def main(asked: Options) -> None:
    columns = ("worker-hours that count", "of doing again", "of waiting for others", "for the driver", "for the start")
    header("model", "population", "workers", "pieces", "hours", "times as fast", *columns)
    for name in asked.models:
        model = MODELS[name]
        for population in asked.population or (None,):
            known = configured(model, asked, population)
            image = known.counter.dense() * len(known.trace.timesteps)
            own = model.seconds / image
            alone = simulate(known, round(asked.memory * 1e9)).macs * own
            for workers in asked.workers:
                spent = searched(known, asked, workers, own, alone)
                shown = f"{known.settings.population}", f"{workers}", f"{spent.pieces:,}", f"{spent.seconds / 3600:.3f}"
                row(name, *shown, f"{alone / spent.seconds:.1f}", *map("{:.0%}".format, shares(spent, workers)))


def configured(model: Published, asked: Options, population: int | None) -> Survey:
    """A published configuration, surveyed for a default search."""
    method = Method(Width(multiple=64, dense=()))
    settings = Settings(sampling=Sampling(batch=model.batch), stages=asked.stages, method=method)
    settings = with_effort(settings, asked.effort)
    settings = settings if population is None else replace(settings, population=population)
    return surveyed(sampler(model), settings, Reporter(quiet=True), Budget.of(None))


def searched(known: Survey, asked: Options, workers: int, own: float, alone: float) -> Spent:
    """A search by so many workers.

    Args:
        own: seconds for each MAC.
        alone: of one process.
    """
    crews, opening = list[Clocked](), _weights(known) / (asked.disk * 1e9)

    def crew(opened: Callable[[Tally], Study]) -> Clocked:
        crews.append(Clocked([imagining(opened, opening, own) for _ in range(workers)], asked.each / 1e3))
        return crews[-1]

    work = simulate(known, round(asked.memory * 1e9), crew=crew)
    (found,), driver = crews, work.macs * own
    start = asked.start + _shared(known, asked, workers)
    return Spent(found.now + driver + start, start, driver, found.busy, alone, found.pieces)


def imagining(opened: Callable[[Tally], Study], opening: float, own: float) -> Worker:
    """A worker that counts what it would run; ``opening`` are its seconds for the model, ``own`` those for each MAC."""
    tally, scoring = Tally(), dict[int, Callable[[Any], Any]]()

    def answered(work: Work[Any, Any], piece: Any) -> tuple[Any, float]:
        before, extra = copy(tally), 0.0
        if id(work) not in scoring:
            scoring.clear()  # another work is opened anew
            scoring[id(work)], extra = work.there(opened(tally)), opening
        answer = scoring[id(work)](piece)
        return answer, extra + (tally - before).macs * own

    return answered


def _weights(known: Survey) -> int:
    """Bytes of the denoiser, in half precision."""
    denoiser: nn.Module = denoiser_of(known.pipe)
    return 2 * sum(parameter.numel() for parameter in denoiser.parameters())


def _shared(known: Survey, asked: Options, workers: int) -> float:
    """Seconds in which the weights of levels reach all machines, each of which passes them on."""
    _, levels, _ = sizes(known)
    machines = ceil(workers / asked.together)
    return ceil(log2(machines + 1)) * levels / (asked.network * 1e9)


def shares(spent: Spent, workers: int) -> tuple[float, ...]:
    """Of the workers' time: what one process would spend as well, and what is done again, waits for others, for the
    driver, and for the start."""
    whole, counted = workers * spent.seconds, spent.alone - spent.driver
    between = workers * (spent.seconds - spent.start - spent.driver) - spent.busy
    parts = counted, spent.busy - counted, between, workers * spent.driver, workers * spent.start
    return tuple(part / whole for part in parts)


if __name__ == "__main__":
    main(options(Options, __doc__))
