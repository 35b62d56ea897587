"""What is wrong with a model's files is said by the name of the part, before anything is made of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from safetensors.torch import load_file, save_file
from tests.compression.test_steps_alone import Heard
from tests.helpers.pipelines import CASES, made
from tests.helpers.single_file import write_sdxl
from tests.helpers.tiny import settings, tiny
from tests.pipelines.test_model_fuzz import within
from torch import nn
from transformers import CLIPImageProcessor

from diff_es import DiffESError, Run, UnsupportedModel, compress
from diff_es.pipelines.loading import load
from diff_es.pipelines.supported import check

NAMES = ("DiT", "SD", "SD3", "Wan")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Nobody changes them."""
    root, found = tmp_path_factory.mktemp("models"), dict[str, Path]()
    for name in NAMES:
        pipe = tiny() if name == "DiT" else made(CASES[name].make)
        pipe.save_pretrained(found.setdefault(name, root / name))
    return found


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(folder: Path, found: str, **given: Any) -> None:
    with within(10), pytest.raises(UnsupportedModel, match=found):
        load(str(folder), device="cpu", **given)


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_is_missing_is_named_whichever_part_it_is_of(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    for file in weights_of(folder):
        whole = file.read_bytes()
        tensors = load_file(file)
        gone = sorted(tensors)[len(tensors) // 2]
        save_file({key: value for key, value in tensors.items() if key != gone}, file, {"format": "pt"})
        part = file.parent.name
        refused(folder, rf"{part}: expected all weights, found no {gone}")
        file.write_bytes(whole)


def test_weights_of_other_shapes_and_kinds_and_files_cut_short(copy: Callable[[str], Path]) -> None:
    folder = copy("SD")
    for file in weights_of(folder):
        whole, tensors, part = file.read_bytes(), load_file(file), file.parent.name
        key = sorted(tensors)[-1]
        save_file({**tensors, key: torch.zeros(3, 3)}, file, {"format": "pt"})
        refused(folder, rf"{part}: expected the files of a ")
        save_file({**tensors, key: tensors[key].to(torch.int8)}, file, {"format": "pt"})
        refused(folder, rf"{part}: expected weights in a floating type, found {key} in I8")
        file.write_bytes(whole[:-1])
        refused(folder, rf"{part}: expected {file.name}, in safetensors, found SafetensorError")
        file.unlink()
        refused(folder, rf"{part}: expected a \.safetensors file of its weights, found none")
        file.write_bytes(whole)


def test_only_regular_files_are_read(copy: Callable[[str], Path]) -> None:
    folder = copy("SD")
    makes: tuple[Callable[[Path], None], ...] = (os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir)
    for file in [path for path in sorted(folder.rglob("*")) if path.is_file()]:
        whole = file.read_bytes()
        for make in makes:
            file.unlink()
            make(file)
            if (file.name, make) != ("tokenizer_config.json", Path.mkdir):  # which is not needed
                refused(folder, "SD|tokenizer")
            file.rmdir() if file.is_dir() else file.unlink()
            file.write_bytes(whole)
    assert load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("part", "key", "size"),
    [
        ("unet", "layers_per_block", 200_000),
        ("vae", "latent_channels", 200_000),
        ("text_encoder", "num_hidden_layers", 200_000),
        ("unet", "block_out_channels", 10**9),
        ("unet", "sample_size", 10**9),
        ("unet", "in_channels", 10**9),
        ("unet", "layers_per_block", 10**9),
        ("unet", "cross_attention_dim", 10**9),
        ("vae", "latent_channels", 10**9),
        ("text_encoder", "hidden_size", 10**9),
        ("text_encoder", "vocab_size", 10**9),
        ("text_encoder", "num_hidden_layers", 10**9),
        ("text_encoder", "max_position_embeddings", 10**9),
        ("scheduler", "num_train_timesteps", 10**9),
        ("tokenizer", "model_max_length", 10**9),
    ],
)
def test_absurd_sizes_are_refused_before_they_are_asked_for(
    part: str, key: str, size: int, copy: Callable[[str], Path]
) -> None:
    folder = copy("SD")
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    changed(folder / part / names.get(part, "config.json"), **{key: [size] * 2 if key.startswith("block") else size})
    refused(folder, part)


INDEX: dict[str, tuple[Any, str]] = {
    "no class": ({"_class_name": None}, "found None"),
    "a class of no pipeline": ({"_class_name": ["x"]}, "expected one of"),
    "no part": ({"vae": None}, r"expected vae, as \[library, class\], found None"),
    "a null part": ({"unet": [None, None]}, "expected a unet, found null"),
    "numbers": ({"unet": [1, 2]}, r"expected unet, as \[library, class\], found \[1, 2\]"),
    "one entry": ({"unet": ["diffusers"]}, r"found \['diffusers'\]"),
    "another library": ({"vae": ["os", "system"]}, r"vae: expected a class of diffusers or transformers, found"),
    "a path": ({"vae": ["..os", "system"]}, r"vae: expected a class of diffusers or transformers, found"),
    "an unknown class": ({"vae": ["diffusers", "Nothing"]}, "vae: expected a class of diffusers or transformers"),
    "a class of transformers that is gone": ({"text_encoder": ["transformers", "Nothing"]}, "found .*Nothing"),
    "no class at all": ({"vae": ["diffusers", "__name__"]}, r"vae: .*found diffusers\.__name__"),
    "another part's class": ({"vae": ["diffusers", "UNet2DConditionModel"]}, "vae: expected"),
}


@pytest.mark.parametrize("name", INDEX)
def test_odd_indices_are_refused_by_the_entry(name: str, copy: Callable[[str], Path]) -> None:
    changes, found = INDEX[name]
    folder = copy("SD")
    changed(folder / "model_index.json", **changes)
    refused(folder, found)


@pytest.mark.parametrize("name", ["SD", "SD3", "Wan"])
def test_a_tokenizer_without_a_vocabulary_is_refused(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    for file in sorted(folder.glob("tokenizer*/tokenizer.json")):
        whole = file.read_bytes()
        file.unlink()
        refused(folder, rf"{file.parent.name}: expected a vocabulary, such as tokenizer\.json, found none")
        file.write_bytes(whole)


def test_a_class_that_has_a_successor_is_loaded(copy: Callable[[str], Path]) -> None:
    """As the first checkpoints of Stable Diffusion name it."""
    folder = copy("SD")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    changed(folder / "model_index.json", feature_extractor=["transformers", "CLIPFeatureExtractor"])
    assert isinstance(load(str(folder), device="cpu").feature_extractor, CLIPImageProcessor)


def test_more_in_an_index_than_we_know_is_no_matter(copy: Callable[[str], Path]) -> None:
    folder = copy("SD")
    changed(folder / "model_index.json", extra=[1, 2], other={"a": 1}, _note="mine")
    assert load(str(folder), device="cpu")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "scheduler", "unet"])
def test_a_part_without_a_folder_is_named(part: str, copy: Callable[[str], Path]) -> None:
    folder = copy("SD")
    shutil.rmtree(folder / part)
    refused(folder, f"{part}: expected a folder of this name, found none")


@pytest.mark.parametrize(
    "names",
    [["a"], "x", 3, {"x": "a"}, {"1.5": "a"}, {"-1": "a"}, {"0": ["a"]}, {"0": None}, {"0": "a", "00": "b"}],
    ids=str,
)
def test_names_of_classes_are_texts_by_number(names: Any, copy: Callable[[str], Path]) -> None:
    folder = copy("DiT")
    changed(folder / "model_index.json", id2label=names)
    refused(folder, r"model_index\.json: expected id2label, names of classes by number, found .* leave id2label out")


def test_a_class_that_the_model_has_not_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("DiT")
    changed(folder / "model_index.json", id2label={"0": "a", "1000": "b"})
    refused(folder, r"pipe\.labels: expected classes below 1000, the number it was trained on, found 1000")
    changed(folder / "model_index.json", id2label={"0": "a, b", "7": "b"})
    assert load(str(folder), device="cpu").labels == {"a": 0, "b": 7}


def test_models_in_several_files_load_and_miss_none(copy: Callable[[str], Path]) -> None:
    folder, pipe = copy("SD"), made(CASES["SD"].make)
    shutil.rmtree(folder / "unet")
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    loaded = load(str(folder), device="cpu").unet.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in pipe.unet.state_dict().items())
    index = next((folder / "unet").glob("*.index.json"))
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = "../vae/diffusion_pytorch_model.safetensors"
    whole = index.read_text()
    index.write_text(json.dumps(content))
    refused(folder, "unet: expected the files that its index names, found none, or no file")
    index.write_text(whole)
    weights_of(folder / "unet")[0].unlink()
    refused(folder, "unet: expected the files that its index names")


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_a_folder_of_one_variant_is_loaded(shard: str, tmp_path: Path) -> None:
    pipe, folder = made(CASES["SD"].make), tmp_path / "model"
    pipe.save_pretrained(folder, variant="fp16", max_shard_size=shard)
    assert all(".fp16" in path.name for path in weights_of(folder))
    loaded = load(str(folder), device="cpu")
    for part in ("unet", "vae", "text_encoder"):
        found = loaded.components[part].state_dict()
        assert all(torch.equal(found[key], value) for key, value in pipe.components[part].state_dict().items())


def test_single_files_are_held_to_the_same(tmp_path: Path) -> None:
    pipe, file, config = made(CASES["SDXL"].make), tmp_path / "model.safetensors", tmp_path / "config"
    pipe.save_pretrained(config)
    for weights in weights_of(config):
        weights.unlink()
    write_sdxl(pipe, file)
    tensors, given = load_file(file), {"config": str(config)}
    for gone, name in (
        ("model.diffusion_model.time_embed.2.weight", r"time_embedding\.linear_2\.weight"),
        ("first_stage_model.decoder.mid.block_1.conv1.weight", r"decoder\.mid_block\.resnets\.0\.conv1\.weight"),
        (
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
            r".*layers\.0\.mlp\.fc1\.bias",
        ),
        ("conditioner.embedders.1.model.transformer.resblocks.1.ln_2.weight", r".*layers\.1\.layer_norm2\.weight"),
    ):
        save_file({key: value for key, value in tensors.items() if key != gone}, file)
        refused(file, rf"expected all weights, found no {name}\.", **given)
    save_file(tensors, file)
    changed(config / "unet" / "config.json", sample_size=10**9)
    refused(file, "unet, config.json: expected sample_size of at most", **given)
    shutil.rmtree(config / "tokenizer")
    refused(file, "tokenizer: expected a folder of this name, found none", **given)
    file.unlink()
    os.mkfifo(file)
    refused(file, "no regular file", **given)


# ------------------------------------------------------------------------------------------------------------ the hub


ASK = """
import http.server, os, sys, threading, time

class Hub(http.server.BaseHTTPRequestHandler):  # as the hub where it has no such repository
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from diff_es import DiffESError
from diff_es.pipelines.loading import load

def ask(name):
    start = time.monotonic()
    try:
        print(type(load(name, device="cpu")).__name__)
    except DiffESError as error:
        print(error)
    assert time.monotonic() - start < 10

ask("me/none")
server.shutdown()
server.server_close()
ask("me/none")
ask("me/tiny")
"""


@pytest.fixture
def cache(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A local cache that holds me/tiny."""
    repository, commit = tmp_path / "hub" / "models--me--tiny", "0" * 40
    shutil.copytree(folders["DiT"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository.parent


def test_without_a_hub_the_cache_is_loaded_and_else_the_cause_is_said(cache: Path) -> None:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    run = partial(subprocess.run, capture_output=True, text=True, timeout=120)
    done = run([sys.executable, "-c", ASK], env=environment)
    assert done.returncode == 0, done.stderr
    answer, silence, cached = done.stdout.splitlines()
    assert "me/none: expected a diffusers pipeline, found no such repository" in answer
    assert "me/none: expected a diffusers pipeline, found none in the local cache, and http://127.0.0.1:" in silence
    assert "is out of reach: [Errno 111] Connection refused" in silence
    assert cached == "DiTPipeline"


def test_offline_the_cache_is_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert load("me/tiny", device="cpu").config._name_or_path == "me/tiny"
    with within(10), pytest.raises(UnsupportedModel, match="found none in the local cache, and HF_HUB_OFFLINE is set"):
        load("me/none", device="cpu")


# ------------------------------------------------------------------------------------- pipelines that are there already


def _layerwise(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def _eight_bits(pipe: Any) -> None:
    pipe.unet.to(torch.float8_e4m3fn)


def _quantized(pipe: Any) -> None:
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    layer.weight = nn.Parameter((layer.weight.data * 127).to(torch.int8), requires_grad=False)


def _image_adapter(pipe: Any) -> None:
    processors = dict(pipe.unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(hidden_size=width, cross_attention_dim=16)
    pipe.unet.set_attn_processor(processors)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_layerwise, "found layerwise casting of conv_in. Load it anew in float32"),
        (_eight_bits, "found conv_in.weight in float8_e4m3fn"),
        (_quantized, r"found mid_block\S*ff\.net\.2\.weight in int8"),
        (_image_adapter, r"found an IP-Adapter's on down_blocks\S*attn2.*Call pipe\.unload_ip_adapter\(\) first"),
    ],
)
def test_what_is_not_the_models_own_is_refused_before_calibration(change: Callable[[Any], None], found: str) -> None:
    pipe, reporter = made(CASES["SD"].make), Heard()
    change(pipe)
    with pytest.raises(DiffESError, match=rf"pipe\.unet: .*{found}"):
        compress(pipe, 0.9, settings(sampling=CASES["SD"].sampling), run=Run(reporter=reporter))
    assert reporter.tasks == []
    if change is _image_adapter:
        pipe.unload_ip_adapter()
        assert check(pipe) is pipe
