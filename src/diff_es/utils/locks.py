"""One process at a time: who works on a folder or a file holds it, and who comes second is told by whom it is held."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import StorageError


@contextmanager
def held_folder(folder: Path, patience: float = 0) -> Iterator[None]:
    """Hold a folder for this thread until the end of the block; blocks may be nested.

    A folder that is missing is made, and goes again if it is empty at the end. The lock is the system's: that of a
    process which died holds nothing.

    Args:
        patience: seconds to wait for another who holds it.

    Raises:
        StorageError: another process holds it, which the message names; or the disk refused.
    """
    with _held(folder.resolve() / ".diff-es.lock", folder, patience):
        yield


@contextmanager
def held_file(path: str | Path | None) -> Iterator[None]:
    """The same for a file, which may be missing; None is nothing to hold."""
    if path is None:
        yield
        return
    file = Path(path).resolve()
    with _held(file.with_name(f".{file.name}.lock"), file, 0):
        yield


@contextmanager
def _held(lock_file: Path, what: Path, patience: float) -> Iterator[None]:
    """Hold the lock that stands for ``what``.

    Who lets go removes the file first, while the lock is still held: whoever waits for it with the old file open finds
    it without a name, and begins again.
    """
    made = [folder for folder in lock_file.parents if not folder.exists()]
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file, is_singleton=True, fallback_to_soft=False)
        lock.acquire(timeout=patience)
    except Timeout as error:
        remedy = "Wait until it has ended, or choose another folder."
        expected = "no other run that works on it"
        raise StorageError(str(what), expected=expected, found=_holder(lock_file), remedy=remedy) from error
    except OSError as error:
        remedy = "Choose another folder, or free some space and run the same command again."
        raise StorageError(str(what), expected="room to write", found=str(error), remedy=remedy) from error
    try:
        if lock.lock_counter == 1:
            since = datetime.now().astimezone().isoformat(" ", "minutes")
            with suppress(OSError):  # a full disk: the lock holds without a name
                lock_file.write_text(f"process {os.getpid()} on {platform.node()}, since {since}", encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                lock_file.unlink()
        lock.release()
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _holder(lock_file: Path) -> str:
    """What the process that holds a lock wrote down about itself."""
    with suppress(OSError):
        if lock_file.is_file():
            with lock_file.open(encoding="utf-8", errors="replace") as file:
                return file.read(200).strip() or "another process"
    return "another process"
