"""The options of all commands whose work falls into independent pieces: who does them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

import typer

from ..execution import Executor, InProcess, OnRay


class On(StrEnum):
    """Names of executors."""

    PROCESS = "process"
    RAY = "ray"


@dataclass(frozen=True)
class ExecutorOptions:
    """Who works."""

    title: ClassVar = "Who works"

    on: Annotated[On, typer.Option("--executor", help="Who works: this process, or workers of a Ray cluster.")] = (
        On.PROCESS
    )
    workers: Annotated[int | None, typer.Option(help="Processes of --executor ray, which is the default then.")] = None
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; default one of this machine, for the time being.")
    ] = None
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPUs of each worker, or a part of one.")] = None
    mixed: Annotated[bool, typer.Option("--mixed", help="Let devices of several kinds work together.")] = False

    def chosen(self) -> Executor:
        """As the library takes it.

        Raises:
            DiffESError: a number that makes no sense.
        """
        told = (self.workers not in (None, 1), self.address is not None, self.gpus_per_worker is not None, self.mixed)
        if self.on is On.PROCESS and not any(told):
            return InProcess()
        workers = OnRay.workers if self.workers is None else self.workers
        return OnRay(workers, self.address, self.gpus_per_worker, self.mixed)
