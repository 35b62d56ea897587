"""Settings mean what they say, whichever way they are said, and are refused before a model is loaded or calibrated."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cli.test_cli import CALL, Run, refused
from tests.cli.test_cli import run as run
from tests.helpers.tiny import LITTLE, joint, settings, tiny
from torch import nn

from diff_es import (
    Compact,
    Compressed,
    DiffESError,
    Levers,
    Method,
    Obs,
    Sampling,
    Settings,
    StorageError,
    UnsupportedModel,
    Width,
    compress,
    load,
)
from diff_es.compression.compress import Run as How
from diff_es.compression.settings import describe, plain, restore, value_of
from diff_es.evaluation.inspection import inspect
from diff_es.pruning.granularity import Granularity
from diff_es.utils.progress import Reporter


def changed(start: Settings, **changes: Any) -> Settings:
    """With other values; those of its sampling by their names there."""
    sampling = {name: value for name, value in changes.items() if name in vars(start.sampling)}
    own = {name: value for name, value in changes.items() if name not in sampling}
    return replace(start, sampling=replace(start.sampling, **sampling), **own)


NOWHERE = "no-one/nothing-here"  # a model that does not load


@pytest.mark.parametrize("levers", Levers)
def test_the_value_of_an_enum_is_its_member(levers: Levers) -> None:
    said: Any = levers.value
    for made in (Settings(levers=said), replace(Settings(), levers=said)):
        assert made.levers is levers
        assert restore(json.loads(json.dumps(describe(made)))).levers is levers
    for grain in Granularity:
        assert Method(granularity=str(grain.value)).granularity is grain  # type: ignore[arg-type]


def test_levers_said_as_a_string_are_those(fast: Compressed) -> None:
    """``fast`` is of levels alone."""
    same = compress(tiny(), 0.6, settings(levers="prune", timestep_generations=16))
    assert (same.schedule, same.timesteps) == (fast.schedule, None)
    steps = compress(tiny(), 0.6, joint(**LITTLE, first_rung=0, timestep_generations=1, levers="steps"))
    assert steps.timesteps is not None
    assert not any(map(any, steps.schedule.levels))


@pytest.mark.parametrize("wrong", ["x", "PRUNE", "Levers.PRUNE", b"prune", True, Granularity.WHOLE, Levers])
def test_what_is_no_lever_is_refused_with_those_there_are(wrong: Any) -> None:
    for made in (lambda: Settings(levers=wrong), lambda: replace(Settings(), levers=wrong)):
        with pytest.raises(DiffESError, match="levers: expected 'prune' or 'steps' or 'prune,steps', found"):
            made()
    if wrong is not Granularity.WHOLE:
        with pytest.raises(DiffESError, match=r"Method\.granularity: expected 'whole' or 'kind' or 'block', found"):
            Method(granularity=wrong)


def test_numbers_of_numpy_and_lists_are_written_as_python_writes_them() -> None:
    said = Settings(Sampling(np.int64(6), np.float32(2.5)), front=[0.5, np.float64(0.75)], seed=np.int32(3))  # type: ignore[arg-type]
    meant = Settings(Sampling(6, 2.5), front=(0.5, 0.75), seed=3)
    assert said == meant
    assert json.dumps(describe(said)) == json.dumps(describe(meant))
    whole = Settings(Sampling(6, 2), front=(1,))
    assert json.dumps(plain(whole.sampling)["guidance_scale"]) == "2"  # as it was said


@pytest.mark.parametrize(
    "wrong", [{"type": "Nothing"}, {"type": ["Obs"]}, {"type": "Levers", "value": "x"}, {"type": "Obs", "dampning": 1}]
)
def test_what_describes_no_setting_is_refused(wrong: Any) -> None:
    with pytest.raises(DiffESError, match=r"expected .*, found .*\. "):
        value_of(wrong)


BEYOND: list[dict[str, Any]] = [
    {"batch": 1e20},
    {"search_noises": 1e20},
    {"corrections": 1e20},
    {"guidance_scale": 1e300},
    {"method": ("levels", 100_000)},
    {"seed": 10**30},
    {"stages": 10**9},
]


@pytest.mark.parametrize("beyond", BEYOND, ids=str)
def test_more_than_can_be_meant_is_refused(beyond: dict[str, Any]) -> None:
    with pytest.raises(DiffESError, match=r"expected a .*number from .* to .* \(more cannot be meant\), found"):
        Width(levels=100_000) if "method" in beyond else changed(Settings(), **beyond)


NONSENSE: list[dict[str, Any]] = [
    *({"front": (share,)} for share in (2, 0, -1, float("nan"), float("inf"))),
    *({name: 0} for name in ("survivors", "switches", "executor", "weights_gb", "speedup")),
    *({"crossover": share} for share in (-0.1, 1.1, float("nan"))),
    {"stages": 7},
    {"stagez": 3},
    {"macs": 0.01},
    {"placement": Compact(), "weights_gb": 1.0},
    {"measure": Obs()},
    {"reporter": "progress.txt"},
]
WHERE = {"stagez": "Settings"}
"""What an error names in the place of what was said."""
OF_RUN, OF_BUDGET = ("placement", "executor", "reporter"), ("macs", "speedup", "weights_gb")


@pytest.mark.parametrize("wrong", NONSENSE, ids=str)
def test_what_is_refused_binds_no_journal(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("calibration began")

    monkeypatch.setattr("diff_es.compression.study.calibrate", refuse)
    monkeypatch.chdir(tmp_path)
    budget = {name: wrong[name] for name in OF_BUDGET if name in wrong}
    budget |= {} if {"macs", "speedup"} & wrong.keys() else {"macs": 0.6}
    how = {name: wrong[name] for name in OF_RUN if name in wrong}
    own = {name: value for name, value in wrong.items() if name not in (*OF_RUN, *OF_BUDGET)}
    first = next(iter(wrong))
    with pytest.raises(DiffESError, match=WHERE.get(first, first)):
        compress(
            tiny(),
            settings=changed(settings(), **own),
            run=How(journal=tmp_path / "run" / "j.jsonl", **how),
            **budget,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--front", "2"], "front[0]: expected a number above 0, at most 1, found 2.0."),
        (["--front", "0,5"], "front[0]: expected a number above 0, at most 1, found 0.0."),
        (["--front", "0.5,nan"], "front[1]: expected a number above 0, at most 1, found nan."),
        (["--survivors", "0"], "survivors: expected a whole number from 1 to 1000000, found 0."),
        (["--workers", "0"], "workers: expected a whole number from 1 to 1024, found 0."),
        (["--levels", "100000"], "Width.levels: expected a whole number from 2 to 1024 (more cannot be meant), found"),
        (["--levels", "4", "--prune", "depth"], "--levels: expected none, found 4 beside --prune depth"),
        (["--tolerance", "0.2"], "--tolerance: expected none, found 0.2 beside --placement auto. Say --placement"),
        (["--tolerance", "nan", "--placement", "compact"], "Compact.tolerance: expected a number above 0"),
        (
            ["--macs", "0.5", "--speedup", "1.4"],
            "a share of MACs or a speed-up, found 0.5 of the MACs and 1.4x",
        ),
        (["--weights-gb", "1", "--placement", "resident"], "placement: expected none, since the result is streamed"),
        (
            ["--guidance", "1e300"],
            "guidance_scale: expected a number from 0 to 1000 (more cannot be meant), found 1e+300.",
        ),
        (["--table", "missing"], "missing: expected a diff-es.json in it, found none."),
        (["--prompts", "missing"], "missing: expected prompts, one on each line, found"),
        (["--out", "/proc/x"], "/proc/x: expected a folder to write to, found"),
        (["--out", "taken"], "taken: expected a folder, found a file."),
        (["--out", "taken/below"], "taken/below: expected a folder to write to, found"),
    ],
)
def test_settings_are_refused_before_a_model_is_loaded(
    changes: list[str], told: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    refused(run("compress", NOWHERE, "--out", tmp_path / "out", *CALL, *changes), told)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("target", ["taken", "taken/below", "/proc/x"])
@pytest.mark.parametrize("command", ["demo", "sample", "evaluate", "export"])
def test_outputs_that_cannot_be_written_are_refused_before_a_model_is_loaded(
    command: str, target: str, fast: Compressed, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    fast.save("made")
    line = [command, "--out", target] if command == "demo" else [command, "made", "--model", NOWHERE, "--out", target]
    refused(run(*line), f"{target}: expected a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "taken"]


def test_what_a_report_would_overwrite_is_looked_at_first(run: Run, tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    refused(run("demo", "--out", tmp_path), "result.json: expected a file, found something else.")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["sample", "--count", "0"], "count: expected a whole number from 1"),
        (["sample", "--guidance", "nan"], "guidance_scale: expected a number from 0 to 1000, found nan."),
        (["sample", "--point", "0"], "point: expected a number from 1 to 1000, found 0.0."),
        (["bench", "--batch", "1", "--batch", "99999999"], "batch[1]: expected a whole number from 1 to 65536 (more"),
        (["evaluate", "--noises", "1"], "noises: expected a whole number from 2 to 1000000, found 1."),
        (
            ["evaluate", "--images", "1" * 20],
            "images: expected a whole number from 1 to 1000000 (more cannot be meant)",
        ),
    ],
)
def test_options_of_results_are_refused_before_a_model_is_loaded(
    line: list[str], told: str, fast: Compressed, run: Run, tmp_path: Path
) -> None:
    fast.save(tmp_path / "made")
    refused(run(line[0], tmp_path / "made", "--model", NOWHERE, *line[1:]), told)


def test_the_current_folder_is_a_folder(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, exported = tmp_path / "here", tmp_path / "exported"
    for folder in (out, exported):
        folder.mkdir()
    monkeypatch.chdir(out)
    call = [*CALL, "--stages", "1", "--no-compensate", "--units", "whole"]
    run("compress", model_folder, "--out", ".", "--macs", "0.7", *call, "--json").result()
    assert load(out).report.limit == 0.7
    monkeypatch.chdir(exported)
    run("export", out, "--out", ".", "--json").result()
    assert Path("model_index.json").is_file()  # where the user stands
    refused(run("export", out, "--out", "."), "expected a new or an empty folder, found a folder with files in it.")


def test_a_search_without_a_journal_to_resume_says_that_it_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    monkeypatch.setattr(Reporter, "say", lambda _, text: lines.append(text))
    journal, chosen = (
        tmp_path / "journal.jsonl",
        settings(generations=1, population=2, search_noises=1, calibration_samples=2, front=(0.1, 0.9)),
    )
    first = compress(tiny(), 0.6, chosen, run=How(journal=journal, resume=True))
    assert lines[0] == f"There is no journal to resume at {journal}: the search starts anew."
    assert lines[1:] == ["Left out of the front, below the cheapest schedule: 0.1."]
    lines.clear()
    assert compress(tiny(), 0.6, chosen, run=How(journal=journal, resume=True)).schedule == first.schedule
    assert not [line for line in lines if "anew" in line]


def test_a_network_without_its_pipeline_is_told_what_to_do() -> None:
    network: Any = nn.Linear(2, 2)
    told = r"pipe: expected one of DiTPipeline, .*, found Linear, a network without a pipeline .*OwnSampler"
    for asked in (lambda: compress(network), lambda: inspect(network, 4)):
        with pytest.raises(UnsupportedModel, match=told):
            asked()
    with pytest.raises(UnsupportedModel, match=r"found DiTTransformer2DModel, a network without a pipeline"):
        compress(tiny().transformer)
    other: Any
    for other in (None, "facebook/DiT-XL-2-256", torch.ones(1)):
        with pytest.raises(UnsupportedModel, match=r"pipe: expected one of .* Give a pipeline of diffusers\."):
            inspect(other)


def test_names_that_no_file_can_have_are_refused(fast: Compressed) -> None:
    for name in ("a\0b", "y" * 5000, "\ud800"):
        for asked in (lambda name=name: load(name), lambda name=name: fast.save(name)):
            with pytest.raises(DiffESError, match="folder: expected a name that a file can have, found"):
                asked()
    with pytest.raises(StorageError, match=re.escape("/dev/null: expected a file, found something else")):
        How(journal="/dev/null")
