"""Damaged and edited model folders: refused in our words, or loaded; never a raw error, a hang, or much memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, tiny

from diff_es import DiffESError
from diff_es.layers import discover
from diff_es.pipelines.loading import load
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pipelines.tracing import trace

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 2.5, 10**9, 10**30, 1e308, float("nan"), float("inf"), "", "x", "10", [], [1], {}),
    *([None], ["diffusers"], ["os", "system"], ["diffusers", "Nothing"], ["transformers", "CLIPTextModel"]),
    *(["diffusers", "AutoencoderKL"], [None, None], [10**9, 10**9], {"a": 1}, [[]], "é\u0000"),
)
SECONDS, BEYOND = 10, 100e6


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def _keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from _keys(value[key], (*path, key))


def _changed(rng: random.Random, file: Path, change: Callable[[Any, Any], None]) -> None:
    value = json.loads(file.read_text())
    *path, key = rng.choice(list(_keys(value))[:400])
    inner = value
    for step in path:
        inner = inner[step]
    change(inner, key)
    _write(file, value)


def json_value(rng: random.Random, file: Path) -> None:
    _changed(rng, file, lambda inner, key: inner.__setitem__(key, rng.choice(ODD)))


def json_without(rng: random.Random, file: Path) -> None:
    _changed(rng, file, lambda inner, key: inner.__delitem__(key))


def json_more(rng: random.Random, file: Path) -> None:
    key = rng.choice(["id2label", "extra", "_class_name", "quantization_config", "vae", "_ignore_files", "dtype"])
    _write(file, {**json.loads(file.read_text()), key: rng.choice(ODD)})


def json_whole(rng: random.Random, file: Path) -> None:
    _write(file, rng.choice(ODD))


def cut(rng: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def flipped(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(3):
        content[rng.randrange(min(len(content), 4096))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def longer(rng: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes() + bytes(rng.randrange(1, 99)))


def gone(rng: random.Random, file: Path) -> None:
    file.unlink()


def a_folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_pipe(rng: random.Random, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_link(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice(["/dev/zero", "/dev/full", "nothing", file.name, ".", "/proc/self/mem"]))


def no_part(rng: random.Random, file: Path) -> None:
    shutil.rmtree(file.parent) if (file.parent / "model_index.json") != file else file.unlink()


def _tensors(file: Path, change: Callable[[dict[str, torch.Tensor], str], None], rng: random.Random) -> None:
    tensors = load_file(file)
    change(tensors, rng.choice(sorted(tensors)))
    save_file(tensors, file, {"format": "pt"})


def tensor_gone(rng: random.Random, file: Path) -> None:
    _tensors(file, lambda tensors, name: tensors.__delitem__(name), rng)


def tensor_shaped(rng: random.Random, file: Path) -> None:
    _tensors(file, lambda tensors, name: tensors.__setitem__(name, torch.zeros(3, rng.randrange(4))), rng)


def tensor_typed(rng: random.Random, file: Path) -> None:
    kind = rng.choice([torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn, torch.int64])
    _tensors(file, lambda tensors, name: tensors.__setitem__(name, tensors[name].to(kind)), rng)


def tensor_renamed(rng: random.Random, file: Path) -> None:
    _tensors(file, lambda tensors, name: tensors.__setitem__(f"{name}x", tensors.pop(name)), rng)


ANY = (cut, flipped, longer, gone, a_folder, a_pipe, a_link, no_part)
MUTATIONS = {
    ".json": (json_value, json_value, json_value, json_without, json_more, json_whole, *ANY),
    ".safetensors": (tensor_gone, tensor_shaped, tensor_typed, tensor_renamed, *ANY),
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> float:
    """Bytes of memory at most since :func:`_forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def opened(folder: Path, sampling: Any) -> None:
    """What every command begins with."""
    pipe = load(str(folder), device="cpu")
    discover(denoiser_of(pipe))
    trace(pipe, sampling)


FOLDERS = {
    "DiT": (tiny, CALL),
    "SD": (lambda: made(CASES["SD"].make), CASES["SD"].sampling),
    "SD3": (lambda: made(CASES["SD3"].make), CASES["SD3"].sampling),
    "Wan": (lambda: made(CASES["Wan"].make), CASES["Wan"].sampling),
}
COUNTS = {"DiT": 120, "SD": 60, "SD3": 10, "Wan": 10}


@pytest.mark.parametrize("name", FOLDERS)
def test_no_damage_is_more_than_a_refusal(name: str, tmp_path: Path) -> None:
    make, sampling = FOLDERS[name]
    whole = tmp_path / "whole"
    make().save_pretrained(whole)
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.suffix in MUTATIONS)
    opened(whole, sampling)
    _forget_peak()
    opened(whole, sampling)
    plain, refused = _peak(), 0
    for seed in range(COUNTS[name]):
        rng, folder = random.Random(f"{name} {seed}"), tmp_path / "damaged"
        shutil.copytree(whole, folder)
        file = rng.choice(files)
        mutate = rng.choice(MUTATIONS[file.suffix])
        mutate(rng, folder / file)
        case = f"{mutate.__name__} of {file}, seed {seed}"
        _forget_peak()
        try:
            with within(SECONDS):
                opened(folder, sampling)
        except DiffESError:
            refused += 1
        except BaseException as error:
            raise AssertionError(case) from error
        assert _peak() < plain + BEYOND, case
        shutil.rmtree(folder)
    assert refused > COUNTS[name] // 2
