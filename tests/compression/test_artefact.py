"""Laws of a saved result: whole again in another process, without the base model, and refused where it does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file
from tests.helpers.fresh import images_of
from tests.helpers.tiny import (
    LITTLE,
    assert_same,
    assert_same_plans,
    images,
    joint,
    random_plan,
    settings,
    snapshot,
    tiny,
)

from diff_es import ArtefactError, Compressed, Depth, DiffESError, Method, compress, load
from diff_es.layers import discover
from diff_es.routing.realise import check_plan
from diff_es.utils.files import digest


@pytest.fixture(scope="module")
def skipping() -> Compressed:
    return compress(tiny(), 0.8, settings(method=Method(Depth()), **LITTLE))


@pytest.fixture(scope="module")
def corrected() -> Compressed:
    found = compress(tiny(), 0.6, joint(population=2, generations=1, timestep_generations=1, finalists=1, survivors=1))
    assert found.timesteps is not None
    assert len(found.corrections) == len(found.timesteps)
    assert any(found.corrections)
    return found


@pytest.fixture
def folder(fast: Compressed, tmp_path: Path) -> Path:
    """``fast``, saved."""
    fast.save(tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.slow
def test_a_fresh_process_gives_bitwise_the_same_images(
    fast: Compressed, skipping: Compressed, corrected: Compressed, model_folder: Path, tmp_path: Path
) -> None:
    pipe, model, folders = tiny(), str(model_folder), []
    expected = {model: images(pipe)}
    for name, result in (("width", fast), ("depth", skipping), ("corrected", corrected)):
        folders.append(str(tmp_path / name))
        result.save(folders[-1])
        with result.routed(pipe):
            expected[folders[-1]] = images(pipe)
        assert not torch.equal(expected[folders[-1]], expected[model])
    found = images_of([(model, folder) for folder in folders], tmp_path / "images.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_load_gives_back_what_was_saved(
    fast: Compressed, skipping: Compressed, corrected: Compressed, tmp_path: Path
) -> None:
    for result in (fast, skipping, corrected):
        result.save(tmp_path / "out")  # the second replaces the first
        loaded = load(tmp_path / "out")
        assert (loaded.schedule, loaded.sampling, loaded.base) == (result.schedule, result.sampling, result.base)
        assert (loaded.timesteps, loaded.corrections) == (result.timesteps, result.corrections)
        assert (loaded.report, loaded.origin) == (result.report, result.origin)
        assert_same_plans(loaded.plans, result.plans)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_corrected_steps_are_refused_under_another_sampler(corrected: Compressed) -> None:
    pipe = tiny(scheduler=DPMSolverMultistepScheduler)
    message = r"scheduler: expected DDIMScheduler, for which steps are corrected, found DPMSolverMultistepScheduler"
    with pytest.raises(ArtefactError, match=message), corrected.routed(pipe):
        pass
    with replace(corrected, corrections=()).routed(pipe):
        pass


def test_corrections_of_another_number_of_steps_are_refused(corrected: Compressed) -> None:
    with pytest.raises(ArtefactError, match=r"expected corrections of \d+ steps, found 1\. Compress again"):
        replace(corrected, corrections=corrected.corrections[:1])


def test_an_artefact_holds_no_base_weights_and_no_pickle(skipping: Compressed, folder: Path, tmp_path: Path) -> None:
    skipping.save(tmp_path / "depth")
    files = [*folder.iterdir(), *(tmp_path / "depth").iterdir()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    dense = list(tiny().transformer.state_dict().values())
    saved = [tensor for path in files if path.suffix == ".safetensors" for tensor in load_file(path).values()]
    assert len(saved) > 20
    for tensor in saved:
        assert not any(tensor.shape == own.shape and torch.equal(tensor.to(own.dtype), own) for own in dense)
    for path in files:
        if path.suffix == ".safetensors":
            assert not any("to_q" in name or "to_k" in name or "to_v" in name for name in load_file(path))


def test_saving_keeps_the_journal_and_nothing_else(fast: Compressed, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "journal.jsonl").write_text("{}\n")
    fast.save(folder)
    assert (folder / "journal.jsonl").read_text() == "{}\n"
    assert load(folder).schedule == fast.schedule
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("ten years")
    with pytest.raises(DiffESError, match=r"mine: expected .*an empty one or an earlier artefact, found a folder with"):
        fast.save(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


# ------------------------------------------------------------------------------------------------------ the wrong model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 2}, r"base model, transformer_blocks\.\d\.\w+: expected an output projection of shape"),
        ({"heads": 8, "head_size": 2}, r"base model, transformer_blocks\.\d\.attn1: expected an output projection of"),
        ({"layers": 1}, r"base model, transformer_blocks\.1\.\w+: expected a prunable layer of that name, found none"),
        ({"head_size": 8}, r"base model, transformer_blocks\.0\.\w+: expected an output projection of shape"),
        ({"layers": 3}, "hash of the base model: expected"),
        ({"patch": 1}, "hash of the base model: expected"),
        ({"activation": "geglu"}, "hash of the base model: expected"),
        ({"seed": 1}, r"hash of the base model: expected \w{12}\.\.\., .* found \w{12}.* Load the pipeline that was"),
    ],
)
def test_another_base_model_is_refused(changes: dict[str, Any], message: str, fast: Compressed) -> None:
    pipe = tiny(**changes)
    before = snapshot(pipe.transformer)
    with pytest.raises(ArtefactError, match=message), fast.routed(pipe):
        pass
    with pytest.raises(ArtefactError, match=message):
        fast.apply(pipe)
    assert_same(before, snapshot(pipe.transformer))


def test_a_plan_that_keeps_groups_which_a_model_has_not_is_refused() -> None:
    plan, other = random_plan(tiny(), 0), tiny(heads=2)
    kept = torch.cat([cut.kept for name, cut in plan.cuts.items() if name.endswith("attn1")])
    assert int(kept.max()) >= 2
    with pytest.raises(
        ArtefactError, match=r"base model, transformer_blocks\.\d\.\w+: expected ascending groups from 0 to"
    ):
        check_plan(other.transformer, discover(other.transformer), plan)


def test_a_model_trained_on_is_refused(fast: Compressed) -> None:
    pipe = tiny()
    with torch.no_grad():
        pipe.transformer.transformer_blocks[1].attn1.to_q.weight *= 1.05
    with pytest.raises(ArtefactError, match="hash of the base model"):
        fast.apply(pipe)


def test_a_model_in_bfloat16_is_the_same_model(fast: Compressed) -> None:
    pipe = tiny(dtype=torch.bfloat16)
    dense = images(pipe)
    with fast.routed(pipe):
        assert not torch.equal(images(pipe), dense)
    assert torch.equal(images(pipe), dense)


# ----------------------------------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, halve, Path.unlink])
def test_a_damaged_file_is_named(harm: Callable[[Path], None], folder: Path) -> None:
    victim = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    harm(victim)
    with pytest.raises(ArtefactError, match=rf"{re.escape(victim.name)}: expected .* The artefact is damaged"):
        load(folder)


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    manifest = folder / "diff-es.json"
    whole = manifest.read_text()
    halve(manifest)
    with pytest.raises(ArtefactError, match=r"diff-es\.json: expected a readable manifest"):
        load(folder)
    manifest.write_text(whole.replace('"format": 4', '"format": 99'))
    with pytest.raises(
        ArtefactError,
        match=r"diff-es\.json: expected format 4 or an earlier one from 3 on, found format 99\. Compress again",
    ):
        load(folder)
    for key in ("schedule", "stages", "base", "sampling", "timesteps", "corrections", "placement", "origin", "report"):
        harmed = json.loads(whole)
        del harmed["points"][0][key]
        manifest.write_text(json.dumps(harmed))
        with pytest.raises(ArtefactError, match=r"diff-es\.json: expected the hash of its contents"):
            load(folder)
    manifest.unlink()
    with pytest.raises(ArtefactError, match=r"out: expected a diff-es\.json in it, found none"):
        load(folder)
    with pytest.raises(ArtefactError, match=r"nowhere: expected a diff-es\.json in it, found none"):
        load(folder / "nowhere")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest changed by someone who also puts its own hash right."""
    manifest = json.loads((folder / "diff-es.json").read_text())
    change(manifest)
    del manifest["sha256"]
    (folder / "diff-es.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))


def leave_untied(manifest: dict[str, Any]) -> None:
    for point in manifest["points"]:
        del point["sha256"]


def test_an_artefact_of_an_earlier_version_loads(fast: Compressed, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.rename(folder / f"{path.name.partition('.')[0]}.safetensors")

    def plain(manifest: dict[str, Any]) -> None:
        leave_untied(manifest)
        files = manifest["files"].items()
        manifest["files"] = {f"{name.partition('.')[0]}.safetensors": facts for name, facts in files}

    rewritten(folder, plain)
    loaded = load(folder)
    assert loaded.schedule == fast.schedule
    assert (loaded.report, loaded.origin) == (fast.report, fast.origin)
    assert_same_plans(loaded.plans, fast.plans)
    loaded.save(folder)
    assert len(list(folder.iterdir())) == 1 + len({id(plan) for plan in fast.plans})


def test_a_schedule_is_tied_to_its_tensors(folder: Path) -> None:
    def other_levels(manifest: dict[str, Any]) -> None:
        first = manifest["points"][0]["schedule"]["levels"][0]
        first[0] = (first[0] + 1) % 8

    def other_stages(manifest: dict[str, Any]) -> None:
        manifest["points"][0]["stages"].reverse()

    whole = (folder / "diff-es.json").read_text()
    for change in (other_levels, other_stages):
        (folder / "diff-es.json").write_text(whole)
        rewritten(folder, change)
        with pytest.raises(ArtefactError, match=r"points\[0\]: expected the schedule, settings and tensors that were"):
            load(folder)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("sampling", "num_inference_steps"),
            0,
            r"points\[0\]\.sampling, sampling: num_inference_steps: expected a whole number .*, found 0",
        ),
        (
            ("sampling", "batch"),
            "x",
            r"points\[0\]\.sampling, sampling: batch: expected a whole number .*, found 'x'",
        ),
        (("schedule", "boundaries"), [1, 2], r"points\[0\]\.schedule, stage boundaries: expected strictly descending"),
        (("schedule", "levels", 0), [4], r"schedule\.levels\[0\]: expected levels from 0 to 3, found 4"),
        (("stages", 0, "file"), "../x", r"stages\[0\]\.file: expected one of plan-00.*, found \.\./x"),
        (("stages",), [], r"points\[0\], stages: expected a length of 3, found 0"),
        (("corrections",), [[0.1]], r"points\[0\], corrections: expected a length of 0, found 1"),
        (("placement",), {"type": "Width"}, r"placement: expected .*Streamed.*, found a Width"),
        (("base",), "x", r"points\[0\]\.base: expected"),
        (("report", "budget", "macs"), float("nan"), r"report\.budget\.macs: expected a finite number, found nan"),
        (("report", "limit"), float("nan"), r"report\.limit: expected a finite number, found nan"),
        (("report", "finalists"), [], r"report\.finalists: expected"),
        (
            ("report", "settings", "seed"),
            "0",
            r"report\.settings, settings: seed: expected a whole number .*, found '0'",
        ),
        (("origin", "dtype"), "nn", r"origin\.dtype: expected 'float16', .*, found 'nn'"),
        (("report", "sensitivity", "levels"), [], r"report\.sensitivity\.levels: expected a length of 3, found 0"),
    ],
)
def test_an_edited_entry_is_named(folder: Path, place: tuple[Any, ...], value: Any, message: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        leave_untied(manifest)
        *above, key = place
        entry = manifest["points"][0]
        for step in above:
            entry = entry[step]
        entry[key] = value

    rewritten(folder, change)
    with pytest.raises(ArtefactError, match=rf"diff-es\.json: .*{message}.* The manifest was changed by hand"):
        load(folder)


# -------------------------------------------------------------------------------------------------- apply and remove


def test_apply_and_remove_are_the_routed_context(fast: Compressed, skipping: Compressed) -> None:
    pipe = tiny()
    before, dense = snapshot(pipe.transformer), images(pipe)
    for result in (fast, skipping):
        with result.routed(pipe) as same:
            assert same is pipe
            expected = images(pipe)
        result.apply(pipe)
        assert torch.equal(images(pipe), expected)
        for again in (fast.apply, skipping.apply):
            with pytest.raises(DiffESError, match=r"pipe: expected a dense pipeline, .* routed already\. Leave"):
                again(pipe)
        assert torch.equal(images(pipe), expected)
        result.remove(pipe)
        assert_same(before, snapshot(pipe.transformer))
        assert torch.equal(images(pipe), dense)
        with pytest.raises(DiffESError, match=r"pipe: expected a pipeline with a result applied, found a dense one"):
            result.remove(pipe)


def test_remove_inside_the_context_leaves_it_early(fast: Compressed) -> None:
    pipe = tiny()
    before = snapshot(pipe.transformer)
    with fast.routed(pipe):
        fast.remove(pipe)
        assert_same(before, snapshot(pipe.transformer))
    assert_same(before, snapshot(pipe.transformer))


def test_a_result_runs_with_other_steps_batches_and_guidance(fast: Compressed, tmp_path: Path) -> None:
    fast.save(tmp_path / "out")
    again = load(tmp_path / "out")
    for labels, steps, guidance in (([1], 9, 1.0), ([1, 2, 3], 4, 3.0)):
        pipe, other = tiny(), tiny()
        with fast.routed(pipe), again.routed(other):
            assert torch.equal(images(pipe, labels, steps, guidance), images(other, labels, steps, guidance))
