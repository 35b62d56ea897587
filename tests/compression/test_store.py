"""Artefact folders and journals: written whole or not at all, read back to the bit, damage refused by name."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diff_es.compression import store
from diff_es.compression.store import FORMAT, MANIFEST, check_target, read_folder, read_manifest
from diff_es.scoring.journal import Journal, Scale
from diff_es.search import Candidate
from diff_es.utils.errors import ArtefactError, DiffESError, StorageError
from diff_es.utils.files import write_text

EXPECTED = f"expected format {FORMAT} or an earlier one from 3 on"
BIT_PATTERNS = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 1.0000001])


def groups(shift: int = 0) -> dict[str, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(shift)
    return {
        "plan-00": {"cut/a.b/weight": torch.randn(3, 5, generator=g).T, "cut/a.b/kept": torch.arange(4).int() + shift},
        "plan-01": {"half": torch.randn(7, generator=g).bfloat16(), "odd": BIT_PATTERNS, "none": torch.empty(0, 3)},
        "plan-02": {},
    }


def write_folder(folder: Path, tensors: dict[str, dict[str, Tensor]], about: dict[str, Any]) -> None:
    store.write_folder(folder, tensors, lambda _: about)


def assert_same(found: dict[str, dict[str, Tensor]], wanted: dict[str, dict[str, Tensor]]) -> None:
    assert {stem: set(group) for stem, group in found.items()} == {stem: set(group) for stem, group in wanted.items()}
    for stem, group in wanted.items():
        for name, tensor in group.items():
            other = found[stem][name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert other.contiguous().flatten().view(torch.uint8).equal(tensor.contiguous().flatten().view(torch.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def shape(folder: Path) -> set[str]:
    """The names of everything below a folder, without what follows from contents."""
    return {re.sub(r"\.[0-9a-f]{16}\.", ".#.", name) for name in contents(folder)}


def part(folder: Path, stem: str) -> Path:
    """A file of an artefact."""
    (found,) = folder.glob(f"{stem}.*.safetensors")
    return found


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --------------------------------------------------------------------------------------------------------- artefacts


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    about = {"base": "abc", "nested": {"x": [1, 2.5, None, "ä"]}}
    write_folder(tmp_path / "deep" / "out", groups(), about)
    tensors, manifest = read_folder(tmp_path / "deep" / "out")
    assert_same(tensors, groups())
    assert manifest | about == manifest
    assert manifest["format"] == FORMAT
    assert shape(tmp_path / "deep") == {"out", *(f"out/plan-0{i}.#.safetensors" for i in range(3)), f"out/{MANIFEST}"}


@pytest.mark.parametrize("about", [{"prompts": ["a,"] * (1 << 20)}, {"prompts": "a" * (1 << 25)}])
def test_what_could_not_be_read_again_replaces_nothing(about: dict[str, Any], tmp_path: Path) -> None:
    write_folder(tmp_path / "out", groups(), {"base": "abc"})
    with pytest.raises(StorageError, match=r"expected a manifest that can be read again, found \d+ (values|bytes)"):
        write_folder(tmp_path / "out", groups(), about)
    tensors, manifest = read_folder(tmp_path / "out")
    assert_same(tensors, groups())
    assert manifest["base"] == "abc"


@pytest.mark.parametrize("position", [0, 8, -1])
def test_a_flipped_byte_is_refused_by_file_name(tmp_path: Path, position: int) -> None:
    write_folder(tmp_path / "out", groups(), {})
    damaged = part(tmp_path / "out", "plan-01")
    data = bytearray(damaged.read_bytes())
    data[position] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"plan-01\.\w+\.safetensors: expected sha256 .* The artefact is damaged"):
        read_folder(tmp_path / "out")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", groups(), {})
    part(tmp_path / "out", "plan-00").unlink()
    with pytest.raises(ArtefactError, match=r"plan-00\.\w+\.safetensors: expected a file of the artefact, found none"):
        read_folder(tmp_path / "out")


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_a_manifest_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=rf"{folder}: expected a {MANIFEST} in it, found none"):
        read_folder(tmp_path / folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"format": 3, "files": {', "expected a readable manifest"),
        (b"", "expected a readable manifest"),
        (b"\xff\xfe\x00", "expected a readable manifest"),
        (b"[1, 2]", f"{EXPECTED}, found other JSON"),
        (b"{}", f"{EXPECTED}, found format None"),
        (
            b'{"format": 1, "files": {}}',
            f"{EXPECTED}, found format 1. Compress again with this version, or",
        ),
        (
            b'{"format": 99, "files": {}}',
            f"{EXPECTED}, found format 99. Compress again with this version, or",
        ),
    ],
)
def test_a_cut_short_foreign_older_or_newer_manifest_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    write_folder(tmp_path / "out", groups(), {})
    (tmp_path / "out" / MANIFEST).write_bytes(text)
    for read in (read_manifest, read_folder):
        with pytest.raises(ArtefactError, match=message) as caught:
            read(tmp_path / "out")
        assert MANIFEST in str(caught.value)


@pytest.mark.parametrize("broken", [{}, {"files": ["plan-00.safetensors"]}, {"files": {"plan-00.safetensors": {}}}])
def test_a_manifest_whose_list_of_files_is_broken_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    write_folder(tmp_path / "out", groups(), {})
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({"format": FORMAT} | broken))
    with pytest.raises(ArtefactError):
        read_folder(tmp_path / "out")


def test_a_folder_with_other_files_and_a_file_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"text")
    before = contents(tmp_path)
    for name, message in (("photos", "found a folder with other files"), ("file", "expected a folder, found a file")):
        with pytest.raises(StorageError, match=message):
            check_target(tmp_path / name)
        with pytest.raises(StorageError, match=message):
            write_folder(tmp_path / name, groups(), {})
    assert contents(tmp_path) == before


def test_an_earlier_artefact_is_replaced_and_its_journals_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "search.jsonl").write_text("line\n")
    write_folder(out, groups(), {"run": 1})
    write_folder(out, {"plan-09": groups(1)["plan-00"]}, {"run": 2})
    tensors, manifest = read_folder(out)
    assert_same(tensors, {"plan-09": groups(1)["plan-00"]})
    assert manifest["run"] == 2
    assert shape(tmp_path) == {"out", "out/plan-09.#.safetensors", "out/search.jsonl", f"out/{MANIFEST}"}
    assert (out / "search.jsonl").read_text() == "line\n"


def test_a_replaced_artefact_can_be_read_by_whoever_could_read_the_first(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", groups(), {})
    mode = (tmp_path / "out").stat().st_mode
    write_folder(tmp_path / "out", groups(), {})
    assert (tmp_path / "out").stat().st_mode == mode


def nth(call: Callable[..., Any], n: int) -> Callable[..., Any]:
    """The call, except that the nth time the disk is full."""
    count = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return full_disk() if count == n else call(*args, **kwargs)

    return counted


@pytest.mark.parametrize(
    ("existing", "owner", "call", "n"),
    [
        (False, store, "save_file", 1),
        (False, store, "save_file", 2),
        (False, os, "replace", 1),
        (False, os, "fsync", 4),
        (False, os, "replace", 4),
        (True, store, "save_file", 1),
        (True, store, "save_file", 2),
        (True, os, "fsync", 4),
        (True, os, "replace", 1),
        (True, os, "replace", 3),
        (True, os, "replace", 4),
    ],
)
def test_a_full_disk_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, owner: Any, call: str, n: int
) -> None:
    out = tmp_path / "out"
    if existing:
        write_folder(out, groups(), {"run": 1})
        (out / "search.jsonl").write_text("line\n")
    before = contents(tmp_path)
    monkeypatch.setattr(owner, call, nth(getattr(owner, call), n))
    with pytest.raises(StorageError, match=r"out: expected room to write, found .*No space left"):
        write_folder(out, groups(1), {"run": 2})
    monkeypatch.undo()
    assert contents(tmp_path) == before
    if existing:
        assert read_manifest(out)["run"] == 1


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "page.html"
    write_text(path, "first ä")
    write_text(path, "second")
    assert contents(tmp_path) == {"new": b"", "new/page.html": b"second"}
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(StorageError, match=r"page\.html: expected a file that can be written"):
        write_text(path, "third")
    assert contents(tmp_path) == {"new": b"", "new/page.html": b"second"}


# ---------------------------------------------------------------------------------------------------------- journals

SETTINGS = {"seed": 1, "budget": 0.7, "probes": (1, 2)}
A, B, C = (Candidate.of(levels) for levels in ([[0], [1]], [[1], [0]], [[2], [2]]))


def written(path: Path) -> Journal:
    journal = Journal(path, SETTINGS, resume=False)
    journal.add(A, 1 / 3)
    journal.add(B, -2.5e-17)
    return journal


def test_a_journal_resumes_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "search.jsonl"
    first = written(path)
    again = Journal(path, SETTINGS, resume=True)
    assert again.known[Scale.ALL] == first.known[Scale.ALL] == {A: 1 / 3, B: -2.5e-17}
    again.add(C, 4.0)
    assert Journal(path, SETTINGS, resume=True).known[Scale.ALL] == {A: 1 / 3, B: -2.5e-17, C: 4.0}
    assert set(contents(tmp_path)) == {"new", "new/search.jsonl"}


def test_every_score_is_on_the_disk_when_add_returns(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    journal = Journal(path, SETTINGS, resume=False)
    for i, candidate in enumerate((A, B, C)):
        journal.add(candidate, float(i))
        assert [json.loads(line)["score"] for line in path.read_text().splitlines()[1:]] == [*map(float, range(i + 1))]


def test_a_kill_at_any_byte_costs_at_most_the_line_it_cut_short(tmp_path: Path) -> None:
    written(tmp_path / "whole.jsonl")
    whole, path = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "search.jsonl"
    header = whole.index(b"\n") + 1
    for length in range(header, len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n") - 1
        journal = Journal(path, SETTINGS, resume=True)
        assert list(journal.known[Scale.ALL]) == [A, B][:complete]
        journal.add(C, 1.0)
        assert list(Journal(path, SETTINGS, resume=True).known[Scale.ALL]) == [*[A, B][:complete], C]


def test_other_settings_are_refused_naming_what_changed(tmp_path: Path) -> None:
    written(tmp_path / "search.jsonl")
    before = contents(tmp_path)
    with pytest.raises(DiffESError) as caught:
        Journal(tmp_path / "search.jsonl", {"seed": 2, "probes": (1, 2), "steps": 20}, resume=True)
    assert "budget 0.7 then and None now, seed 1 then and 2 now, steps None then and 20 now" in str(caught.value)
    assert "probes" not in str(caught.value)
    assert contents(tmp_path) == before


def test_settings_that_are_equal_keep_every_score_however_they_are_written(tmp_path: Path) -> None:
    """Guidance of 4 in a program, and of 4.0 on the command line."""
    path = tmp_path / "search.jsonl"
    Journal(path, {"guidance": 4, "front": [1]}, resume=False).add(A, 1 / 3)
    for settings in ({"guidance": 4.0, "front": [1.0]}, {"guidance": 4, "front": [1.0]}):
        again = Journal(path, settings, resume=True)
        assert (again.known[Scale.ALL], again.dropped) == ({A: 1 / 3}, 0)


def test_a_journal_of_many_prompts_is_one(tmp_path: Path) -> None:
    path, settings = tmp_path / "search.jsonl", {"prompts": ["\u00e9" * 100] * 10_000}
    Journal(path, settings, resume=False).add(A, 1.0)
    with pytest.raises(DiffESError, match=r"found a journal of 1 evaluations. Add --resume"):
        Journal(path, settings, resume=False)
    assert Journal(path, settings, resume=True).known[Scale.ALL] == {A: 1.0}


def test_an_existing_search_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    written(path)
    before = contents(tmp_path)
    with pytest.raises(DiffESError, match=r"found a journal of 2 evaluations. Add --resume"):
        Journal(path, SETTINGS, resume=False)
    assert contents(tmp_path) == before


def test_a_journal_without_scores_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    Journal(path, {"seed": 0}, resume=False)
    Journal(path, SETTINGS, resume=False).add(A, 1.0)
    assert Journal(path, SETTINGS, resume=True).known[Scale.ALL] == {A: 1.0}


@pytest.mark.parametrize("text", ["a note of mine\nand another\n", '{"candidate": {"levels": [[0]]}}\n' * 2])
def test_a_file_that_is_no_journal_is_refused_untouched(tmp_path: Path, text: str) -> None:
    path = tmp_path / "search.jsonl"
    path.write_text(text)
    with pytest.raises(DiffESError, match=r"search\.jsonl"):
        Journal(path, SETTINGS, resume=True)
    assert path.read_text() == text


def test_a_full_disk_is_reported_and_what_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "search.jsonl"
    journal = written(path)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match=r"No space left on device. Free some space and run again with --resume"):
        journal.add(C, 1.0)
    monkeypatch.undo()
    assert Journal(path, SETTINGS, resume=True).known[Scale.ALL].items() >= {A: 1 / 3, B: -2.5e-17}.items()


def lines_of(path: Path) -> list[Any]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


EDITS = ({"levels": [[5], [5]]}, {"levels": [[0], [1]], "steps": [1, 1]}, {"levels": [[0], [1]], "order": 2})


@pytest.mark.parametrize(
    "change", [{"score": 9.0}, *({"candidate": edit} for edit in EDITS), {"scale": "heat"}, {"check": None}]
)
def test_an_edited_line_is_evaluated_again(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "search.jsonl"
    written(path)
    header, first, second = lines_of(path)
    write_lines(path, [header, {**first, **change}, second])
    again = Journal(path, SETTINGS, resume=True)
    assert again.known[Scale.ALL] == {B: -2.5e-17}
    assert again.known[Scale.RUNG] == {}
    assert again.dropped == 1
    again.add(A, 1 / 3)
    last = Journal(path, SETTINGS, resume=True)
    assert (last.known[Scale.ALL], last.dropped) == ({A: 1 / 3, B: -2.5e-17}, 0)


@pytest.mark.parametrize(
    "junk", ["", "what is this", '{"candidate": {"levels": [[0]]}}', "\x00" * 5000, "[" * 5000, "9" * 5000]
)
def test_a_line_of_junk_costs_that_line(tmp_path: Path, junk: str) -> None:
    path = tmp_path / "search.jsonl"
    written(path)
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first, junk, second, ""]))
    again = Journal(path, SETTINGS, resume=True)
    assert (again.known[Scale.ALL], again.dropped) == ({A: 1 / 3, B: -2.5e-17}, 1)


def test_a_score_from_another_journal_is_left_out(tmp_path: Path) -> None:
    written(tmp_path / "search.jsonl")
    Journal(tmp_path / "other.jsonl", {"seed": 2}, resume=False).add(C, 9.0)
    write_lines(tmp_path / "search.jsonl", lines_of(tmp_path / "search.jsonl") + lines_of(tmp_path / "other.jsonl")[1:])
    assert C not in Journal(tmp_path / "search.jsonl", SETTINGS, resume=True).known[Scale.ALL]


def test_an_edited_first_line_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    written(path)
    header, *lines = lines_of(path)
    write_lines(path, [{**header, "settings": {**header["settings"], "seed": 2}}, *lines])
    before = contents(tmp_path)
    for seed in (1, 2):
        with pytest.raises(DiffESError, match=r"first line: expected the settings .* found others, edited since\. Put"):
            Journal(path, {**SETTINGS, "seed": seed}, resume=True)
    assert contents(tmp_path) == before


def test_a_journal_of_an_earlier_version_is_resumed_and_gets_checks(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    written(path)
    checked = path.read_text()
    unchecked = [{key: line[key] for key in line if key not in ("sha256", "check")} for line in lines_of(path)]
    write_lines(path, unchecked)
    again = Journal(path, SETTINGS, resume=True)
    assert (again.known[Scale.ALL], again.dropped) == ({A: 1 / 3, B: -2.5e-17}, 0)
    assert path.read_text() == checked


def test_a_whole_journal_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    written(path)
    before = path.stat()
    Journal(path, SETTINGS, resume=True)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_a_killed_run_leaves_is_no_other_file(tmp_path: Path) -> None:
    for name in (".search.jsonl.partial", ".diff-es.lock", ".plan-00.partial", f"plan-00.{'0' * 16}.safetensors"):
        (tmp_path / name).write_text("x")
    check_target(tmp_path)
    write_folder(tmp_path, groups(), {})
    assert shape(tmp_path) == {MANIFEST, *(f"plan-0{i}.#.safetensors" for i in range(3))}


@pytest.mark.parametrize("made", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("victim", [MANIFEST, "plan-01.*"])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, victim: str, made: Callable[[Path], object]
) -> None:
    write_folder(tmp_path, groups(), {})
    (path,) = tmp_path.glob(victim)
    path.unlink()
    made(path)
    with pytest.raises(ArtefactError, match=re.escape(path.name)):
        read_folder(tmp_path)
    journal = tmp_path / "search.jsonl"
    made(journal)
    with pytest.raises(DiffESError, match=r"search\.jsonl: expected a journal of Diff-ES, found .*egular file"):
        Journal(journal, SETTINGS, resume=True)
