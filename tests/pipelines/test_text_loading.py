"""Text pipelines from folders and single files, and what cannot be loaded, by a clear message."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.pipelines import CASES as ALL
from tests.helpers.pipelines import made
from tests.helpers.single_file import write_sdxl, write_stable_diffusion

from diff_es import DiffESError, UnsupportedModel
from diff_es.pipelines.loading import load, origin_of, reopen
from diff_es.pipelines.probes import make_probes, read_prompts
from diff_es.pipelines.sampling import decode, sample

CASES = {name: replace(one, sampling=replace(one.sampling, num_inference_steps=2)) for name, one in ALL.items()}
WRITERS = {"SD": write_stable_diffusion, "SDXL": write_sdxl}


@pytest.mark.parametrize("name", CASES)
def test_a_saved_pipeline_is_loaded_and_found_again(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pipe = made(case.make)
    probes = make_probes(pipe, 2, 0, "test")
    expected = sample(pipe, probes, case.sampling)
    pipe.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), device="cpu")
    assert type(loaded) is type(pipe)
    assert torch.equal(sample(loaded, probes, case.sampling), expected)
    again = reopen(origin_of(loaded))
    assert torch.equal(sample(again, probes, case.sampling), expected)


@pytest.mark.parametrize("name", WRITERS)
def test_a_single_file_is_the_pipeline_that_it_was_written_from(name: str, tmp_path: Path) -> None:
    case, file, folder = CASES[name], tmp_path / "model.safetensors", tmp_path / "configurations"
    pipe = made(case.make)
    WRITERS[name](pipe, file)
    pipe.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()  # all weights are the single file's
    probes = make_probes(pipe, 2, 0, "test")
    loaded = load(str(file), config=str(folder), device="cpu")
    assert type(loaded) is type(pipe)
    expected = sample(pipe, probes, case.sampling)
    assert torch.equal(sample(loaded, probes, case.sampling), expected)
    assert torch.equal(decode(loaded, expected), decode(pipe, expected))
    with chdir(tmp_path):
        origin = origin_of(load(file.name, config=folder.name, device="cpu"))
    assert (origin.model, origin.config) == (str(file), str(folder)), "from wherever it is opened again"
    assert torch.equal(sample(reopen(origin), probes, case.sampling), expected)


def test_without_configurations_and_network_a_single_file_says_what_to_give(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_stable_diffusion(made(CASES["SD"].make), file)
    with pytest.raises(UnsupportedModel, match=r"offline with --config, a folder that holds its configurations"):
        load(str(file), device="cpu")


def _of_nothing_known(file: Path) -> None:
    save_file({"x": torch.zeros(1)}, file)


def _of_nine_channels(file: Path) -> None:
    write_stable_diffusion(made(CASES["SD"].make), file)
    tensors = load_file(file)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = tensors[first].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, file)


def _of_no_text(file: Path) -> None:
    write_stable_diffusion(made(CASES["SD"].make), file)
    save_file({name: value for name, value in load_file(file).items() if "cond_stage" not in name}, file)


def _of_no_tensors(file: Path) -> None:
    file.write_bytes(b"not tensors")


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (_of_nothing_known, r"no model\.diffusion_model\.input_blocks\.0\.0\.weight among its 1 tensors"),
        (_of_nine_channels, "a denoiser of 9 input channels, as for inpainting"),
        (_of_no_text, "a denoiser, but the text encoders of neither"),
        (_of_no_tensors, "found"),
    ],
)
def test_other_single_files_are_refused(write: Callable[[Path], None], found: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write(file)
    with pytest.raises(UnsupportedModel, match=f"expected a checkpoint of Stable Diffusion or SDXL.*{found}"):
        load(str(file), device="cpu")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"missing\.safetensors"):
        load(str(tmp_path / "missing.safetensors"), device="cpu")


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(CASES["SD"].make).save_pretrained(tmp_path)
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(
        "diff_es.pipelines.loading.find_spec", lambda name: None if name == "transformers" else find(name)
    )
    with pytest.raises(UnsupportedModel, match=r"expected transformers.*found none.* pip install 'diff-es\[text\]'"):
        load(str(tmp_path), device="cpu")
    made(CASES["DDPM"].make).save_pretrained(tmp_path / "pixels")
    assert load(str(tmp_path / "pixels"), device="cpu").unet.dtype is torch.float32


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\n\n  two hats, blue \n", encoding="utf-8")
    assert read_prompts(file) == ("a fox", "two hats, blue")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(DiffESError, match=r"prompts\.txt: expected prompts, one on each line, found none"):
        read_prompts(file)
    with pytest.raises(DiffESError, match=r"missing\.txt: expected prompts, one on each line"):
        read_prompts(tmp_path / "missing.txt")
