"""Many short runs of the command line: each is a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from diff_es.execution.cluster import OWN

_SERVE = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from diff_es import __main__, cli
from diff_es import compress
from tests.helpers.forks import share_no_lock
from tests.helpers.tiny import settings, tiny
share_no_lock()
compress(tiny(), 0.6, settings(generations=1))  # imports the rest
signal.signal(signal.SIGINT, signal.SIG_DFL)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        for number, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["diff-es", *asked["arguments"]]
        try:
            __main__.main()
        except SystemExit as ended:
            sys.stdout.flush()
            os._exit(ended.code or 0)
    print(pid, flush=True)
    _, status, used = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""


def used(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def work(pid: int, seconds: float) -> None:
    """Wait until a process has used so much of a processor, however many share it, or has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        while used(pid) < seconds:
            time.sleep(0.003)


class Run(NamedTuple):
    """How a command ended: its exit code, minus the signal where it was killed, and what it printed."""

    code: int
    seconds: float  # of a processor
    out: str
    err: str


class Command:
    """One that runs now."""

    def __init__(self, pid: int, server: subprocess.Popen[str], folder: Path) -> None:
        self.pid, self._server, self._folder = pid, server, folder

    def kill(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def ended(self) -> Run:
        assert self._server.stdout is not None
        code, seconds = self._server.stdout.readline().split()
        return Run(int(code), float(seconds), *((self._folder / name).read_text() for name in ("out", "err")))


class Warm:
    """A process that has imported everything, and forks."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder

    def start(self, *arguments: object) -> Command:
        asked = {
            "arguments": list(map(str, arguments)),
            "out": str(self._folder / "out"),
            "err": str(self._folder / "err"),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return Command(int(self._server.stdout.readline()), self._server, self._folder)

    def run(self, *arguments: object) -> Run:
        return self.start(*arguments).ended()


@contextmanager
def warm(folder: Path, temporary: Path) -> Iterator[Warm]:
    """``folder`` is for what the commands print, ``temporary`` their folder for temporary files."""
    pipe = subprocess.PIPE
    own = {name: value for name, value in os.environ.items() if name not in OWN}  # which the command sees to by itself
    environment, root = {**own, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}, Path(__file__).parents[2]
    python = [sys.executable, "-c", _SERVE]
    server = subprocess.Popen(python, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=root)
    with server:
        yield Warm(server, folder)
        assert server.stdin is not None
        server.stdin.close()
