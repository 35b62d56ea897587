"""Killed at any operation on files: what was saved or scored before is there, and the same command goes on with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.mutations import in_child
from tests.helpers.tiny import assert_same_plans, settings, tiny
from torch import Tensor

from diff_es import Compressed, Run, StorageError, compress, load
from diff_es.compression import store
from diff_es.compression.store import MANIFEST, check_target, read_folder, write_folder
from diff_es.scoring.journal import Journal, Scale
from diff_es.search import Candidate
from diff_es.utils.files import digest
from diff_es.utils.locks import held_file, held_folder

SETTINGS = {"seed": 1}
SCORES = {Candidate.of([[i], [i + 1]]): i / 3 for i in range(3)}
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}


class Killer:
    """Ends this process, as SIGKILL does, at its nth operation on files below a folder; what was being written is then
    incomplete."""

    def __init__(self, folder: Path, n: int) -> None:
        self.count, self._folder, self._n = 0, str(folder), n
        disk: Any = store
        system: Any = os
        write, sync = disk.save_file, os.fsync

        def save_file(tensors: dict[str, Tensor], path: Path) -> None:
            write(tensors, path)
            self._step(lambda: os.truncate(path, path.stat().st_size // 2))

        def fsync(fd: int) -> None:
            self._step(lambda: os.truncate(fd, os.fstat(fd).st_size - 5))
            sync(fd)

        disk.save_file, system.fsync = save_file, fsync
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (written or event in EVENTS) and str(args[0]).startswith(self._folder):
            self._step()

    def _step(self, half: Callable[[], None] = lambda: None) -> None:
        self.count += 1
        if self.count == self._n:
            with suppress(OSError):  # it is open for reading only
                half()
            os._exit(9)


Tell = Callable[[object], object]


def killed(folder: Path, n: int, work: Callable[[Tell], object]) -> tuple[bool, list[Any]]:
    """Whether a process was killed at its nth operation below ``folder``, and what it had told until then."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Killer(folder, n)
            work(lambda said: os.write(writes, json.dumps(said).encode() + b"\n"))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads) as file:
        told = [json.loads(line) for line in file]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9, told


def tensors(run: int) -> dict[str, dict[str, Tensor]]:
    return {f"plan-{i:02d}": {"x": torch.full((50,), run)} for i in range(2)} | {f"plan-1{run}": {}}


def session(out: Path, run: int, tell: Tell) -> None:
    """What ``diff-es compress --resume`` does to files."""
    check_target(out)
    with held_folder(out):
        journal = Journal(out / "journal.jsonl", SETTINGS, resume=True)
        for candidate, score in SCORES.items():
            if candidate not in journal.known[Scale.ALL]:
                journal.add(candidate, score)
                tell(candidate.to_json())
        write_folder(out, tensors(run), lambda _: {"run": run})
        tell("saved")


def names(folder: Path) -> set[str]:
    """The files below a folder, hidden ones too, without what follows from their contents."""
    return {re.sub(r"\.[0-9a-f]{16}\.", ".", str(path.relative_to(folder))) for path in folder.rglob("*")}


FILES = {"out", f"out/{MANIFEST}", "out/journal.jsonl", "out/plan-00.safetensors", "out/plan-01.safetensors"}


def nothing(out: Path) -> None:
    """No folder."""


def saved(out: Path) -> None:
    """A finished session."""
    session(out, 1, lambda _: None)


def by_an_earlier_version(out: Path) -> None:
    """A finished session, as earlier versions left it."""
    saved(out)
    manifest = json.loads((out / MANIFEST).read_text())
    for name in list(manifest["files"]):
        plain = name.partition(".")[0] + ".safetensors"
        (out / name).rename(out / plain)
        manifest["files"][plain] = manifest["files"].pop(name)
    del manifest["sha256"]
    (out / MANIFEST).write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    unchecked = [{key: line[key] for key in line if key not in ("sha256", "check")} for line in lines]
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in unchecked))
    assert read_folder(out)[1]["run"] == 1


def half_scored(out: Path) -> None:
    """A journal of two scores, the second cut short."""
    out.mkdir()
    journal = Journal(out / "journal.jsonl", SETTINGS, resume=False)
    for candidate, score in list(SCORES.items())[:2]:
        journal.add(candidate, score)
    os.truncate(out / "journal.jsonl", (out / "journal.jsonl").stat().st_size - 5)


def in_journal(out: Path) -> int:
    """How many scores a journal holds, were it read as it is."""
    path = out / "journal.jsonl"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


@pytest.mark.parametrize("begin", [nothing, saved, by_an_earlier_version, half_scored])
def test_a_session_killed_at_any_operation_goes_on(tmp_path: Path, begin: Callable[[Path], None]) -> None:
    n, dead = 0, True
    while dead:
        n += 1
        folder = tmp_path / str(n)
        folder.mkdir()
        out = folder / "out"
        begin(out)
        had, known = (out / MANIFEST).exists(), in_journal(out)
        dead, told = killed(folder, n, lambda tell, out=out: session(out, 2, tell))  # type: ignore[misc]
        finished = "saved" in told
        if had or finished:
            run = read_folder(out)[1]["run"]
            assert run == 2 if finished else run in (1, 2)
        assert in_journal(out) >= known + len(told) - finished
        again = list[Any]()
        session(out, 3, again.append)
        assert len(again) - 1 <= len(SCORES) - known - (len(told) - finished)  # what was scored is not scored again
        journal = Journal(out / "journal.jsonl", SETTINGS, resume=True)
        assert journal.known[Scale.ALL] == SCORES
        assert journal.dropped == 0
        found, manifest = read_folder(out)
        assert manifest["run"] == 3
        assert all(torch.equal(found[stem]["x"], group["x"]) for stem, group in tensors(3).items() if group)
        assert names(folder) == FILES | {"out/plan-13.safetensors"}
        shutil.rmtree(folder)
    assert n > 15


@pytest.mark.slow
def test_a_search_killed_again_and_again_finds_the_same(tmp_path: Path) -> None:
    few = settings(
        generations=2,
        population=3,
        finalists=1,
        search_noises=2,
        held_out_noises=1,
        calibration_samples=2,
        sensitivity_noises=1,
    )
    expected, out = compress(tiny(), 0.6, few), tmp_path / "out"

    def search(tell: Tell) -> None:
        check_target(out)
        with held_folder(out):
            compress(tiny(), 0.6, few, run=Run(journal=out / "journal.jsonl", resume=True)).save(out)
            tell("saved")

    assert [killed(tmp_path, n, search) for n in (1, 12, 41, 50, 14)].count((True, [])) > 3
    in_child(lambda: search(lambda _: None))
    found = load(out)
    assert found.schedule == expected.schedule
    assert found.report == expected.report
    assert_same_plans(found.plans, expected.plans)
    assert not [name for name in names(tmp_path) if "/." in name]


# ------------------------------------------------------------------------------------------------- beside one another


def holding(hold: Callable[[], AbstractContextManager[None]]) -> int:
    """A process that holds something until it is killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with hold():
            os.write(writes, b"held")
            time.sleep(600)
    os.close(writes)
    assert os.read(reads, 4) == b"held"
    os.close(reads)
    return child


@pytest.mark.parametrize("hold", [held_folder, held_file])
def test_a_second_run_is_refused_while_the_first_lives(
    tmp_path: Path, hold: Callable[[Path], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "out"
    child = holding(lambda: hold(path))
    try:
        message = rf"out: expected no other run that works on it, found process {child} on .*, since 20\d\d-.* Wait"
        with pytest.raises(StorageError, match=message), hold(path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with hold(path), hold(path):  # the dead hold nothing, and one run may hold twice
        pass
    assert names(tmp_path) <= {"out"}


def test_compress_refuses_a_journal_that_another_search_holds(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    child = holding(lambda: held_file(path))
    try:
        with pytest.raises(StorageError, match=rf"journal\.jsonl: expected no other run .* found process {child} on"):
            compress(tiny(), 0.6, settings(), run=Run(journal=path, resume=True))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not path.exists()


def test_what_is_read_while_another_process_saves_is_one_whole_artefact(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, tensors(1), lambda _: {"run": 1})
    child = os.fork()
    if child == 0:
        run = 1
        while True:
            run = 3 - run
            write_folder(out, tensors(run), lambda _, run=run: {"run": run})  # type: ignore[misc]
    try:
        seen = set()
        for _ in range(300):
            found, manifest = read_folder(out)
            run = manifest["run"]
            seen.add(run)
            assert found.keys() == tensors(run).keys()
            assert all(torch.equal(found[f"plan-{i:02d}"]["x"], torch.full((50,), run)) for i in range(2))
        assert seen == {1, 2}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: Compressed) -> None:
    """So a mount point or the working directory will do."""
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    for _ in range(2):
        fast.save(".")
    assert tmp_path.stat().st_ino == before
    assert load(tmp_path).schedule == fast.schedule
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_folder_made_to_be_held_goes_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), held_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert names(tmp_path) == set()
