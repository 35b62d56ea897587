"""What runs in a worker process: it opens what is shared once, and answers piece by piece."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from traceback import format_exception
from typing import Any, Self

import torch

from ..utils.errors import DiffESError, out_of_memory
from .contract import Shared


@dataclass(frozen=True)
class Kind:
    """What results depend on in their last bits, of a worker."""

    device: str
    versions: tuple[str, ...]  # of diff-es, diffusers and torch


@dataclass(frozen=True)
class Answered:
    """A piece that was done, and the seconds that it took; of the first one, those of opening as well."""

    value: Any
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A piece that was not done."""

    error: DiffESError | None  # of ours, which doing it again does not mend
    trace: str
    memory: bool  # whether memory ran out
    peak: int  # bytes that the worker has taken at most


@dataclass(frozen=True)
class Arithmetic:
    """How PyTorch computes in a process, as far as it can be told to: results depend on it in their last bits.

    Args:
        threads: of each operation.
        matmul: the precision of float32 within products of matrices.
        convolution_tf32: whether convolutions of cuDNN may take TF32.
    """

    threads: int
    matmul: str
    convolution_tf32: bool

    @classmethod
    def own(cls) -> Self:
        """That of this process.

        Raises:
            DiffESError: it differs from operation to operation.
        """
        try:
            precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        except RuntimeError as error:
            expected, remedy = "one precision for all operations", "Set it by torch.set_float32_matmul_precision alone."
            raise DiffESError("workers", expected=expected, found="several", remedy=remedy) from error
        return cls(torch.get_num_threads(), *precision)

    def take(self) -> None:
        """Compute so in this process, too."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)
        torch.backends.cudnn.allow_tf32 = self.convolution_tf32


class Worker:
    """Answers pieces.

    Args:
        arithmetic: that of the process that asks.
        accelerated: whether it computes on a GPU.
    """

    def __init__(self, arithmetic: Arithmetic, accelerated: bool) -> None:
        arithmetic.take()
        self._device = "cuda" if accelerated else "cpu"
        self._opened: tuple[int, Callable[[Any], Any]] | None = None

    def kind(self) -> Kind:
        """What it computes on."""
        device = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        if self._device == "cuda":
            device = torch.cuda.get_device_name()
        return Kind(device, tuple(version(name) for name in ("diff-es", "diffusers", "torch")))

    def answer(self, number: int, shared: list[Any], there: Callable[[Any], Any], piece: Any) -> Answered | Failed:
        """One piece of the work of this number.

        Args:
            shared: a reference to what it opens its work from.
            there: as ``contract.Work`` has it.
        """
        began = time.monotonic()
        try:
            if self._opened is None or self._opened[0] != number:
                self._opened = None  # before the next takes memory
                self._opened = (number, there(_fetched(shared).opened(self._device)))
            return Answered(self._opened[1](piece), time.monotonic() - began)
        except Exception as error:
            trace = "".join(format_exception(error)).rstrip()
            return Failed(error if isinstance(error, DiffESError) else None, trace, out_of_memory(error), _peak())


def _fetched(shared: list[Any]) -> Shared:
    import ray

    found: Shared = ray.get(shared[0])
    return found


def _peak() -> int:
    """Bytes that this process has taken at most, of the device where it has one."""
    if torch.cuda.is_available() and (most := torch.cuda.max_memory_allocated()):
        return most
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
