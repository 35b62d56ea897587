"""A small process that ends the helpers of another one, and removes their folder, when that one ends, however it ends.

It is run as a script, and imports nothing of the package: it has to be there before anything can go wrong.
"""

from __future__ import annotations

import select
import shutil
import sys
import time
from contextlib import suppress

import psutil

_LOOK = 0.5
"""Seconds between two looks at who is there."""


def watch(parent: int, folder: str) -> None:
    """Until standard input ends, which the parent holds, remember its processes that work in the folder, and all that
    descends from them; then end those.

    A process is known by its number and by when it began, so that no stranger is ended that got a number anew.
    """
    known = set[psutil.Process]()
    while not select.select([sys.stdin], [], [], _LOOK)[0]:
        known |= _with_descendants(_working(parent, folder) | known)
    known |= _with_descendants(known)
    for one in known:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    deadline = time.monotonic() + 10
    while any(map(_lives, known)) and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


def _lives(one: psutil.Process) -> bool:
    """Whether a process runs; of one that has ended, its parent may not have heard yet."""
    with suppress(psutil.NoSuchProcess):
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    return False


def _working(parent: int, folder: str) -> set[psutil.Process]:
    """Descendants whose command names the folder, as this one's does."""
    found, own = set[psutil.Process](), psutil.Process()
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(parent).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found |= {one} if one != own and any(folder in part for part in one.cmdline()) else set()
    return found


def _with_descendants(roots: set[psutil.Process]) -> set[psutil.Process]:
    found = {*roots}
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found |= {*root.children(recursive=True)}
    return found


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
