"""Files that were damaged or edited: what happens to them, drawn from a seed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diff_es.compression.store import MANIFEST
from diff_es.utils.files import digest

DEEP = json.loads("[" * 300 + "]" * 300)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 10**6, 10**30, -0.5, 0.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "../../etc/passwd", "/dev/zero", ".", "a/b", "ä\ud800", "\0", "9" * 3000, [], {}, [[]], [0], ["x"]),
    *([0, 0], {"type": "Width"}, {"type": "Levers", "value": "x"}, {"type": []}, {"x": 1}, DEEP),
)


class Hung(BaseException):
    """What was called did not return in time."""


@contextmanager
def limited(seconds: float = 10.0) -> Iterator[None]:
    """Raises ``Hung`` after so many seconds, also out of a system call."""

    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, as JSON values, in a process of its own that begins as a copy of this one."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        try:
            said = {"result": work()}
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writes, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        text = file.read()
    os.waitpid(child, 0)
    said = json.loads(text)
    assert "error" not in said, said["error"]
    return said["result"]


def peak_mb() -> float:
    """The most memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ------------------------------------------------------------------------------------------------------------- bytes


def _flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _longer(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 100))


def _blank(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    size = min(rng.randrange(1, 500), len(data) - at)
    return data[:at] + b"\0" * size + data[at + size :]


def _twice(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[max(0, at - rng.randrange(1, 300)) :]


def _junk(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice([b"\n{}\n", b'"', b"}", b"\xff\xfe", b"1e999", b"[[[[", b"\r\n\n", b","]) + data[at:]


def _none(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"\n", b"null", b"{}", b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b"{},"])


BYTES = (_flip, _flip, _cut, _longer, _blank, _twice, _junk, _junk, _none)


def damage(path: Path, rng: random.Random) -> None:
    """Other bytes in a file."""
    data = path.read_bytes()
    path.write_bytes(rng.choice(BYTES)(data or b" ", rng))


def displace(path: Path, rng: random.Random) -> None:
    """Something else in a file's place, or nothing."""
    neighbours = sorted(other for other in path.parent.iterdir() if other != path and other.is_file())
    path.unlink()
    match rng.randrange(9):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to("nowhere")
        case 5:
            with path.open("wb") as file:
                file.truncate(2**36)
        case 6:
            path.symlink_to("/dev/tty")
        case 7 if neighbours:
            path.write_bytes(rng.choice(neighbours).read_bytes())


# -------------------------------------------------------------------------------------------------------------- JSON


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*at, key)
        yield from _places(entry, (*at, key))


def edit(value: Any, rng: random.Random) -> None:
    """Exchange, remove, add or double one entry of a JSON value, at whichever depth; those near the top as often as
    the many below."""
    places = list(_places(value))
    depth = rng.randrange(1, 1 + max(map(len, places)))
    *above, key = rng.choice([place for place in places if len(place) <= depth])
    for step in above:
        value = value[step]
    match rng.randrange(6):
        case 0:
            del value[key]
        case 1 if isinstance(value, list):
            value.insert(key, value[key])
        case 2 if isinstance(value, dict):
            value[rng.choice(["x", "", "type", "sha256"])] = value.pop(key)
        case 3 if isinstance(value[key], int | float):
            value[key] = rng.choice([-value[key], value[key] * 2, value[key] + 1, str(value[key]), float(value[key])])
        case 4 if isinstance(value[key], list):
            value[key] = value[key][::-1]
        case _:
            value[key] = rng.choice(VALUES)


# --------------------------------------------------------------------------------------------------------- artefacts


def put_right(folder: Path, manifest: Any, rng: random.Random) -> None:
    """Write a manifest whose hashes are right again; of its points, where they can be, or without them."""
    tied = not isinstance(manifest, dict) or rng.random() < 0.5
    hashed_anew(folder, manifest, tied=tied)


def hashed_anew(folder: Path, manifest: Any, *, tied: bool) -> None:
    """Write a manifest with the hashes of what it says, and of its points, if they are to be ``tied``."""
    if isinstance(manifest, dict):
        points = manifest.get("points")
        for entry in points if isinstance(points, list) else ():
            if isinstance(entry, dict):
                entry.pop("sha256", None)
        files = manifest.get("files")
        if tied and isinstance(points, list) and isinstance(files, dict):
            hashes = {name.partition(".")[0]: one.get("sha256") for name, one in files.items() if isinstance(one, dict)}
            for entry in points:
                if isinstance(entry, dict):
                    entry["sha256"] = digest([{**entry}, hashes])
        manifest.pop("sha256", None)
        manifest["sha256"] = digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def edit_manifest(folder: Path, rng: random.Random) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    for _ in range(rng.choice([1, 1, 1, 2])):
        edit(manifest, rng)
    put_right(folder, manifest, rng)


def edit_tensors(folder: Path, rng: random.Random) -> None:
    """Other tensors in a file, whose hashes are right."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    if rng.random() < 0.25:
        _edit_header(path, rng)
    else:
        tensors = load_file(path)
        for _ in range(rng.choice([1, 1, 2])):
            _edit_tensor(tensors, rng)
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    manifest = json.loads((folder / MANIFEST).read_text())
    data = path.read_bytes()
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    put_right(folder, manifest, rng)


def _edit_header(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if header and rng.random() < 0.7:
        edit(header, rng)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", rng.choice([len(text), len(text), 2**40])) + text + data[8 + size :])
    else:
        path.write_bytes(rng.choice(BYTES)(data, rng))


def _edit_tensor(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    if not tensors:
        tensors["x"] = torch.zeros(1)
        return
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    kinds = (torch.float64, torch.float16, torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    match rng.randrange(9):
        case 0:
            del tensors[name]
        case 1:
            others = ("x", name + "x", "cut/x/kept", "bypass/x/weight", name.replace("/", "."), "a/b/c/d")
            tensors[rng.choice(others)] = tensor
        case 2:
            tensors[name] = tensor.to(rng.choice(kinds))
        case 3:
            tensors[name] = tensor[..., :0] if tensor.dim() else tensor[None]
        case 4:
            tensors[name] = tensor.flatten()
        case 5:
            tensors[name] = tensor[None]
        case 6 if tensor.numel():
            value = rng.choice([-1, 2**30, 0, float("nan"), float("inf"), -1e30])
            integral = not tensor.is_floating_point()
            filled = tensor.clone()
            filled.view(-1)[rng.randrange(tensor.numel())] = rng.choice([-1, 100, 0]) if integral else value
            tensors[name] = filled
        case 7 if tensor.dim():
            tensors[name] = tensor.flip(0)
        case _:
            tensors[name] = tensor.repeat(2, *[1] * (tensor.dim() - 1)) if tensor.dim() else tensor.repeat(2)


def alter_artefact(folder: Path, rng: random.Random) -> str:
    """One change of an artefact, and what kind it is of."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.endswith(".jsonl"))
    kind = rng.choice(["bytes", "place", "manifest", "manifest", "manifest", "tensors", "tensors"])
    match kind:
        case "bytes":
            damage(rng.choice([*files, folder / MANIFEST]), rng)
        case "place":
            displace(rng.choice([*files, folder / MANIFEST]), rng)
        case "manifest":
            edit_manifest(folder, rng)
        case _:
            edit_tensors(folder, rng)
    return kind


# ---------------------------------------------------------------------------------------------------------- journals


def alter_journal(path: Path, rng: random.Random) -> str:
    """One change of a journal, and what kind it is of."""
    kind = rng.choice(["bytes", "bytes", "place", "line", "line", "header"])
    if kind == "bytes":
        damage(path, rng)
    elif kind == "place":
        displace(path, rng)
    else:
        lines: list[Any] = [json.loads(text) for text in path.read_text().splitlines()]
        entry = lines[0 if kind == "header" else rng.randrange(1, len(lines))]
        edit(entry, rng)
        if kind == "header" and isinstance(entry.get("settings"), dict):
            entry["sha256"] = digest(entry["settings"])
            if rng.random() < 0.3:
                del entry["sha256"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return kind
