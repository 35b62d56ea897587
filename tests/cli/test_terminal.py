"""What a command prints: on any terminal, whole at any width; and how it ends where it does not end well."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.evaluation.test_report import DENSE, row, story
from tests.helpers.tiny import tiny

from diff_es import Compressed, DiffESError
from diff_es.cli import tables
from diff_es.cli.app import main
from diff_es.cli.console import finish, print_anywhere
from diff_es.cli.ending import Ending
from diff_es.evaluation.inspection import inspect
from diff_es.pipelines.probes import bundled_prompts, read_prompts
from diff_es.utils.files import write_text
from diff_es.utils.progress import Reporter

WHERE = "down_blocks.{}.attentions.0.transformer_blocks.0.ff.net.0[proj]"


def test_a_command_whose_output_is_closed_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cron and daemons call it."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["diff-es", "--version"])
    finish({"some": 1}, as_json=True)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_text_that_names_odd_files_is_written(tmp_path: Path) -> None:
    """Names of files that are no text come with surrogates in place of their bytes."""
    write_text(tmp_path / "page.html", os.fsdecode(b"of l\xe9"))
    assert (tmp_path / "page.html").read_text() == "of l?"


@cache
def inspection() -> dict[str, Any]:
    """Of a tiny model, under the names of a large one; some layers timed, one refused."""
    found: dict[str, Any] = inspect(tiny(), 8, Reporter(quiet=True))
    units = [{**unit, "name": WHERE.format(i)} for i, unit in enumerate(found["units"])]
    timed = [{"layers": [WHERE.format(9)], "ratios": [1, *[0.9, 0.5] * 3], "slower": [False, *[True, False] * 3]}]
    refused = [{"name": WHERE.format(8), "reason": "expected heads of one width, found 8 and 16"}]
    never = [WHERE.format(7)]
    seconds = {"width_seconds": [12.3456] * 8}
    return {**found, **seconds, "units": units, "timed": timed, "refused": refused, "never_thinned": never}


def benchmark() -> dict[str, Any]:
    times = {"macs_ratio": 0.5, "pipeline_ms": 123456.0, "speedup": 1.92, "denoiser_ms": 99999.0}
    times |= {"denoiser_speedup": 2.01, "switch_ms": 0.12, "weight_bytes": 12_345_000_000, "peak_bytes": 23_456_000_000}
    runners = ("dense", "routed at level 0", "diff-es, resident", "diff-es, streamed", "diff-es, stitched")
    doubts = ("", "", "", "", "it lies anywhere from 1.23 to 2.34")
    rows = [
        {"runner": runner, "batch": 128, "doubt": doubt, **times} for runner, doubt in zip(runners, doubts, strict=True)
    ]
    return {"compiled": True, "device": "cuda:0", "dtype": "bfloat16", "steps": 50, "rows": rows}


def shown(fast: Compressed) -> dict[str, Callable[[Console], None]]:
    found = inspection()
    rows = (DENSE, *(row(name, snr_db=25.81) for name in ("fewer-steps", "uniform", "mosaicdiff", "random", "diff-es")))
    compared = story(rows=(*rows, *(replace(one, budget=0.5) for one in rows[1:])))
    return {
        "inspect": lambda console: tables.show_inspection(console, found),
        "evaluate": lambda console: tables.show_rows(console, compared),
        "bench": lambda console: tables.show_bench(console, benchmark()),
        "compress": lambda console: tables.show_compressed(console, fast, Path("results[v2]/of a:smile:"), 61.0),
    }


def printed(show: Callable[[Console], None], width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="diff-es")
    show(Console(file=file, width=width, markup=False, emoji=False))
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_table_is_cut_at_any_width(width: int, fast: Compressed) -> None:
    """Every character of every cell is there, however many lines it takes; headings may be there more than once."""
    print_anywhere()
    for name, show in shown(fast).items():
        whole, narrow = printed(show, 400), printed(show, width)
        assert "…" not in narrow, name
        assert max(map(len, narrow.splitlines())) <= width, name
        missing = Counter(filter(str.isalnum, whole)) - Counter(filter(str.isalnum, narrow))
        assert not missing, (name, narrow)
        assert (WHERE.format(0) in whole) == (name == "inspect")
        assert ("results[v2]/of a:smile:" in whole) == (name == "compress")
        for word in ("dense", "diff-es") if name == "evaluate" else ():
            assert word in narrow
        ascii_only = printed(show, width, "ascii")
        assert ascii_only.isascii()
        assert len(ascii_only.splitlines()) == len(narrow.splitlines())


def test_a_narrow_table_is_a_list_of_its_rows(fast: Compressed) -> None:
    lines = printed(shown(fast)["evaluate"], 40).splitlines()
    first = next(i for i, line in enumerate(lines) if "Contender" in line)
    shown_first = [line.split() for line in lines[first : first + 3]]
    assert shown_first == [["Contender", "dense"], ["Steps", "20"], ["MACs", "1.000"]]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_progress_names_what_runs_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", printed)
    name, reporter = "evolution of [steps] and levels", Reporter()
    with reporter.task(name, 12_345) as task:
        for _ in range(12_345):
            task.advance("best 12.34")
    last = printed.getvalue()
    assert "…" not in last
    assert "12345/12345" in last
    assert not Counter(filter(str.isalnum, name)) - Counter(filter(str.isalnum, last))


def test_a_line_of_progress_is_written_with_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece: whatever is said when a signal comes then begins a line of its own."""
    written = list[str]()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr("sys.stderr", Stream())
    with Reporter().task("measure sensitivity", 2) as task:
        task.advance()
        task.advance()
    assert len(written) == 2, "a start and an end"
    assert all(text.endswith("\n") for text in written)


# --------------------------------------------------------------------------------------------- terminals, other texts


def test_every_command_prints_on_a_terminal_that_is_not_utf_8(
    model_folder: Path, fast: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, strange = tmp_path / "fast", tmp_path / "caf\udce9 – ☃"
    assert fast.origin is not None
    replace(fast, origin=replace(fast.origin, model=str(model_folder))).save(folder)
    small = "--steps 4 --stages 2 --batch 2 --calibration-samples 2 --generations 1 --population 2"
    small += " --search-noises 2 --first-rung 0"
    small += " --held-out-noises 1 --levers prune --front= --guidance 1 --resume --out"
    for arguments, code, told in (
        (["inspect", model_folder], 0, "GMACs of each block"),
        (["sample", folder, "--count", 1, "--out", strange], 0, "caf? - ?"),
        (["bench", folder, "--batch", 1, "--rounds", 1], 0, "diff-es, streamed"),
        (["compress", model_folder, *small.split(), tmp_path / "out"], 0, "Schedule (level 0 is dense)"),
        (["compress", "--help"], 0, "--negative-prompt"),
        (["inspect", strange / "–"], 2, "error: UnsupportedModel: "),
    ):
        for encoding in ("ascii", "latin-1") if arguments[0] == "inspect" else ("ascii",):
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
            monkeypatch.setattr(sys, "argv", ["diff-es", *map(str, arguments)])
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == code
            if code == 0:
                assert told in " ".join(out.buffer.getvalue().decode(encoding).split())


def test_prompts_are_read_whole_or_refused_by_line(tmp_path: Path) -> None:
    file, prompts = tmp_path / "prompts.txt", ("a fox – ☃", "two\u2028halves")
    text = "\n\n".join(prompts) + "\r\n"
    for raw in (text.encode(), text.encode("utf-8-sig")):
        file.write_bytes(raw)
        assert read_prompts(file) == prompts
    told = r"prompts.txt, line 1: expected text in UTF-8, found another encoding"
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        file.write_bytes(text.encode(encoding))
        with pytest.raises(DiffESError, match=told):
            read_prompts(file)
    file.write_bytes("a fox\n\na café\n".encode("latin-1"))
    with pytest.raises(DiffESError, match=r"prompts.txt, line 3: .*0xe9.*Save the file as UTF-8"):
        read_prompts(file)
    file.write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(DiffESError, match="found none"):
        read_prompts(file)
    assert len(bundled_prompts()) == 64


# ----------------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        (["compress", "bundled", "--nope"], "UsageError", "--nope"),
        (["nope"], "UsageError", "No such command"),
        (["compress", "bundled"], "UsageError", "--out"),
        (["inspect", "bundled", "--levels", "many"], "UsageError", "'--levels'"),
        (["inspect", "bundled", "--levels", "1"], "DiffESError", "Width.levels"),
        (["inspect", "FOLDER"], "UnsupportedModel", "FOLDER"),
        (["sample", "FOLDER"], "ArtefactError", "FOLDER"),
        (["compress", "bundled", "--out", "FOLDER"], "StorageError", "a folder with other files"),
    ],
)
def test_errors_are_one_line_and_json_too(
    arguments: list[str], kind: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    arguments, told = [word.replace("FOLDER", str(tmp_path)) for word in arguments], told.replace("FOLDER", "")
    for flags in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["diff-es", *arguments, *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert (ended.value.code, len(err.splitlines())) == (2, 1), err
        assert err.startswith(f"error: {kind}: ")
        assert told in err
        if not flags:
            assert out == ""
            continue
        error = json.loads(out.splitlines()[-1])["error"]
        assert error.keys() == {"type", "where", "expected", "found", "remedy"}
        parts = f"{error['where']}: expected {error['expected']}, found {error['found']}. {error['remedy']}"
        assert err == f"error: {kind}: {parts}\n"


def ended(work: Callable[[], Any], capfd: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left, Ending():
        work()
    return int(left.value.code or 0), capfd.readouterr().err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """With SIGINT as a terminal's commands have it; what a shell runs in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_memory_and_disks_that_are_full_are_one_line_and_bugs_are_tracebacks(capfd: Any) -> None:
    def cuda() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has 1 GiB.")

    for work in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50), lambda: bytearray(1 << 60), cuda):
        code, err = ended(work, capfd)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: OutOfMemory: memory: expected room for what the command needs, found ")
        assert err.endswith("Take less --memory, a smaller --batch or fewer --workers, where the command has them.\n")
    code, err = ended(lambda: Path("/dev/full").write_text("words"), capfd)
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device" in err
    code, err = ended(lambda: signal.raise_signal(signal.SIGINT), capfd)
    assert (code, err) == (130, "Stopped by SIGINT. Run the same command again.\n")
    with pytest.raises(ZeroDivisionError), Ending():
        print(1 // 0)
    with pytest.raises(RuntimeError, match="of ours"), Ending():
        raise RuntimeError("of ours")
    assert capfd.readouterr() == ("", "")


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Without anything that takes long."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


def test_importing_the_package_imports_nothing_that_takes_long() -> None:
    heavy = "{'torch', 'numpy', 'rich'}"
    code = f"import sys, diff_es, diff_es.__main__; print({heavy} & sys.modules.keys())"
    assert python(code).stdout == "set()\n"


def test_public_names_are_what_they_were() -> None:
    import diff_es
    from diff_es import compress, export, load
    from diff_es.compression.compress import open_journal

    assert all(callable(named) for named in (compress, export, load, open_journal))
    assert diff_es.compress is compress
    assert sorted(dir(diff_es)) == sorted(diff_es.__all__)
    assert all(hasattr(diff_es, name) for name in diff_es.__all__)
    with pytest.raises(AttributeError, match="module 'diff_es' has no attribute 'nothing'"):
        diff_es.nothing  # noqa: B018


def test_whoever_started_the_command_may_have_a_signal_ignored() -> None:
    """As ``nohup`` does; and a second signal within a second is the same wish."""
    code = """
import signal, time
from diff_es.utils.signals import Listener
signal.signal(signal.SIGHUP, signal.SIG_IGN)
listener = Listener(lambda number: print("left") or exit())
signal.raise_signal(signal.SIGHUP)
listener.raise_interrupts()
class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
try:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print(listener.heard.name)
time.sleep(1.1)
try:
    Dropped()  # nothing can be raised there
    time.sleep(20)
except KeyboardInterrupt:
    print("again")
listener.ignore()
signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGINT)
print("whole")
"""
    done = python(code)  # much sooner than after all of these seconds
    assert (done.stdout, done.stderr, done.returncode) == ("SIGTERM\nagain\nwhole\n", "", 0)
