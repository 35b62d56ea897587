"""A temporary folder that is short of room: said before anything is written, and nothing half-done stays."""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from tests.helpers.tiny import images, tiny

from diff_es import Compressed, StorageError, Streamed
from diff_es.utils.scratch import scratch


@contextmanager
def temporary(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@contextmanager
def short(folder: Path, size: int) -> Iterator[None]:
    """The temporary folder is a file system of so many bytes."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by root alone, and not in every container")
    try:
        with temporary(folder):
            yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def limited(folder: Path, size: int) -> Iterator[None]:
    """Files of this process have at most so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with temporary(folder):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("shortage", "size"), [(limited, 4096), (short, 8192), (short, 1 << 16), (short, 9 << 13)])
def test_streaming_is_refused_dense_and_can_be_tried_again(
    shortage: Callable[[Path, int], AbstractContextManager[None]], size: int, fast: Compressed, tmp_path: Path
) -> None:
    """Some have room for none of the files, some for all but the last few."""
    pipe, folder = tiny(), tmp_path / "short"
    state = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    places = {name: parameter.data_ptr() for name, parameter in pipe.transformer.named_parameters()}
    folder.mkdir()
    told = rf"{re.escape(str(folder))}: expected room for 0\.\d\d MB more, found [\d.]+ MB \(.*TMPDIR"
    with shortage(folder, size), pytest.raises(StorageError, match=told), fast.routed(pipe, Streamed()):
        raise AssertionError("it is routed")
    assert list(folder.iterdir()) == []
    assert {name: parameter.data_ptr() for name, parameter in pipe.transformer.named_parameters()} == places
    assert all(torch.equal(value, state[name]) for name, value in pipe.transformer.state_dict().items())
    with fast.routed(pipe):
        expected = images(pipe)
    with temporary(tmp_path), fast.routed(pipe, Streamed()):
        assert torch.equal(images(pipe), expected)
        assert [path.name for path in tmp_path.iterdir()] == ["short"]
    assert all(torch.equal(value, state[name]) for name, value in pipe.transformer.state_dict().items())


def test_as_much_as_the_message_asks_for_is_enough(fast: Compressed, tmp_path: Path) -> None:
    pipe = tiny()
    with short(tmp_path / "short", 8192), pytest.raises(StorageError) as refused, fast.routed(pipe, Streamed()):
        raise AssertionError("it is routed")
    asked = re.search(r"room for ([\d.]+) MB", refused.value.expected)
    assert asked is not None
    pages = 4096 * 40  # files begin with a page of their own
    with short(tmp_path / "short", int(float(asked[1]) * 1e6) + pages), fast.routed(pipe, Streamed()):
        images(pipe)


def test_what_is_reserved_can_be_written_and_has_no_name(tmp_path: Path) -> None:
    with short(tmp_path / "short", 1 << 16):
        with scratch(60_000) as file:
            with pytest.raises(
                StorageError, match=r"room for 0\.01 MB more, found 0\.00 MB \(No space left on device\)"
            ):
                scratch(8192)
            assert list((tmp_path / "short").iterdir()) == []
            file.write(bytes(60_000))
        with scratch(60_000):
            pass
