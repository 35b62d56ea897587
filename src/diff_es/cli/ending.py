"""Every way in which a command ends, and its exit code."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AbstractContextManager, suppress
from types import TracebackType

import typer

from ..utils.errors import DiffESError, StorageError, out_of_memory
from ..utils.signals import Listener
from .stopped import Stopped, tell


class UsageError(DiffESError):
    """Options or arguments that the command does not take."""


class OutOfMemory(DiffESError):
    """Memory ran out, the device's or the machine's."""


class Ending(AbstractContextManager["Ending"]):
    """Runs a command to its end: bad input, a disk or memory that is full, and signals are one line each, a bug of ours
    is a traceback.

    Args:
        listener: who has heard signals; an exception that comes after one comes of it, whatever libraries made of it.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener

    def __enter__(self) -> Ending:
        if self._listener is not None:
            self._listener.raise_interrupts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        heard = None
        if self._listener is not None:
            self._listener.ignore()
            heard = self._listener.heard
        if isinstance(error, typer.Exit):
            _flush()
            sys.exit(error.exit_code)
        if error is None:
            _flush()
            return
        if isinstance(error, KeyboardInterrupt):
            heard = heard or signal.SIGINT
        said = refusal(error) if heard is None else Stopped(heard, *getattr(error, "__notes__", [])[-1:])
        _flush()
        if isinstance(error, BrokenPipeError) and heard is None:  # whoever read our output has had enough
            sys.exit(1)
        if said is not None:
            tell(said)
            sys.exit(said.exit_code if isinstance(said, Stopped) else 2)


def refusal(error: BaseException) -> DiffESError | None:
    """An error in our form; None where it is a bug of ours."""
    if isinstance(error, DiffESError):
        return error
    if isinstance(error, typer.TyperException):
        remedy = "`diff-es --help` names the commands, and `diff-es COMMAND --help` what each of them takes."
        expected, found = "a command and options that it takes", error.format_message().rstrip(".")
        return UsageError("command line", expected=expected, found=found, remedy=remedy)
    if out_of_memory(error):
        found = str(error).partition("\n")[0].rstrip(".") or "none left"
        remedy = "Take less --memory, a smaller --batch or fewer --workers, where the command has them."
        return OutOfMemory("memory", expected="room for what the command needs", found=found, remedy=remedy)
    if isinstance(error, OSError):
        where, found = str(error.filename or "files"), error.strerror or str(error)
        remedy = "See that it is there, yours, and on a disk with room."
        return StorageError(where, expected="what can be read and written", found=found, remedy=remedy)
    return None


def _flush() -> None:
    """What cannot be written any more is dropped here, where it disturbs nobody."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
