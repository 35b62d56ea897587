"""Room for what is too much for memory, or for several processes: files in the temporary folder that have no name."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from typing import IO

from .errors import StorageError


def scratch(size: int, needed: int = 0) -> IO[bytes]:
    """A file of ``size`` bytes that are all there: writing to them, mapped or not, cannot fail for want of room.

    It has no name, so that nothing of it stays, however the process ends.

    Args:
        needed: bytes that are asked for in all, for the message, where this file is one of several.

    Raises:
        StorageError: the temporary folder has no room for it; nothing is left there.
    """
    try:
        file = tempfile.TemporaryFile(prefix="diff-es-", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _refused(max(size, needed), error) from error
    try:
        _reserve(file.fileno(), 0, size)
    except OSError as error:
        file.close()
        raise _refused(max(size, needed), error) from error
    return file


def extended(file: IO[bytes], start: int, size: int) -> None:
    """Have ``size`` more bytes of such a file there, from ``start`` on.

    Raises:
        StorageError: the temporary folder has no room for them.
    """
    try:
        _reserve(file.fileno(), start, size)
    except OSError as error:
        raise _refused(size, error) from error


def _reserve(descriptor: int, start: int, size: int) -> None:
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, start, max(size, 1))
        return
    zeros = bytes(1 << 20)
    for at in range(0, size, len(zeros)):
        os.pwrite(descriptor, zeros[: size - at], start + at)


def _refused(needed: int, error: OSError) -> StorageError:
    folder, free = tempfile.tempdir or "temporary folder", "none"
    with suppress(OSError):
        free = f"{shutil.disk_usage(folder).free / 1e6:.2f} MB"
    remedy = "Set the environment variable TMPDIR to a folder on a disk with room for it, or free some here."
    expected, found = f"room for {needed / 1e6:.2f} MB more", f"{free} ({error.strerror or error})"
    return StorageError(str(folder), expected=expected, found=found, remedy=remedy)
