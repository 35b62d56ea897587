"""Workers: any number gives the same answers; however one dies, the parent says how, at once, and nothing stays."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import loads

from diff_es import DiffESError, StorageError
from diff_es.utils.pool import Load, Workers

SHARED = bytes([100]) * (1 << 22)  # more than a pipe holds


OURS = partial(StorageError, "here", expected="room", found="none", remedy="Make some.")


def workers(*each: Load[int, Any], patience: float = 60) -> Workers[int, Any]:
    return Workers(lambda: memoryview(SHARED), each, patience)


def pipes() -> list[str]:
    """Pipes and sockets that this process holds."""
    links = [f"/dev/fd/{number}" for number in os.listdir("/dev/fd")]
    return sorted(
        name for name in map(os.readlink, filter(os.path.lexists, links)) if name.startswith(("pipe", "sock"))
    )


@pytest.fixture(autouse=True)
def nothing_stays(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[None]:
    """No process, no file, no descriptor, and not one line on the terminal."""
    resource_tracker.ensure_running()
    gc.collect()
    before = pipes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        yield
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []
    assert pipes() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [1, 3])
def test_every_job_is_answered_once(count: int) -> None:
    pool = workers(*[loads.adding] * count)
    for jobs in (range(40), range(7), ()):
        answers = dict(pool.answers(list(jobs)))
        assert {job: answer for job, (answer, _) in answers.items()} == {job: job + 100 for job in jobs}
        assert len({pid for _, pid in answers.values()}) <= count
    assert len(multiprocessing.active_children()) == count
    pool.close()


def refused(pool: Workers[int, Any], *told: str) -> DiffESError:
    with pytest.raises(DiffESError) as caught:
        list(pool.answers(range(2000)))
    for part in told:
        assert part in str(caught.value)
    assert multiprocessing.active_children() == []
    return caught.value


def test_one_that_dies_while_it_starts_is_told_by_what_ended_it() -> None:
    """Beside one that starts, and alone; with more to share than a pipe holds."""
    for others in ([], [loads.adding]):
        died = partial(loads.dying, signal.SIGKILL)
        refused(
            workers(*others, died), "workers: expected living processes, found one that died while it started (signal"
        )
        refused(
            workers(*others, partial(loads.dying, signal.SIGSEGV)), "signal 11, Segmentation fault", "fewer workers"
        )
        refused(workers(*others, partial(loads.leaving, 3)), "(exit code 3)", '`if __name__ == "__main__":`')


def test_one_that_cannot_load_says_why() -> None:
    told = "workers: expected processes that load the study, found one that failed: "
    refused(workers(partial(loads.failing, partial(KeyError, "of ours"))), told + "KeyError: 'of ours'")
    refused(
        workers(partial(loads.failing, partial(loads.Unpicklable, 1, 2))),
        told + "tests.helpers.loads.Unpicklable: only this",
    )
    gone = refused(workers(partial(loads.using, loads.Gone())), told + "ModuleNotFoundError: No module named 'no_such")
    assert "Traceback" in str(gone.__cause__)
    told = "here: expected room, found none. Make some."
    assert refused(workers(partial(loads.failing, OURS)), told).remedy == "Make some."


def test_errors_of_a_job_are_the_parents() -> None:
    refused(workers(partial(loads.failing_later, OURS)), "here: expected room, found none. Make some.")
    short = partial(RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
    with pytest.raises(MemoryError, match="tried to allocate 12 bytes"):
        list(workers(partial(loads.failing_later, short)).answers([1]))
    for bug in (partial(KeyError, "a bug"), partial(loads.Unpicklable, 1, 2)):
        told = r"in a worker\nTraceback(.|\n)*in answer(.|\n)*" + bug.func.__name__
        with pytest.raises(RuntimeError, match=told):
            list(workers(partial(loads.failing_later, bug)).answers([1]))


def test_one_that_hangs_costs_its_help_alone() -> None:
    pool = workers(loads.stuck, loads.adding)
    assert sorted(job for job, _ in pool.answers(range(9))) == list(range(9))
    pool.close()
    told = "workers: expected a process that is ready, found none after 0.5 seconds. See whether"
    refused(workers(loads.stuck, loads.stuck, patience=0.5), told)


def test_one_killed_at_a_job_is_named_and_the_next_jobs_have_others() -> None:
    pool = workers(loads.adding, loads.adding)
    for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGKILL):
        with pytest.raises(DiffESError, match=rf"found one that died \(signal {number:d}, .*--resume"):
            list(pool.answers([1, -number, 2, 3]))
    for pid in {pid for _, (_, pid) in pool.answers([1, 2, 3])}:  # between jobs
        os.kill(pid, signal.SIGKILL)
    refused(pool, "found one that died (signal 9")
    assert len(list(pool.answers([1, 2]))) == 2
    pool.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_parent_is_left_to_the_parent(number: signal.Signals) -> None:
    """A terminal and a service manager send these to all processes at once."""
    pool = workers(loads.adding, loads.adding)
    assert sorted(answer for _, (answer, _) in pool.answers([1, -number, 2])) == sorted([101, 102, 100 - number])
    pool.close()


def test_a_folder_without_room_is_named(tmp_path: Path) -> None:
    told = f"{tmp_path / 'none'}: expected room for 4.19 MB more, found none (No such file or directory)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        refused(workers(loads.adding), told, "TMPDIR")


def test_answers_that_nobody_waits_for_are_not_given_to_later_jobs() -> None:
    pool = workers(loads.adding, loads.adding)
    answers = pool.answers(range(20))
    next(answers)
    answers.close()
    assert {job for job, _ in pool.answers([30, 31])} == {30, 31}
    pool.close()


def test_a_pool_that_is_let_go_ends_and_so_does_one_in_a_thread() -> None:
    assert len(list(workers(loads.adding).answers([1]))) == 1
    assert multiprocessing.active_children() == []
    found = list[Any]()
    thread = threading.Thread(target=lambda: found.extend(workers(loads.adding).answers([1, 2])))
    thread.start()
    thread.join(60)
    assert len(found) == 2


SCRIPT = """
import multiprocessing, os, signal, sys
from diff_es.utils.pool import Workers
from tests.helpers import loads
if __name__ == "__main__":
    other = loads.stuck if int(sys.argv[1]) in (0, signal.SIGINT) else loads.adding
    pool = Workers(lambda: memoryview(bytes(1 << 22)), [loads.adding, other])
    list(pool.answers([1]))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, 0])
def test_workers_end_with_their_parent_in_silence(number: int, tmp_path: Path) -> None:
    """Where it has a last word, one that is stopped, too; 0: it comes to its end without closing them."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    roots = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "TMPDIR": str(tmp_path)}
    python = [sys.executable, str(script), str(int(number))]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, timeout=60)
    script.unlink()
    pids, deadline = list(map(int, done.stdout.split())), time.monotonic() + 20
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.02)
    assert len(pids) == 2
    assert "KeyboardInterrupt" in done.stderr if number == signal.SIGINT else done.stderr == ""
