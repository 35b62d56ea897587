"""The command line: a command ends in one JSON object, bad input in one message, Ctrl-C in a resumable search."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from diff_es import load
from diff_es.cli.app import main
from diff_es.evaluation.report import Row

CALL = ["--stages", "3", "--steps", "6", "--guidance", "2", "--batch", "2", "--calibration-samples", "4"]
CALL += [
    "--generations",
    "2",
    "--population",
    "6",
    "--search-noises",
    "2",
    "--first-rung",
    "0",
    "--held-out-noises",
    "2",
]
CALL += ["--levers", "prune", "--front", ""]


class Ended(NamedTuple):
    code: int
    out: str
    err: str  # without line breaks

    def result(self) -> Any:
        """The last line of standard output."""
        assert self.code == 0, self.err
        return json.loads(self.out.splitlines()[-1])


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """``diff-es`` with these arguments, in this process."""

    def command(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["diff-es", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, " ".join(err.split()))

    return command


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact, its journal beside its plans."""
    folder = tmp_path_factory.mktemp("made") / "fast"
    arguments = ["compress", str(model_folder), "--out", str(folder), "--macs", "0.6", *CALL, "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diff-es", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


def picture(path: str) -> tuple[tuple[int, int], bytes]:
    """Size and pixels."""
    with Image.open(path) as image:
        return image.size, image.tobytes()


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "diff-es.json").read_text())


def asked(folder: Path) -> dict[str, Any]:
    """The result for the budget that was asked for."""
    saved = manifest(folder)
    return saved["points"][saved["chosen"]]


def report(folder: Path) -> dict[str, Any]:
    """What the search for it has found."""
    return asked(folder)["report"]


def test_inspect_tells_what_can_be_pruned_and_what_it_costs(run: Run, model_folder: Path) -> None:
    ended = run("inspect", model_folder, "--levels", 4, "--json")
    found = ended.result()
    assert "…" not in ended.out, "a table is cut at 80 columns"
    kinds = [row["kind"] for row in found["layers"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"attention": 2, "feedforward": 2, "block": 2}
    assert found["layers"][0]["kept_by_level"] == [4, 3, 2, 1]
    assert found["width_macs_ratio"][0] == found["depth_macs_ratio"][0] == 1
    for name in ("width_macs_ratio", "width_weight_bytes", "depth_weight_bytes"):
        assert found[name] == sorted(set(found[name]), reverse=True)
    assert found["width_weight_bytes"][0] == found["depth_weight_bytes"][0] == 4 * found["parameters"]
    assert (len(found["width_weight_bytes"]), found["width_seconds"]) == (4, [])
    assert found["refused"] == []


def test_compress_says_what_it_saved(run: Run, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "fast"
    ended = run("compress", model_folder, "--out", out, "--macs", 0.7, *CALL, "--ranking", "wanda", "--json")
    result, saved = ended.result(), report(out)
    assert result["levels"] == [list(row) for row in load(out).schedule.levels]
    for key in ("limit", "macs_ratio", "cost_ratio", "score", "held_out_score", "held_out_error", "steps"):
        assert result[key] == saved[key]
    assert 0.6 < result["macs_ratio"] <= result["limit"] == 0.7
    assert saved["settings"]["method"]["ranking"] == {"type": "Wanda"}
    assert saved["budget"] == {"macs": 0.7, "speedup": None, "weights_gb": None}
    assert asked(out)["origin"]["model"] == str(model_folder)
    assert "Saved in" in ended.out


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(run: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = run("compress", model_folder, "--out", tmp_path / "fast", "--macs", 0.7, *CALL, "--dry-run", "--json")
    found = ended.result()
    assert found["seconds"] == pytest.approx(sum(found["phases"].values()))
    assert found["memory"] > found["result"] > 0 == found["disk"]
    for told in ("rank and compensate", "in all", "weights of the result", "Less time, most of it to"):
        assert told in ended.out
    assert list(tmp_path.iterdir()) == []


def test_compress_by_depth_without_compensation(run: Run, model_folder: Path, tmp_path: Path) -> None:
    out, call = tmp_path / "out", [*CALL, "--scheduler", "DPMSolverMultistepScheduler", "--dtype", "bfloat16"]
    run("compress", model_folder, "--out", out, *call, "--prune", "depth", "--no-compensate", "--json").result()
    assert report(out)["settings"]["method"]["ladder"] == {"type": "Depth", "bypass": False}
    assert run("sample", out, "--count", 1, "--out", tmp_path, "--json").result()["labels"] == [0]


def test_a_finished_search_is_not_searched_again(run: Run, made: Path, model_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "fast"))
    call = ("compress", model_folder, "--out", copy, "--macs", 0.6, *CALL)
    again = run(*call)
    assert again.code == 2
    assert "expected no earlier search, found a journal of" in again.err
    assert "Add --resume" in again.err
    run(*call, "--resume", "--json").result()
    assert manifest(copy) == manifest(made)
    changed = run(*call, "--resume", "--seed", 1)
    assert changed.code == 2
    assert "seed 0 then and 1 now" in changed.err
    assert manifest(copy) == manifest(made)


def test_sample_writes_the_images_of_both_models(run: Run, made: Path, tmp_path: Path) -> None:
    labels = ("--label", "monster", "--label", "stone wall", "--label", "0")
    shown = {}
    for name, flags in {"diff-es": (), "dense": ("--dense",)}.items():
        ended = run("sample", made, *flags, "--count", 4, *labels, "--out", tmp_path / "images", "--json")
        result = ended.result()
        assert result["labels"] == [2, 1, 0, 2]
        assert result["images"] == [str(tmp_path / "images" / f"{name}-{i:03d}.png") for i in range(4)]
        shown[name] = [picture(path) for path in result["images"]]
        assert shown[name][0][0] == (16, 16)
        assert picture(result["sheet"])[0] == (8 * 96, 96)
    assert shown["dense"] != shown["diff-es"]
    again = run("sample", made, "--count", 4, *labels, "--out", tmp_path / "again", "--json").result()
    assert [picture(path) for path in again["images"]] == shown["diff-es"]


@pytest.mark.slow
def test_evaluate_compares_with_every_alternative(run: Run, made: Path, tmp_path: Path) -> None:
    target = tmp_path / "evaluation"
    result = run("evaluate", made, "--noises", 2, "--rounds", 1, "--out", target, "--json").result()
    assert result == json.loads((target / "result.json").read_text())
    names = ["dense", "fewer-steps", "uniform", "mosaicdiff", "random", "diff-es"]
    assert [row["contender"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row.keys() == {field.name for field in fields(Row)}
        assert row["macs_ratio"] <= row["budget"]
        assert (row["snr_db"] is None) == (row["contender"] == "dense")
        assert row["latency_ms"] > 0
    assert result["rows"][-1]["macs_ratio"] == report(made)["macs_ratio"]
    assert (target / "report.html").read_text().lower().startswith("<!doctype html>")


def test_bench_times_dense_routed_and_pruned(run: Run, made: Path) -> None:
    ended = run("bench", made, "--batch", 1, "--rounds", 2, "--json")
    result = ended.result()
    assert "…" not in ended.out, "a table is cut at 80 columns"
    names = ["dense", "routed at level 0", "diff-es, resident", "diff-es, streamed", "diff-es, stitched"]
    assert [row["runner"] for row in result["rows"]] == names
    dense, routed, resident, streamed, stitched = result["rows"]
    assert dense["speedup"] == dense["denoiser_speedup"] == 1
    assert dense["weight_bytes"] == routed["weight_bytes"] < resident["weight_bytes"] < stitched["weight_bytes"]
    assert streamed["weight_bytes"] < resident["weight_bytes"]
    assert dense["switch_ms"] is None
    assert all(row["switch_ms"] > 0 for row in result["rows"][1:])
    assert all(row["pipeline_ms"] > row["denoiser_ms"] > 0 for row in result["rows"])
    assert (result["steps"], result["rounds"], {row["batch"] for row in result["rows"]}) == (6, 2, {1})


JOINT = [
    "--reference-multiple",
    "4",
    "--levers",
    "prune,steps",
    "--units",
    "block",
    "--prune",
    "width,depth",
    "--front",
    "0.4, 0.9",
    "--first-rung",
    "1",
]
JOINT += ["--levels", "4", "--timestep-generations", "2", "--timestep-offspring", "2"]
JOINT += ["--generations", "3", "--search-noises", "3"]  # enough for each budget to find one of its own


@pytest.mark.slow
def test_steps_and_blocks_give_a_front_of_which_points_are_named(run: Run, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    call = ("compress", model_folder, "--out", out, "--macs", 0.6, *CALL, *JOINT)
    result = run(*call, "--json").result()
    points = [load(out, 1 / point["macs_ratio"]) for point in result["front"]]
    assert [point["limit"] for point in result["front"]] == [0.4, 0.6, 0.9]
    assert all(point["macs_ratio"] <= point["limit"] for point in result["front"])
    assert result["levels"] == [list(row) for row in load(out).schedule.levels]
    assert {len(row) for row in result["levels"]} == {2}  # blocks
    shown = []
    for point, flags in ((points[0], ("--point", 2.4)), (points[1], ()), (points[2], ("--point", 1.0))):
        ended = run("sample", out, "--count", 1, "--out", tmp_path / "images", "--steps", 6, *flags, "--json")
        shown.append([picture(path) for path in ended.result()["images"]])
        assert point.report.macs_ratio in [entry["macs_ratio"] for entry in result["front"]]
    assert shown[0] != shown[1] != shown[2]
    refused(run("sample", out, "--point", 99, "--out", tmp_path / "x"), "point: expected one of", "found 99x")
    refused(run("sample", out, "--steps", 17, "--out", tmp_path / "x"), "num_inference_steps: expected 6", "found 17")
    refused(run("export", out, "--out", tmp_path / "x"), "export: expected the sampler's own steps")
    refused(run(*call[:-2], "--front", "0.4;0.9", "--resume"), "--front: expected numbers between commas")
    rows = run("bench", out, "--point", 2.4, "--batch", 1, "--rounds", 1, "--json").result()["rows"]
    assert rows[-1]["macs_ratio"] == result["front"][0]["macs_ratio"]
    rows = run("evaluate", out, "--noises", 2, "--rounds", 1, "--random", 2, "--json").result()["rows"]
    assert {row["contender"]: row["own_snr_db"] is None for row in rows if row["budget"] == 1} == {"dense": True}
    for row in rows:
        assert row["snr_db"] > 0  # the dense model in the user's own setting is no longer the reference
        assert row["macs_ratio"] <= row["budget"]
    steps = {row["budget"]: row["steps"] for row in rows if row["contender"] == "diff-es"}
    assert steps == {point.report.limit: len(point.timesteps or ()) for point in points}  # the whole front
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------------ bad input


def refused(ended: Ended, *told: str) -> None:
    """Exit code 2 and one message, which says all this."""
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err + ended.out
    assert ended.err.count("error: ") == 1
    for part in told:
        assert part in ended.err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["--macs", "0.01"],
            ["BudgetOutOfReach: macs: expected at least 0.3248", "found 0.01. Ask for 0.3248"],
        ),
        (["--macs", "1.5"], ["BudgetOutOfReach: macs: expected a number above 0, at most 1, found 1.5."]),
        (["--stages", "7"], ["stages: expected a number from 1 to the 6 timesteps", "found 7. Ask for at most 6"]),
        (["--steps", "0"], ["num_inference_steps: expected a whole number from 1 to 10000, found 0."]),
        (["--search-noises", "0"], ["search_noises: expected a whole number from 1 to 1000000, found 0."]),
        (["--device", "abacus"], ["device", "abacus"]),
    ],
)
def test_bad_settings_are_one_message_and_nothing_is_written(
    changes: list[str], told: list[str], run: Run, model_folder: Path, tmp_path: Path
) -> None:
    refused(run("compress", model_folder, "--out", tmp_path / "out", *CALL, *changes), *told)
    assert list(tmp_path.iterdir()) == []


def test_bad_models_are_one_message_and_nothing_is_written(run: Run, model_folder: Path, tmp_path: Path) -> None:
    empty, other, torn = (tmp_path / name for name in ("empty", "other", "torn"))
    empty.mkdir()
    other.mkdir()
    index = {"_class_name": "KandinskyPipeline", "_diffusers_version": "0.42.0"}
    (other / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(model_folder, torn)
    weights = torn / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    out = tmp_path / "out"
    for model, told in (
        (empty, "expected a diffusers pipeline, found a folder without a model_index.json. "),
        (
            empty,
            "Give 'bundled', 'bundled-turbo' or 'bundled-unet', a folder with a model_index.json, a",
        ),
        (other, ", DDIMPipeline, found KandinskyPipeline. Convert the model to one of them"),
        (torn, "transformer: expected diffusion_pytorch_model.safetensors, in safetensors, found SafetensorError"),
        ("no-one/nothing-here", "no-one/nothing-here: expected a diffusers pipeline, found "),
    ):
        refused(run("compress", model, "--out", out, *CALL), "UnsupportedModel: ", told)
        refused(run("inspect", model), told)
        assert not out.exists()


def test_a_folder_of_others_is_never_written_to(run: Run, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    told = "StorageError: ", "an empty one or an earlier artefact, found a folder with other files."
    refused(run("compress", model_folder, "--out", tmp_path, *CALL), *told)
    refused(run("compress", model_folder, "--out", tmp_path / "thesis.tex", *CALL), "expected a folder, found a file")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


def test_bad_artefacts_and_labels_are_one_message(run: Run, made: Path, tmp_path: Path) -> None:
    refused(
        run("sample", tmp_path, "--out", tmp_path / "x"), "expected a diff-es.json in it, found none. Give the folder"
    )
    told = "--label: expected one of 3 classes, found dragon. The classes are 0 floor, "
    refused(run("sample", made, "--label", "dragon", "--out", tmp_path / "x"), told)
    refused(run("sample", made, "--label", "7", "--out", tmp_path / "x"), "--label: expected one of 3 classes, found 7")
    (tmp_path / "file").write_text("mine")
    refused(run("sample", made, "--count", 1, "--out", tmp_path / "file"), f"StorageError: {tmp_path / 'file'}")
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    victim = max(copy.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    for command in (["sample", copy, "--out", tmp_path / "x"], ["bench", copy], ["evaluate", copy]):
        refused(run(*command), f"{victim.name}: expected sha256", "The artefact is damaged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "file"]


@pytest.mark.slow
def test_ctrl_c_keeps_the_journal_and_resume_finishes(run: Run, model_folder: Path, tmp_path: Path) -> None:
    """The search has a hundred evaluations: those that run while the signal is on its way cannot finish it."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    call = [
        "compress",
        str(model_folder),
        "--macs",
        "0.6",
        *CALL,
        "--generations",
        "10",
        "--search-noises",
        "1",
        "--out",
    ]
    python = [sys.executable, "-m", "diff_es", *call, str(out)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process, to the same scores
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell runs in the background ignores Ctrl-C
    pipe = subprocess.PIPE
    child = subprocess.Popen(python, stdout=pipe, stderr=pipe, text=True, env=one_thread, preexec_fn=heard)
    journal, deadline = out / "journal.jsonl", time.monotonic() + 120
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 4):
        assert child.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in stdout + stderr
    told = f"Stopped by SIGINT. What was evaluated is in {journal}: run the same command with --resume to go on."
    assert stderr.splitlines()[-1] == told
    assert [path.name for path in out.iterdir()] == ["journal.jsonl"]
    header, *evaluated = journal.read_bytes().splitlines(keepends=True)
    run(*call, out, "--resume", "--json").result()
    whole.mkdir()
    (whole / "journal.jsonl").write_bytes(header)  # what was timed when the search began, and no evaluation
    run(*call, whole, "--resume", "--json").result()
    assert manifest(out) == manifest(whole)
    assert journal.read_bytes() == (whole / "journal.jsonl").read_bytes()
    assert 4 <= len(evaluated) < len(journal.read_bytes().splitlines()) - 1
