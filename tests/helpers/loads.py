"""What the workers of tests load: nothing that takes long."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def adding(path: str) -> Callable[[int], tuple[int, int]]:
    """Adds the first byte of what is shared; says who did it. Negative jobs are signals to itself."""
    base = Path(path).read_bytes()[0]

    def answer(job: int) -> tuple[int, int]:
        if job < 0:
            os.kill(os.getpid(), -job)
        time.sleep(0.01)
        return job + base, os.getpid()

    return answer


def failing(error: Callable[[], BaseException], path: str) -> Callable[[int], int]:
    raise error()


def failing_later(error: Callable[[], BaseException], path: str) -> Callable[[int], int]:
    def answer(job: int) -> int:
        raise error()

    return answer


def dying(number: int, path: str) -> Callable[[int], int]:
    os.kill(os.getpid(), number)
    raise AssertionError("it lives")


def leaving(code: int, path: str) -> Callable[[int], int]:
    os._exit(code)


def stuck(path: str) -> Callable[[int], int]:
    os.kill(os.getpid(), signal.SIGSTOP)
    sys.exit("it went on")


class Unpicklable(Exception):
    """Cannot be made from its text."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("only this")


class Gone:
    """Pickled by a name that the worker does not find."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return _import, ("no_such_module",)


def _import(name: str) -> object:
    return __import__(name)


def using(what: object, path: str) -> Callable[[int], int]:
    raise AssertionError("it was found")
