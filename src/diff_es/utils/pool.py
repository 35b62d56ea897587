"""Processes that work beside this one. Each loads what all of them share from one file, then answers job by job.

The standard library's pools do not say how a process ended, wait for ever for one that dies while it starts, and leave
semaphores behind when they are killed. This module imports nothing that takes long, so that a process that is being
started soon watches its parent.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import DupFd
from multiprocessing.util import Finalize
from traceback import format_exception
from typing import Any, Generic, TypeVar

from .errors import DiffESError, out_of_memory
from .scratch import scratch
from .signals import ENDING, deferred

J = TypeVar("J")  # a job
A = TypeVar("A")  # and an answer
Load = Callable[[str], Callable[[J], A]]
"""Makes what answers jobs, in a process of its own, from the path of the file that all share."""

_RESUME = "go on with --resume: nothing that was scored is lost."


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    ready: bool = False
    job: Any = None  # what it is at


@dataclass(frozen=True)
class _Failure:
    """What a worker says when it can do no more."""

    error: Exception


class Workers(Generic[J, A]):
    """Processes that start when there is a first job, and end with this object or this process, however it ends.

    Args:
        shared: gives the bytes that all load from; called when they start.
        loads: one for each process; they are pickled.
        patience: seconds until at least one has to be ready.
    """

    def __init__(self, shared: Callable[[], memoryview], loads: Sequence[Load[J, A]], patience: float = 600) -> None:
        self._shared, self._loads, self._patience = shared, loads, patience
        self._all, self._deadline = list[_Worker](), math.inf  # of the start, once it has begun
        Finalize(self, _end, [self._all], exitpriority=1)  # at exit, before the standard library waits for children

    def close(self) -> None:
        """End the processes; those of later jobs are others."""
        _end(self._all)

    def answers(self, jobs: Sequence[J]) -> Generator[tuple[J, A]]:
        """Each job and its answer, in the order in which they come.

        Raises:
            DiffESError: a process died, cannot load what it needs, or none is ready in time.
            StorageError: the temporary folder has no room for what they share.
        """
        waiting, answered = deque(jobs), 0
        if jobs and not self._all:
            self._start()
        try:
            while answered < len(jobs):
                for worker in self._all:
                    if waiting and worker.ready and worker.job is None:
                        worker.job = waiting.popleft()
                        with suppress(ConnectionError):  # it has died, which its end of the pipe tells
                            worker.pipe.send(worker.job)
                for worker in self._heard_from():
                    message = self._message(worker)
                    if worker.ready:
                        job, worker.job = worker.job, None
                        answered += 1
                        yield job, message
                    worker.ready = True
        finally:
            if answered < len(jobs):
                self.close()  # what they are at, nobody waits for

    def _start(self) -> None:
        content, context = self._shared(), get_context("spawn")
        self._deadline = time.monotonic() + self._patience
        with scratch(len(content)) as file, deferred():
            file.write(content)
            file.flush()
            resource_tracker.ensure_running()  # the first time, it lets signals through
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            for load in self._loads:
                ours, theirs = context.Pipe()
                given = (theirs, _Inherited(file.fileno()), pickle.dumps(load))
                process = context.Process(target=_work, args=given, daemon=True)
                with theirs:
                    process.start()
                self._all.append(_Worker(process, ours))

    def _heard_from(self) -> list[_Worker]:
        """Those that have said something or died; waits until there are any."""
        left = None if any(worker.ready for worker in self._all) else max(0, self._deadline - time.monotonic())
        heard = wait([worker.pipe for worker in self._all], left)
        if not heard:
            remedy = f"See whether the machine has memory and time for {len(self._all)}; take fewer, and {_RESUME}"
            found = f"none after {self._patience:g} seconds"
            raise DiffESError("workers", expected="a process that is ready", found=found, remedy=remedy)
        return [worker for worker in self._all if worker.pipe in heard]

    def _message(self, worker: _Worker) -> Any:
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise _died(worker) from error
        if not isinstance(message, _Failure):
            return message
        if worker.ready or isinstance(message.error, DiffESError | MemoryError):
            raise message.error
        found = f"one that failed: {str(message.error).splitlines()[-1]}"
        remedy = "Classes of your own belong into a module that can be imported; or take one worker."
        raise DiffESError("workers", expected="processes that load the study", found=found, remedy=remedy) from (
            message.error
        )


def _died(worker: _Worker) -> DiffESError:
    worker.process.join()
    code, when = worker.process.exitcode or 0, "" if worker.ready else " while it started"
    how = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
    remedy = f"Take fewer workers if memory ran out, and {_RESUME}"
    if not worker.ready and code > 0:
        remedy = f'Call `compress` under `if __name__ == "__main__":`, or take one worker, and {_RESUME}'
    found = f"one that died{when} ({how})"
    return DiffESError("workers", expected="living processes", found=found, remedy=remedy)


def _end(workers: list[_Worker]) -> None:
    with deferred():
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        workers.clear()


class _Inherited:
    """A descriptor that a process which is being started gets, under a number of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detached, (DupFd(self._descriptor),)


def _detached(duplicate: Any) -> int:
    return int(duplicate.detach())


def _work(pipe: Connection, shared: int, load: bytes) -> None:
    """What a worker does, from its start to its end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError), ExitStack() as failing:  # the parent wants no more
        failing.push(partial(_tell, pipe))
        answer = pickle.loads(load)(f"/dev/fd/{shared}")
        os.close(shared)
        pipe.send(None)
        while True:
            pipe.send(answer(pipe.recv()))


def _tell(pipe: Connection, kind: object, error: BaseException | None, trace: object) -> bool:
    """Hand the parent what ended a worker, as an exception that can be pickled; a bug comes with its traceback."""
    if isinstance(error, DiffESError):
        pipe.send(_Failure(error))
    elif error is not None:
        text = "".join(format_exception(error)).rstrip()
        pipe.send(_Failure(MemoryError(str(error)) if out_of_memory(error) else RuntimeError(f"in a worker\n{text}")))
    return True


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
