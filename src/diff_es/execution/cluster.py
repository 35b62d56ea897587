"""A Ray cluster to work on: one that runs, by its address, or one of this machine's own, which only it can reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..utils.errors import FOREIGN, DiffESError, Extra, said
from ..utils.signals import deferred

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""What makes Ray take 127.0.0.1 for this machine's address where it is "0", as it does on Windows: all of its processes
then listen there alone. Read when Ray is imported."""
_HERE = ("127.", "localhost:")
OWN = {
    _LOOPBACK: "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as this process has it
}
"""The environment of a cluster of this machine's own, and of who works on it."""
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
_LONGEST = 30
"""Characters of a temporary folder, beside which a socket's path is not too long."""


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster for a ``with`` block; whoever is connected already stays so.

    Args:
        address: of a running cluster, or "auto" for that of this machine; None: one is started for the time being.
        workers: that the started one is to have room for.

    Raises:
        DiffESError: Ray is not there, cannot start or be reached, or would listen beyond this machine.
    """
    if find_spec("ray") is None:
        raise DiffESError("executor", expected="Ray, for workers", found="none", remedy=Extra.RAY.remedy)
    if (address is None or address.startswith(_HERE)) and "ray" not in sys.modules:
        for name, value in OWN.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        with _initialised(ray, partial(_join, ray, address)):
            yield ray
        return
    if not _on_loopback(ray):
        remedy = f"Set {_LOOPBACK}=0 before Ray is imported, or start a cluster and give its address."
        found = "one that other machines could reach"
        raise DiffESError("executor", expected="a cluster of this machine alone", found=found, remedy=remedy)
    folder = _folder()
    with _watched(folder), _initialised(ray, partial(_start, ray, workers, folder)):
        yield ray


@contextmanager
def _initialised(ray: Any, init: Callable[[], None]) -> Iterator[None]:
    """Ray while it is connected; what it takes for itself in this process is given back."""
    before, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    try:
        init()
        sys.excepthook = hook
        if before is not None and threading.current_thread() is threading.main_thread():  # as Ray takes it there alone
            signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, **_QUIET)
    except FOREIGN as error:
        expected, remedy = "a Ray cluster", "See that it runs (`ray status`) and can be reached, and RAY_AUTH_TOKEN."
        raise DiffESError(f"address {address}", expected=expected, found=said(error), remedy=remedy) from error


def _start(ray: Any, workers: int, folder: Path) -> None:
    try:
        ray.init(num_cpus=workers, include_dashboard=False, _temp_dir=str(folder), **_QUIET)
    except FOREIGN as error:
        remedy = "See whether the machine has memory and room in /dev/shm; or leave `--executor ray` out."
        raise DiffESError("executor", expected="a Ray cluster that starts", found=said(error), remedy=remedy) from error


def _on_loopback(ray: Any) -> bool:
    """Whether Ray's processes would listen to this machine alone."""
    return not ray._private.ray_constants.ENABLE_RAY_CLUSTER


def _folder() -> Path:
    """For what Ray writes while it runs."""
    own = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="diff-es-ray-", dir=own if len(own) <= _LONGEST else "/tmp"))


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """With somebody who ends the processes that were started meanwhile, and removes the folder, when this process ends
    or the block does. Ray's own end with it, but some of them only after a minute."""
    command = [sys.executable, str(Path(__file__).with_name("watchdog.py")), str(os.getpid()), str(folder)]
    with deferred():
        watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    with watchdog:  # its end closes the pipe, and waits
        yield
