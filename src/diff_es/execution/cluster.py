"""A Ray cluster to work on: one that runs, by its address, or one of this machine's own, which only it can reach."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..utils.errors import FOREIGN, DiffESError, said

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""What makes Ray take 127.0.0.1 for this machine's address where it is "0", as it does on Windows: all of its processes
then listen there alone. Read when Ray is imported."""
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
        remedy = "pip install 'diff-es[ray]'"
        raise DiffESError("executor", expected="Ray, for workers", found="none", remedy=remedy)
    if address is None and "ray" not in sys.modules:
        os.environ.setdefault(_LOOPBACK, "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    before, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    folder = None if address else _folder()
    try:
        _init(ray, address, workers, folder)
        sys.excepthook = hook
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray takes it for itself
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _init(ray: Any, address: str | None, workers: int, folder: Path | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        try:
            ray.init(address=address, **quiet)
        except FOREIGN as error:
            remedy = "See that it runs (`ray status`), that it can be reached from here, and RAY_AUTH_TOKEN."
            raise DiffESError(
                f"address {address}", expected="a Ray cluster", found=said(error), remedy=remedy
            ) from error
        return
    if not _on_loopback(ray):
        remedy = f"Set {_LOOPBACK}=0 before Ray is imported, or start a cluster and give its address."
        found = "one that other machines could reach"
        raise DiffESError("executor", expected="a cluster of this machine alone", found=found, remedy=remedy)
    try:
        ray.init(num_cpus=workers, include_dashboard=False, _temp_dir=str(folder), **quiet)
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
