"""Progress with an ETA: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from .arguments import checked


class Task(Protocol):
    """One running piece of work."""

    def advance(self, note: str = "") -> None:
        """One more unit is done; ``note`` is shown beside the bar."""


class _Silent:
    def advance(self, note: str = "") -> None:
        pass


class _Bar:
    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self._bar, self._id = bar, bar.add_task(description, total=total, note="")

    def advance(self, note: str = "") -> None:
        self._bar.update(self._id, advance=1, note=note)


class _Lines:
    """A line when it starts, about every ten seconds, and when it ends."""

    def __init__(self, description: str, total: int, stream: TextIO) -> None:
        self._description, self._total, self._stream = description, total, stream
        self._done, self._start = 0, time.monotonic()
        self._last = self._start
        print(f"{description}: {total} to do", file=stream, flush=True)

    def advance(self, note: str = "") -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last > 10 or self._done == self._total:
            self._last, spent = now, now - self._start
            eta = spent / self._done * (self._total - self._done)
            line = f"{self._description}: {self._done}/{self._total}, {spent:.0f} s, {eta:.0f} s to go {note}"
            print(line.rstrip(), file=self._stream, flush=True)


_NAME = 16
"""The fewest characters to a line of a name that takes several."""


def _columns(width: int) -> Iterator[ProgressColumn]:
    """What a terminal of so many columns has room for, beside the whole name of the work and how far it is."""
    whole = Column(no_wrap=True)
    yield TextColumn(
        "{task.description}",
        markup=False,
        table_column=whole if width >= 80 else Column(min_width=_NAME, overflow="fold"),
    )
    if width >= 80:
        yield BarColumn(bar_width=None)
    yield MofNCompleteColumn(table_column=whole)
    if width >= 80:
        yield TimeElapsedColumn(table_column=whole)
        yield TextColumn("ETA", table_column=whole)
    if width >= 60:
        yield TimeRemainingColumn(table_column=whole)
    if width >= 40:
        yield TextColumn("{task.fields[note]}", markup=False, table_column=whole)


@checked()
class Reporter:
    """Shows progress on standard error.

    Args:
        quiet: show nothing at all, the default of the Python interface.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._console = quiet, Console(stderr=True, markup=False, emoji=False)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """A piece of work of ``total`` units, for a ``with`` block."""
        if self._quiet:
            yield _Silent()
        elif not self._console.is_terminal:
            yield _Lines(description, total, sys.stderr)
        else:
            with Progress(*_columns(self._console.width), console=self._console) as bar:
                yield _Bar(bar, description, total)

    def warn(self, text: str) -> None:
        """What the user has to know of: one line of text or, where quiet, a Python warning."""
        if self._quiet:
            warnings.warn(text, stacklevel=2)
        else:
            self._console.print(f"Warning: {text}", highlight=False)

    def say(self, text: str) -> None:
        """One line of text."""
        if not self._quiet:
            self._console.print(text, highlight=False)
