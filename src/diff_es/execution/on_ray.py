"""The choice of a Ray cluster's workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..utils.arguments import Text, checked
from ..utils.limits import Positive, Workers
from ..utils.progress import Reporter
from .cluster import connected
from .contract import Crew
from .ray_crew import RayCrew
from .ray_worker import Arithmetic


@checked("")
@dataclass(frozen=True)
class OnRay:
    """Workers of a Ray cluster, each with a pipeline of its own.

    Args:
        workers: processes; each takes one of the cluster's logical CPUs.
        address: of a running cluster; None: one is started for the time being, which this machine alone can reach.
        gpus_per_worker: of the cluster's GPUs, or a part of one; None: one, where the pipeline is on a GPU.
        mixed: whether devices of several kinds may compute together. Their results differ in the last bits, so that
            what a search finds then depends on who scored what.
        patience: seconds until a first worker has to be ready.
    """

    workers: Workers = 2
    address: Text | None = None
    gpus_per_worker: Positive | None = None
    mixed: bool = False
    patience: Positive = 600.0

    @contextmanager
    def crew(self, reporter: Reporter) -> Iterator[Crew]:
        """The workers, who start with a first piece.

        Raises:
            DiffESError: as :func:`connected` says.
        """
        with connected(self.address, self.workers) as ray:
            crew = RayCrew(ray, self, Arithmetic.own(), reporter)
            try:
                yield crew
            finally:
                crew.close()
        crew.tell()
