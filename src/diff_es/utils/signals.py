"""Signals that ask a process to end: Ctrl-C, the polite kill, and a terminal that closes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME = 1.0
"""Seconds within which another signal is the same wish: a terminal that closes sends several."""


class Listener:
    """Hears the signals that end the command, but those that whoever started it wants ignored (``nohup``).

    At first they end it at once: while modules are imported, nothing is to be undone, and an exception may meet C++
    code that ends in an abort. After :meth:`raise_interrupts` they raise KeyboardInterrupt, so that everything is
    undone on the way out.

    Args:
        leave: ends the process; called with the signal.
    """

    def __init__(self, leave: Callable[[signal.Signals], NoReturn]) -> None:
        self.heard: signal.Signals | None = None
        self._leave, self._raising, self._last = leave, False, -_SAME
        self._unraisable = sys.unraisablehook
        self._numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._numbers:
            signal.signal(number, self._hear)

    def raise_interrupts(self) -> None:
        """From now on something may have to be undone."""
        sys.unraisablehook = self._again
        self._raising = True

    def ignore(self) -> None:
        """The command has ended: nothing disturbs what is left to do."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: object) -> None:
        before, self._last = self._last, time.monotonic()
        self.heard = self.heard or signal.Signals(number)
        if not self._raising:
            self._leave(self.heard)
        if self._last - before >= _SAME:
            raise KeyboardInterrupt(self.heard.name)

    def _again(self, unraisable: Any) -> None:
        """Where Python can raise nothing, in a destructor, it drops an exception: ours is raised a moment later."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt) or self.heard is None:
            self._unraisable(unraisable)
            return
        self._last = -_SAME
        threading.Timer(0.05, os.kill, [os.getpid(), self.heard]).start()


@contextmanager
def deferred() -> Iterator[None]:
    """What must not be torn: signals that come meanwhile are heard at its end. Processes that are started inside never
    hear them: they end with whoever started them."""
    heard = list[int]()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    before = dict[int, Any]()
    if threading.current_thread() is threading.main_thread():  # where handlers run, whichever thread a signal reaches
        handlers = {number: signal.getsignal(number) for number in ENDING}
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
        for number in before:
            signal.signal(number, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in heard:
            signal.raise_signal(number)
