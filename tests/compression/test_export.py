"""Laws of an export: the routed pipeline to the bit, smaller, and no Diff-ES to load it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, DiffusionPipeline, DiTPipeline, DPMSolverMultistepScheduler
from safetensors.torch import load_file
from tests.helpers.exports import (
    both,
    bypassed,
    left_out,
    modules_beside,
    open_export,
    result_of,
    routed_images,
    share_the_embedder,
    thin,
)
from tests.helpers.tiny import LITTLE, images, random_plan, settings, tiny
from torch import Tensor

from diff_es import Depth, Exported, Method, compress, export
from diff_es.layers import DENSE, Cut, Plan, discover

OWN_FILE = "pruned_transformer.py"


def sliced(pipe: DiTPipeline) -> Plan:
    """Without weights of its own."""
    return Plan({name: Cut(cut.kept) for name, cut in thin(pipe).cuts.items()})


PLANS: dict[str, tuple[Callable[[DiTPipeline], Plan], bool]] = {  # and whether diffusers' own class can hold it
    "width": (thin, False),
    "sliced": (sliced, False),
    "left out": (lambda pipe: left_out(1), True),
    "two left out": (lambda pipe: left_out(1, 2), True),
    "first left out": (lambda pipe: left_out(0), False),
    "all left out": (lambda pipe: left_out(0, 1, 2), False),
    "first bypassed": (lambda pipe: bypassed(pipe, 0, 2), False),
    "both": (lambda pipe: both(pipe, 1), False),
    "both, first": (lambda pipe: both(pipe, 0), False),
    "thin and left out": (lambda pipe: Plan(thin(pipe).cuts, left_out(2).bypasses), False),
}
CASES = [*((name, torch.float32) for name in PLANS), *((name, torch.bfloat16) for name in ("left out", "both, first"))]


def check_weights(found: Exported, plan: Plan) -> None:
    """On the disk are the weights that run, and no others."""
    weights = load_file(found.folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert sum(tensor.nbytes for tensor in weights.values()) == found.bytes < found.dense_bytes
    if not found.stock:
        for block, bypass in plan.bypasses.items():
            parts = {key.removeprefix(f"{block}.") for key in weights if key.startswith(f"{block}.")}
            assert ("bypass.weight" in parts) is (bypass is not None)
            read = any(part.startswith("norm1.emb.") for part in parts)  # at the end of DiT's forward
            assert read is (block == "transformer_blocks.0")
            assert not any(part.startswith(("attn", "ff", "norm1.linear")) for part in parts)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_an_export_is_the_routed_pipeline_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = tiny(layers=3, dtype=dtype)
    make, stock = PLANS[name]
    result = result_of(pipe, *[make(pipe)] * 3)
    expected = routed_images(result, pipe)
    found = export(result, pipe, tmp_path / "out")
    assert found.stock is stock
    assert (tmp_path / "out" / "transformer" / OWN_FILE).exists() is not stock
    check_weights(found, result.plans[0])
    loaded = open_export(tmp_path / "out").to(dtype)  # as the base was: loaded in float32, then cast
    assert torch.equal(images(loaded), expected)
    assert type(loaded.transformer).__name__ == found.denoiser


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "geglu"},
        {"sigma": True, "heads": 3, "head_size": 24},
        {"decoder": AutoencoderDC, "scheduler": DPMSolverMultistepScheduler, "names": ("floor", "wall, stone wall")},
    ],
)
def test_other_models_export_as_well(changes: dict[str, Any], tmp_path: Path) -> None:
    pipe = tiny(**{"layers": 3, **changes})
    for name, plan in (("both", both(pipe, 1)), ("left out", left_out(2))):
        result = result_of(pipe, plan)
        expected = routed_images(result, pipe, steps=4, guidance=1.0)
        export(result, pipe, tmp_path / name)
        loaded = open_export(tmp_path / name)
        assert torch.equal(images(loaded, steps=4, guidance=1.0), expected)
        assert loaded.labels == pipe.labels
        assert loaded.scheduler.to_json_string() == pipe.scheduler.to_json_string()
        assert [type(part) for part in (loaded.vae, loaded.scheduler)] == [type(pipe.vae), type(pipe.scheduler)]


@pytest.mark.parametrize("blocks", [(0,), (0, 1), (0, 2)])
def test_the_first_block_goes_in_stock_form_where_all_share_an_embedder(
    blocks: tuple[int, ...], tmp_path: Path
) -> None:
    pipe = tiny(layers=3)
    share_the_embedder(pipe)
    result = result_of(pipe, left_out(*blocks))
    expected = routed_images(result, pipe)
    assert export(result, pipe, tmp_path / "out").stock
    loaded = DiTPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images(loaded), expected)
    assert len(loaded.transformer.transformer_blocks) == 3 - len(blocks)


def test_a_model_loaded_in_bfloat16_stays_in_it(model_folder: Path, tmp_path: Path) -> None:
    """Loaded so, diffusers keeps the table of positions in float32."""
    pipe = DiTPipeline.from_pretrained(model_folder, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    result = result_of(pipe, both(pipe, 1))
    expected = routed_images(result, pipe)
    found = export(result, pipe, tmp_path / "out")
    assert found.call.endswith(f"{str(tmp_path / 'out')!r}, dtype=torch.bfloat16, trust_remote_code=True)")
    with modules_beside(tmp_path / "out"):
        loaded = eval(found.call, {"DiffusionPipeline": DiffusionPipeline, "torch": torch})
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images(loaded), expected)
    weights = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert loaded.labels == pipe.labels == {"floor": 0, "wall": 1, "stone wall": 1, "monster": 2}


FRESH = """
import json, sys
sys.modules["diff_es"] = None  # importing it is an error
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from safetensors.torch import save_file
torch.set_num_threads(1)
torch.set_grad_enabled(False)
shown = {}
for name, call in json.loads(sys.argv[1]).items():
    pipe = eval(call)
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    call = dict(guidance_scale=2.0, num_inference_steps=6, generator=noise, output_type="pt")
    shown[name] = pipe(class_labels=[1, 2], **call).images.contiguous()
save_file(shown, sys.argv[2])
"""


def in_a_fresh_process(calls: dict[str, str], tmp_path: Path) -> dict[str, Tensor]:
    """What these expressions' pipelines show, where Diff-ES cannot be imported."""
    target, apart = tmp_path / "images.safetensors", {"HF_MODULES_CACHE": str(tmp_path / "cache")}
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", FRESH, json.dumps(calls), str(target)]
    subprocess.run(command, cwd=tmp_path, env=bare | apart, check=True, timeout=240)
    return load_file(target)


@pytest.mark.slow
def test_exports_load_where_diff_es_cannot_be_imported(model_folder: Path, tmp_path: Path) -> None:
    calls, expected = dict[str, str](), dict[str, Tensor]()
    for dtype in (torch.float32, torch.bfloat16):
        pipe = DiTPipeline.from_pretrained(model_folder, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        plans = {"width": thin(pipe), "left out": left_out(1), "bypassed": bypassed(pipe, 0), "both": both(pipe, 1)}
        for name, plan in plans.items():
            result, key = result_of(pipe, plan, plan), f"{name} in {dtype}"
            expected[key] = routed_images(result, pipe)
            calls[key] = export(result, pipe, tmp_path / key).call
    again = open_export(tmp_path / "both in torch.float32")
    again.save_pretrained(tmp_path / "again")
    calls["again"] = calls["both in torch.float32"].replace("both in torch.float32", "again")
    expected["again"] = expected["both in torch.float32"]
    found = in_a_fresh_process(calls, tmp_path)
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key]), key


def test_searched_results_of_one_stage_export(tmp_path: Path) -> None:
    methods = {"width": settings().method, "depth": Method(Depth()), "plain": Method(Depth(bypass=False))}
    for name, method in methods.items():
        pipe = tiny(layers=3)
        result = compress(pipe, 0.8, settings(stages=1, method=method, **LITTLE))
        expected = routed_images(result, pipe)
        export(result, pipe, tmp_path / name)
        assert torch.equal(images(open_export(tmp_path / name)), expected), name


def test_all_stages_dense_export_as_the_dense_model(tmp_path: Path) -> None:
    pipe = tiny(layers=3)
    found = export(result_of(pipe, DENSE, DENSE, levels=(0, 0)), pipe, tmp_path / "out")
    assert found.stock
    assert found.bytes == found.dense_bytes
    assert torch.equal(images(open_export(tmp_path / "out")), images(pipe))


def test_equal_plans_need_not_be_the_same_object(tmp_path: Path) -> None:
    pipe = tiny(layers=3)
    result = result_of(pipe, both(pipe, 1), both(pipe, 1))
    assert result.plans[0] is not result.plans[1]
    expected = routed_images(result, pipe)
    export(result, pipe, tmp_path / "out")
    assert torch.equal(images(open_export(tmp_path / "out")), expected)


def test_layers_are_built_as_the_routed_model_runs_them(tmp_path: Path) -> None:
    pipe = tiny(layers=3, activation="geglu")
    plan = random_plan(pipe, 1)
    result = result_of(pipe, plan)
    export(result, pipe, tmp_path / "out")
    anatomy = discover(pipe.transformer)
    slim = open_export(tmp_path / "out").transformer
    places = [(module, attribute) for layer in anatomy.layers for module, attribute, _ in layer.counts]
    seen = list[Any]()

    def note(denoiser: Any, *_: object) -> None:
        seen.extend(getattr(denoiser.get_submodule(module), attribute) for module, attribute in places)

    with result.routed(pipe):
        pipe.transformer.register_forward_hook(note)
        pipe.transformer(torch.zeros(1, 4, 8, 8), timestep=torch.tensor([500]), class_labels=torch.tensor([1]))
    note(slim)
    assert seen[: len(places)] == seen[len(places) :] != []
