"""What an exported folder holds, how it loads, and when none is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from tests.helpers.exports import both, bypassed, left_out, open_export, result_of, routed_images, thin
from tests.helpers.tiny import assert_same, images, random_plan, settings, snapshot, tiny

from diff_es import ArtefactError, Compressed, DiffESError, StorageError, UnsupportedModel, compress, export
from diff_es.cli.app import main
from diff_es.compression.pruned_transformer import PrunedDiTTransformer2DModel
from diff_es.layers import DENSE, Plan

OWN_FILE = "pruned_transformer.py"


@pytest.mark.parametrize("options", [{"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}])
def test_it_loads_with_and_without_the_meta_device(options: dict[str, Any], tmp_path: Path) -> None:
    pipe = tiny()
    result = result_of(pipe, both(pipe, 0))
    export(result, pipe, tmp_path / "out")
    assert torch.equal(images(open_export(tmp_path / "out", **options)), routed_images(result, pipe))


def test_no_code_runs_without_trust(tmp_path: Path) -> None:
    pipe = tiny()
    export(result_of(pipe, both(pipe, 1)), pipe, tmp_path / "out")
    with pytest.raises(ValueError, match=rf"(?s)contains custom code in {OWN_FILE}.*trust_remote_code=True"):
        DiTPipeline.from_pretrained(tmp_path / "out")


def test_a_loaded_export_can_be_saved_again(tmp_path: Path) -> None:
    pipe = tiny(names=("floor", "wall, stone wall"))
    result = result_of(pipe, both(pipe, 0))
    export(result, pipe, tmp_path / "out")
    open_export(tmp_path / "out").save_pretrained(tmp_path / "again")
    indices = [json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("out", "again")]
    assert (
        indices[0]["transformer"] == indices[1]["transformer"] == ["pruned_transformer", "PrunedDiTTransformer2DModel"]
    )
    assert torch.equal(images(open_export(tmp_path / "again")), routed_images(result, pipe))


def test_the_file_beside_the_weights_is_the_one_of_the_package(tmp_path: Path) -> None:
    pipe = tiny(layers=3)
    export(result_of(pipe, both(pipe, 1)), pipe, tmp_path / "out")
    own = Path(sys.modules[export.__module__].__file__ or "").with_name(OWN_FILE)
    assert (tmp_path / "out" / "transformer" / OWN_FILE).read_bytes() == own.read_bytes()
    config = PrunedDiTTransformer2DModel.load_config(tmp_path / "out" / "transformer")
    assert config["pruning"]["heads"] == {f"transformer_blocks.{i}.attn1": 3 for i in (0, 2)}
    assert config["pruning"]["channels"] == {f"transformer_blocks.{i}.ff": 33 for i in (0, 2)}
    assert config["pruning"]["skipped"] == {"transformer_blocks.1": {"bypass": 16, "keeps": []}}


def test_nothing_tells_where_the_base_model_lay(model_folder: Path, tmp_path: Path) -> None:
    pipe = DiTPipeline.from_pretrained(model_folder)
    export(result_of(pipe, left_out(1)), pipe, tmp_path / "out")
    configs = [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".json"]
    assert len(configs) == 4
    assert not any(str(model_folder) in path.read_text() for path in configs)


def test_the_source_pipeline_is_untouched(tmp_path: Path) -> None:
    pipe = tiny(names=("floor", "wall"))
    pipe.save_pretrained(tmp_path / "base")  # diffusers notes its version in the configurations of what it saves
    before, config, parts = snapshot(pipe.transformer), deepcopy(dict(pipe.config)), dict(pipe.components)
    vae, dense = snapshot(pipe.vae), images(pipe)
    for name, plan in (("stock", left_out(1)), ("own", both(pipe, 0))):
        export(result_of(pipe, plan), pipe, tmp_path / name)
        assert_same(before, snapshot(pipe.transformer))
        assert_same(vae, snapshot(pipe.vae))
        assert dict(pipe.config) == config
        assert all(pipe.components[part] is module for part, module in parts.items())
    assert torch.equal(images(pipe), dense)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("plans", "levels", "told"),
    [
        (lambda pipe: (DENSE, left_out(1)), (0, 1), "stages 0 and 1 at different levels"),
        (lambda pipe: (thin(pipe), thin(pipe), random_plan(pipe, 2)), (3, 3, 3), "stages 0 and 2 of one level, with"),
        (lambda pipe: (left_out(1), left_out(2)), (1, 1), "stages 0 and 1 of one level, with"),
        (lambda pipe: (left_out(1), bypassed(pipe, 1)), (1, 1), "stages 0 and 1 of one level, with"),
    ],
)  # fmt: skip
def test_stages_that_differ_are_refused_with_the_reason(
    plans: Callable[[DiTPipeline], tuple[Plan, ...]], levels: tuple[int, ...], told: str, tmp_path: Path
) -> None:
    pipe = tiny()
    with pytest.raises(DiffESError, match=f"export: expected one set of weights for all stages, found {told}") as error:
        export(result_of(pipe, *plans(pipe), levels=levels), pipe, tmp_path / "out")
    assert "`diff_es.load(...).routed(pipe)`" in error.value.remedy
    assert "--stages 1" in error.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_search_over_stages_is_refused(fast: Compressed, tmp_path: Path) -> None:
    with pytest.raises(DiffESError, match="expected one set of weights for all stages"):
        export(fast, tiny(), tmp_path / "out")


def test_another_base_model_and_a_routed_one_are_refused(tmp_path: Path) -> None:
    pipe = tiny()
    result = result_of(pipe, left_out(1))
    with pytest.raises(ArtefactError, match="hash of the base model"):
        export(result, tiny(seed=1), tmp_path / "out")
    with result.routed(pipe), pytest.raises(DiffESError, match="expected a dense pipeline"):
        export(result, pipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_a_pruned_form_is_refused(tmp_path: Path) -> None:
    pipe, other = tiny(), tiny()

    class Mine(type(pipe.transformer)):  # type: ignore[misc]
        pass

    other.transformer.__class__ = Mine
    with pytest.raises(UnsupportedModel, match=r"pipe\.transformer: expected DiTTransformer2DModel, found Mine"):
        export(result_of(pipe, both(pipe, 1)), other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_a_new_or_empty_folder_is_written_to(tmp_path: Path) -> None:
    pipe = tiny()
    result = result_of(pipe, left_out(1))
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("ten years")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for target, message in (
        (tmp_path / "full", "expected a new or an empty folder, found a folder with files in it"),
        (tmp_path / "full" / "thesis.tex", "expected a folder, found a file"),
    ):
        with pytest.raises(StorageError, match=message):
            export(result, pipe, target)
    assert export(result, pipe, tmp_path / "link").folder == tmp_path / "empty"
    with pytest.raises(StorageError, match="found a folder with files in it"):
        export(result, pipe, tmp_path / "empty")
    export(result, pipe, tmp_path / "deep" / "er")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "full", "link"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("part", ["vae", "scheduler"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_an_export_that_fails_halfway_leaves_nothing(
    part: str, error: BaseException, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transformer is written before both."""
    pipe, out, seen = tiny(), tmp_path / "out", list[list[str]]()
    if existing:
        out.mkdir()

    def full(folder: str, **_: Any) -> None:
        seen.append(sorted(path.name for path in Path(folder).parent.iterdir()))
        raise error

    monkeypatch.setattr(pipe.components[part], "save_pretrained", full)
    told = StorageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(told):
        export(result_of(pipe, both(pipe, 1)), pipe, out)
    assert "transformer" in seen[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * existing
    monkeypatch.undo()
    export(result_of(pipe, both(pipe, 1)), pipe, out)
    assert (out / "model_index.json").exists()


# ---------------------------------------------------------------------------------------------------- command line


def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``diff-es`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["diff-es", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), *capfd.readouterr()


def test_the_command_exports_and_says_how_to_load(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = DiTPipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    result = compress(pipe, 0.8, settings(stages=1))
    result.save(tmp_path / "fast")
    expected = routed_images(result, pipe)
    code, out, _ = command(monkeypatch, capfd, "export", tmp_path / "fast", "--out", tmp_path / "out", "--json")
    assert code == 0
    told = json.loads(out.splitlines()[-1])
    assert (told["pipeline"], told["denoiser"], told["stock"]) == ("DiTPipeline", "PrunedDiTTransformer2DModel", False)
    assert 0 < told["weight_bytes"] < told["dense_weight_bytes"]
    assert told["call"] in out.splitlines()
    assert torch.equal(images(open_export(Path(told["out"]))), expected)
    code, out, err = command(monkeypatch, capfd, "export", tmp_path / "fast", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "error: StorageError" in err
