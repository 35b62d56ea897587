"""Progress with an ETA: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from pydantic import JsonValue
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


class Course:
    """How far a run of several tasks is, of each of which it was foretold how long it takes.

    What is left is foretold anew as it goes on: by how much longer than foretold took what is done.

    Args:
        foretold: of each task by its name the seconds after each of its units, or of as many equal parts as there are;
            tasks of other names are not counted.
    """

    def __init__(self, foretold: Mapping[str, Sequence[float]]) -> None:
        self._of = {task: after for task, after in foretold.items() if after}
        self._left = {task: after[-1] for task, after in self._of.items()}
        self._start, self._total, self._done = time.monotonic(), sum(self._left.values()), 0.0  # as it was foretold
        self._now = ""

    def spent(self, task: str, share: float) -> float:
        """The share of a task's time, by which this share of its units is done."""
        after = self._of.get(task, (1.0,))
        done = min(share, 1.0) * len(after)
        unit = min(int(done), len(after) - 1)
        before = after[unit - 1] if unit else 0.0
        return (before + (done - unit) * (after[unit] - before)) / after[-1] if after[-1] else share

    def reached(self, task: str, share: float) -> float:
        """Seconds that are left of all, where this share of a task's units is done, and everything before it."""
        if task != self._now:
            self._done, self._now = self._done + self._left.pop(self._now, 0.0), task
        own = self._left.get(task, 0.0) * self.spent(task, share)
        ahead = sum(self._left.values()) - own
        seen = time.monotonic() - self._start
        doubt = 0.1 * self._total  # by which the first seconds say little
        return ahead * (seen + doubt) / max(1e-9, self._done + own + doubt)


class _Silent:
    def advance(self, note: str = "") -> None:
        pass


def _of_all(course: Course | None, task: str, done: float, total: int) -> str:
    """What is left of a whole course, in words, where so many units of this task are done."""
    return "" if course is None else f"all: {duration(course.reached(task, done / max(1, total)))} to go"


class _Bar:
    def __init__(self, bar: Progress, description: str, total: int, course: Course | None) -> None:
        self._bar, self._id = bar, bar.add_task(description, total=total, note="")
        self._description, self._total, self._course = description, total, course

    def advance(self, note: str = "") -> None:
        (shown,) = self._bar.tasks
        whole = _of_all(self._course, self._description, shown.completed + 1, self._total)
        self._bar.update(self._id, advance=1, note=f"{note} {whole}".strip())


class _Lines:
    """A line when it starts, about every ten seconds, and when it ends."""

    def __init__(self, description: str, total: int, stream: TextIO, course: Course | None) -> None:
        self._description, self._total, self._stream, self._course = description, total, stream, course
        self._done, self._start = 0, time.monotonic()
        self._last = self._start
        self._show(f"{description}: {total} to do")

    def advance(self, note: str = "") -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last > 10 or self._done == self._total:
            self._last, spent = now, now - self._start
            share = self._done / self._total
            part = 0.0 if self._course is None else self._course.spent(self._description, share)
            part = part or share  # where these units were to take no time, and do
            eta = spent * (1 - part) / part
            whole = _of_all(self._course, self._description, self._done, self._total)
            line = f"{self._description}: {self._done}/{self._total}, {spent:.0f} s, {eta:.0f} s to go {note}"
            self._show(f"{line.rstrip()} {whole}".rstrip())

    def _show(self, line: str) -> None:
        """In one piece: a signal would come between a line and its end, which ``print`` writes one after the other."""
        self._stream.write(f"{line}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """As people say it."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


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
        self.quiet, self._console = quiet, Console(stderr=True, markup=False, emoji=False)
        self._course: Course | None = None
        self.figures = dict[str, JsonValue]()  # what was found of a run itself, for whoever prints JSON

    def follow(self, course: Course | None) -> None:
        """Show beside each task how long all of them still take; None: no longer."""
        self._course = course

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """A piece of work of ``total`` units, for a ``with`` block."""
        if self.quiet:
            yield _Silent()
        elif not self._console.is_terminal:
            yield _Lines(description, total, sys.stderr, self._course)
        else:
            with Progress(*_columns(self._console.width), console=self._console) as bar:
                yield _Bar(bar, description, total, self._course)

    def warn(self, text: str) -> None:
        """What the user has to know of: one line of text or, where quiet, a Python warning."""
        if self.quiet:
            warnings.warn(text, stacklevel=2)
        else:
            self._console.print(f"Warning: {text}", highlight=False)

    def say(self, text: str) -> None:
        """One line of text."""
        if not self.quiet:
            self._console.print(text, highlight=False)
