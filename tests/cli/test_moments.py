"""A command that is killed, terminated, interrupted or hung up at any moment: nothing is lost, and nothing stays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.helpers.on_ray import two_nodes
from tests.helpers.tiny import tiny
from tests.helpers.warm import Run, Warm, used, warm, work

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to end
SETTINGS = (
    "--macs 0.8 --stages 2 --steps 4 --guidance 1 --batch 2 --calibration-samples 2 --generations 2 --population 4"
)
SETTINGS += " --search-noises 2 --first-rung 0 --held-out-noises 1 --finalists 2 --levels 3"
SETTINGS += " --levers prune --json --resume"


class Place:
    """A model, a folder for results in a folder of its own, and one for temporary files."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, root / "model"
        self.results, self.temporary, self.printed = (root / name for name in ("results", "temporary", "printed"))
        for folder in (self.results, self.temporary, self.printed):
            folder.mkdir()
        tiny(layers=1).save_pretrained(self.model)

    def arguments(self, name: str, *more: object) -> list[str]:
        return list(map(str, ["compress", self.model, "--out", self.results / name, *SETTINGS.split(), *more]))

    def scores(self, name: str) -> set[bytes]:
        """What a search has written down, but for a last line that was cut short."""
        journal = self.results / name / "journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else []
        return {line for line in lines if line.endswith(b"\n")}

    def hidden(self) -> set[str]:
        """Folders that are being written."""
        return {name for name in os.listdir(self.results) if name.startswith(".")}

    def result(self, name: str) -> Any:
        saved = json.loads((self.results / name / "diff-es.json").read_text())
        return saved["points"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Warm]:
    with warm(place.printed, place.temporary) as started:
        yield started


def check(place: Place, run: Run, number: signal.Signals) -> None:
    """How a command has ended that a signal has met, or not any more."""
    assert "Traceback" not in run.err
    assert "Warning" not in run.err
    if run.code == 0:
        return
    if number is signal.SIGKILL:
        assert run.code == -signal.SIGKILL
    else:
        told = json.loads(run.out.splitlines()[-1])["error"]
        assert (run.code, told["type"], told["found"]) == (128 + number, "Stopped", number.name), run
        assert run.err.splitlines()[-1] == f"Stopped by {number.name}. {told['remedy']}"
        assert run.err.count("Stopped") == 1
    assert os.listdir(place.temporary) == []


def nobody_lives(group: int, patience: float = 20) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_search_may_be_ended_at_any_moment(place: Place, server: Warm) -> None:
    """Each search is gone on with after each of its ends; 20 of them, at moments of a whole run."""
    whole, rng = server.run(*place.arguments("whole")), random.Random(0)
    assert whole.code == 0, whole
    name, search, ends = "0", 0, 0
    for turn in range(24):
        before, strays = place.scores(name), place.hidden()
        command = server.start(*place.arguments(name))
        work(command.pid, rng.uniform(0, whole.seconds))
        number = (*ASKED, signal.SIGKILL)[turn % 4]
        command.kill(number)
        run = command.ended()
        check(place, run, number)
        nobody_lives(command.pid)
        assert place.scores(name) >= before
        assert number is signal.SIGKILL or place.hidden() <= strays
        ends += run.code != 0
        if run.code == 0:
            assert place.result(name) == place.result("whole")
            search += 1
            name = str(search)
    assert ends >= 5
    assert server.run(*place.arguments(name)).code == 0
    assert place.result(name) == place.result("whole")
    assert place.scores(name) == place.scores("whole")


@pytest.mark.slow
def test_a_command_may_be_ended_while_it_imports(place: Place) -> None:
    """From the first line of ours on, in processes of their own: before, they are Python's."""
    rng, environment = random.Random(1), {**os.environ, "OMP_NUM_THREADS": "1"}

    def heard() -> None:
        """What a shell runs in the background ignores Ctrl-C, and the end of the shell where `nohup` does."""
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    for number in ASKED * 2:
        python = [sys.executable, "-m", "diff_es", *place.arguments("imports")]
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            python, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=heard, process_group=0
        )
        while not hears(child.pid):
            assert child.poll() is None
            time.sleep(0.002)
        work(child.pid, used(child.pid) + rng.uniform(0, 3))
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
        check(place, Run(child.returncode, 0, out, err), number)
        assert child.returncode == 128 + number
        assert err == f"Stopped by {number.name}. Run the same command again.\n"
        nobody_lives(child.pid)
        assert not place.scores("imports")


@pytest.mark.slow
def test_a_search_on_workers_may_be_ended_at_any_moment(place: Place, server: Warm) -> None:
    """At work, and while Ray starts: nothing is lost, nobody lives on, and nobody beyond this machine could have
    listened in."""
    rng, alone = random.Random(2), server.run(*place.arguments("alone"))
    assert alone.code == 0, alone
    for turn, number in enumerate((signal.SIGKILL, signal.SIGINT)):
        one = place.arguments("together", "--executor", "ray", "--workers", 1)
        before, command = place.scores("together"), server.start(*one)
        if turn == 0:
            at_work(place, before)
            assert listening(command.pid) == {"127.0.0.1"}
        else:
            time.sleep(rng.uniform(0, 6))
        family = descendants(command.pid)
        command.kill(number)
        run = command.ended()
        check(place, run, number)
        assert psutil.wait_procs(family, timeout=30)[1] == []
        assert place.scores("together") >= before
    assert folders_of_ray() == set()
    run = server.run(*place.arguments("together", "--workers", 2))
    assert (run.code, folders_of_ray()) == (0, set()), run
    told = json.loads(run.out.splitlines()[-1])["workers"]
    assert told["workers"] == 2
    assert 0 < told["utilisation"] < 1
    assert f"{told['pieces']} pieces by 2 workers" in run.err
    assert place.result("together") == place.result("alone")
    assert place.scores("together") == place.scores("alone")


@pytest.mark.slow
def test_ten_drivers_may_be_killed_in_one_search(place: Place, server: Warm) -> None:
    """On a cluster of two nodes that stays; each goes on where the one before was, to the result of one process."""
    longer = ("--generations", 6)
    assert server.run(*place.arguments("undisturbed", *longer)).code == 0
    rng = random.Random(3)
    with two_nodes(connect=False) as cluster:
        more = (*longer, "--executor", "ray", "--workers", 1, "--address", cluster.address)
        for turn in range(10):
            before, command = place.scores("killed"), server.start(*place.arguments("killed", *more))
            if turn in (2, 5, 8):
                at_work(place, before, "killed")
            else:
                time.sleep(rng.uniform(0, 2))  # mostly while its worker starts
            command.kill(signal.SIGKILL)
            assert command.ended().code in (0, -signal.SIGKILL)
            assert place.scores("killed") >= before
        assert server.run(*place.arguments("killed", *more)).code == 0
    assert place.result("killed") == place.result("undisturbed")
    assert place.scores("killed") == place.scores("undisturbed")


def at_work(place: Place, before: set[bytes], name: str = "together") -> None:
    """Wait for a score that was not there before."""
    deadline = time.monotonic() + 120
    while place.scores(name) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def descendants(pid: int) -> list[psutil.Process]:
    """Of a process, if it has not ended."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def listening(pid: int) -> set[str]:
    """Where a process and all that descend from it listen, without IPv6's prefix."""
    found = set[str]()
    for one in [psutil.Process(pid), *descendants(pid)]:
        with suppress(psutil.NoSuchProcess):
            sockets = [link for link in one.net_connections("inet") if link.status == psutil.CONN_LISTEN]
            found |= {link.laddr.ip.removeprefix("::ffff:") for link in sockets}
    return found


def folders_of_ray() -> set[Path]:
    """That our own clusters left behind, of processes that are gone for a moment."""
    deadline = time.monotonic() + 15
    while (found := {*Path("/tmp").glob("diff-es-ray-*")}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def hears(pid: int) -> bool:
    """Whether a process catches SIGHUP, the last for which it is prepared."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
