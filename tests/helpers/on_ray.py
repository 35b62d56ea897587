"""A Ray cluster of two nodes on this machine, and what its workers do in tests."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diff_es.execution import Crew, Work
from diff_es.execution.ray_crew import RayCrew
from diff_es.execution.ray_worker import Arithmetic
from diff_es.utils.errors import DiffESError
from diff_es.utils.progress import Reporter


@contextmanager
def two_nodes(workers: int = 2, *, connect: bool = True) -> Iterator[Any]:
    """A cluster, and whether this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": workers, "node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        if connect:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@dataclass(frozen=True)
class Given:
    """A value for workers that need no pipeline."""

    value: Any
    accelerated: bool = False

    def opened(self, device: str) -> Any:
        return self.value


def work(there: Callable[[Any], Callable[[Any], Any]], value: Any = None) -> Work[Any, Any]:
    """Work that workers do, and nobody here."""
    return Work(here=there(value), shared=lambda: Given(value), there=there, remedy="Take less.")


def arithmetic(value: None) -> Callable[[int], Arithmetic]:
    return lambda piece: Arithmetic.own()


def adding(value: int) -> Callable[[int], int]:
    return lambda piece: piece + value


def once(folder: str, act: Callable[[], None]) -> Callable[[int], int]:
    """Something that happens to the first who is at a piece below 3, and no more."""

    def answer(piece: int) -> int:
        mark = Path(folder, str(piece))
        if piece < 3 and not mark.exists():
            mark.touch()
            act()
        return piece

    return answer


def dying_once(folder: str) -> Callable[[int], int]:
    return once(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def failing_once(folder: str) -> Callable[[int], int]:
    def fail() -> None:
        raise RuntimeError("by chance")

    return once(folder, fail)


def slow_once(folder: str) -> Callable[[int], int]:
    return once(folder, lambda: time.sleep(600))


def late_once(folder: str) -> Callable[[int], int]:
    """The first who is at piece 2 takes so long that another is asked, and answers while that one goes on."""

    def answer(piece: int) -> int:
        mark = Path(folder, str(piece))
        if piece == 2 and not mark.exists():
            mark.touch()
            time.sleep(8)
        elif piece == 102:
            time.sleep(4)
        return piece

    return answer


def dying(value: None) -> Callable[[int], int]:
    def answer(piece: int) -> int:
        if piece == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

    return answer


def failing(error: Exception) -> Callable[[int], int]:
    def answer(piece: int) -> int:
        if piece == 5:
            raise error
        return piece

    return answer


REFUSED = DiffESError("here", expected="room", found="none", remedy="Make some.")


def napping(value: None) -> Callable[[int], int]:
    def answer(piece: int) -> int:
        time.sleep(0.2)
        return piece

    return answer


@dataclass(frozen=True)
class Standing:
    """An executor whose workers were there before, and stay."""

    workers: RayCrew

    @property
    def done(self) -> int:
        """Pieces so far."""
        return self.workers.figures.pieces

    @contextmanager
    def crew(self, reporter: Reporter) -> Iterator[Crew]:
        yield self.workers
