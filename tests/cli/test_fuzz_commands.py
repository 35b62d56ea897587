"""Three hundred command lines, drawn from what the commands say they take: each ends well, or in one message."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from diff_es import Compressed
from diff_es.cli.app import app, main

COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
NUMBERS = ("0", "-1", "2", "3", "7", "0.5", "1e20", "99999999999999999999", "nan", "inf", "-inf", "1e300", "1_0", "٣")
WORDS = ("", " ", "abacus", "é", "0,5", "0.5,nan", "0.4;0.5", "-", "--", "prune", "whole", "{}", "x" * 300, "a/b", "..")
SMALL = {  # so that what is not refused takes a moment
    "compress": "--macs 0.6 --stages 2 --steps 3 --guidance 1 --batch 1 --calibration-samples 1 "
    "--generations 1 --population 1 "
    "--search-noises 1 --first-rung 0 --held-out-noises 1 --finalists 1 --levers prune --units whole --front",
    "inspect": "--levels 2",
    "sample": "--count 1",
    "bench": "--batch 1 --rounds",
    "evaluate": "--noises 2 --rounds 1 --batch 2 --random",
}
LAST = {"compress": "", "bench": "1", "evaluate": "1"}
LONG = {"speedup", "workers", "random", "images"}
"""What is only drawn so that it is refused, since it takes its time; and what is not drawn at all."""
FIXED = {("demo", "out_folder"), ("evaluate", "model"), ("play", "model"), ("bench", "compiled"), ("inspect", "timed")}
FORMAT3 = Path(__file__).parents[1] / "data" / "format3" / "levels"
HANG = 10.0  # seconds, in which what is refused has to be


@pytest.fixture(scope="module")
def places(fast: Compressed, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What lies on the disk, by what it is."""
    folder = tmp_path_factory.mktemp("lines")
    fast.save(folder / "made")
    shutil.copytree(FORMAT3, folder / "earlier")
    (folder / "file").write_text("mine")
    (folder / "others").mkdir()
    (folder / "others" / "thesis.tex").write_text("ten years")
    names = {name: str(folder / name) for name in ("made", "earlier", "file", "others", "new")}
    return names | {"model": str(model_folder), "nowhere": "/proc/x", "device": "/dev/null", "long": "y" * 5000}


def values(command: str, parameter: Any, places: dict[str, str]) -> Iterator[str]:
    """What may stand behind an option, or for an argument."""
    if parameter.name not in LONG:
        yield from (*NUMBERS, *WORDS, *places.values())
        yield from (member.value for kind in enums(command, parameter) for member in kind)
    else:
        yield from ("0", "-1", "0.5", "nan", "1e20", "1e300", *WORDS)


def enums(command: str, parameter: Any) -> Iterator[type[Enum]]:
    """Those that a parameter takes a member of."""
    kind, *_ = get_args(get_type_hints(COMMANDS[command].callback, include_extras=True)[parameter.name])
    yield from (one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, Enum))


def base(command: str, places: dict[str, str], out: Path, result: str) -> list[str]:
    """A command line that works, on a result of today's format or of format 3."""
    line = [command, places["model"] if command in ("compress", "inspect") else places[result]]
    if command in ("sample", "evaluate", "bench", "export", "play"):
        endless = command in ("evaluate", "play")  # an evaluation takes long: it ends at a model of no place
        line += ["--model", places["nowhere" if endless else "model"]]
    if command == "demo":  # so does this: nothing that can be drawn may make it run
        return [command, "--out", places["file"]]
    small = [*SMALL.get(command, "").split(), *([LAST[command]] if command in LAST else [])]
    return [*line, *small, *([] if command in ("inspect", "bench", "play") else ["--out", str(out)])]


def drawn(draw: random.Random, places: dict[str, str], out: Path) -> list[str]:
    """One command line with a few of its options exchanged, as Click takes the last of several."""
    command = draw.choice(sorted(COMMANDS))
    line, options = base(command, places, out, draw.choice(("made", "earlier"))), COMMANDS[command].params
    for parameter in draw.sample(options, min(len(options), draw.choice((1, 1, 2, 3)))):
        if (command, parameter.name) in FIXED:
            continue
        if not parameter.opts[0].startswith("-"):  # an argument
            line[1] = draw.choice(list(values(command, parameter, places)))
        elif parameter.is_flag:
            line.append(draw.choice([*parameter.opts, *parameter.secondary_opts]))
        else:
            line += [draw.choice(parameter.opts), draw.choice(list(values(command, parameter, places)))]
    if draw.random() < 0.05:
        line += draw.choice((["--mistyped"], ["--mistyped", "3"], ["more"], ["--out"]))
    return line


@pytest.mark.parametrize("part", range(6))
def test_command_lines_end_well_or_in_one_message(
    part: int,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    draw, ended = random.Random(100 + part), list[int]()
    monkeypatch.chdir(tmp_path)
    for number in range(50):
        out = tmp_path / f"out-{number}"
        line = drawn(draw, places, out)
        monkeypatch.setattr(sys, "argv", ["diff-es", *line])
        began = time.monotonic()
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = " ".join(capfd.readouterr().err.split())
        assert code in (0, 2), (line, said)
        assert code == 0 or time.monotonic() - began < HANG, (line, said)
        assert "Traceback" not in said, (line, said)
        assert code == 0 or "error: " in said or "Error" in said, (line, said)
        assert code == 0 or not out.exists(), (line, said)  # refused before anything was calibrated
        ended.append(code)
    assert {*ended} == {0, 2}
