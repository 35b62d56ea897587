"""Files that are written whole or not at all, and what is refused before any work is done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import StorageError

REPLACE = "Choose another folder, or free some space and run the same command again."


def digest(values: Any) -> str:
    """The hash of JSON values, in whichever order objects have their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_size(path: Path, most: int) -> None:
    """Refuse to read what could go on for ever.

    Raises:
        OSError: there is no such file, it is no regular one, or it has more than ``most`` bytes.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file")
    if size > most:
        raise OSError(errno.EFBIG, f"{size} bytes, where there can be no more than {most}")


def exchange_text(path: Path, text: str) -> None:
    """Replace a file's text in one step; it is on the disk when this returns.

    Raises:
        OSError: the disk refused; the old file, if any, is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    data = text.encode("utf-8", "replace")  # it may name files whose names are no text
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step, in a folder that is made where it is missing.

    Raises:
        StorageError: the disk refused; the old file, if any, is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exchange_text(path, text)
    except OSError as error:
        raise StorageError(
            str(path), expected="a file that can be written", found=str(error), remedy=REPLACE
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is missing.

    Raises:
        StorageError: the disk refused, or there is a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(str(folder), expected="a folder", found=str(error), remedy=REPLACE) from error


def check_outputs(folder: Path, *files: str) -> None:
    """Refuse, before any work is done, a folder that cannot be made or written to, or in which something else has the
    name of one of these files. Nothing is left behind.

    Raises:
        StorageError: the disk refuses, or there is a file, a device or a folder of such a name.
    """
    made = list[Path]()
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / name for name in files):
            if path.exists() and not path.is_file():
                raise StorageError(str(path), expected="a file", found="something else", remedy=REPLACE)
    except OSError as error:
        there = os.path.isfile(folder)
        expected, found = ("a folder", "a file") if there else ("a folder to write to", str(error))
        raise StorageError(str(folder), expected=expected, found=found, remedy=REPLACE) from error
    finally:
        with suppress(OSError):  # another run has begun to write there
            for part in reversed(made):
                part.rmdir()
