"""How a command says why it did not end well: one line for a person, and one JSON object for a program."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress

from ..utils.errors import DiffESError


class Stopped(DiffESError):
    """A signal has ended the command."""

    def __init__(self, number: signal.Signals, remedy: str = "Run the same command again.") -> None:
        super().__init__("diff-es", expected="to run to its end", found=number.name, remedy=remedy)
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return f"Stopped by {self.found}. {self.remedy}"


def tell(error: DiffESError) -> None:
    """Say it on standard error and, where ``--json`` was asked for, as the last line of standard output.

    Written to the descriptors themselves, because a signal may have come in the middle of a print.
    """
    kind = type(error).__name__
    line = str(error) if isinstance(error, Stopped) else f"error: {kind}: {error}"
    if sys.stderr is not None:
        _write(2, " ".join(line.split("\n")).encode(sys.stderr.encoding, sys.stderr.errors or "replace"))
    if sys.stdout is not None and "--json" in sys.argv:
        parts = {"where": error.where, "expected": error.expected, "found": error.found, "remedy": error.remedy}
        _write(1, json.dumps({"error": {"type": kind, **parts}}).encode())


def _write(descriptor: int, line: bytes) -> None:
    line += b"\n"
    with suppress(OSError):  # whoever read it has gone
        while line:
            line = line[os.write(descriptor, line) :]
