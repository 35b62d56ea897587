"""Adapters: loaded before compression, after it, while routed, fused, and unloaded again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tests.helpers.in_use import load_ip_adapter, made_of, result_of, sampling_of
from tests.helpers.tiny import LITTLE, settings

from diff_es import ArtefactError, Compressed, DiffESError, Method, UnsupportedModel, Width, compress
from diff_es.layers import Plan, adapted, discover
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pruning.granularity import Granularity


@pytest.fixture(scope="module")
def compressed() -> Compressed:
    return result_of("SD", made_of("SD"))


def lora() -> LoraConfig:
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj"]
    return LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)


def test_adapters_are_refused_by_the_layers_that_they_wrap(compressed: Compressed) -> None:
    pipe = made_of("SD")
    torch.manual_seed(0)
    pipe.unet.add_adapter(lora())
    found = discover(pipe.unet)
    wrapped = {refusal.name: refusal.reason for refusal in found.refusals}
    assert {part.name for part in found.layers}.isdisjoint(wrapped)
    assert any("attn1" in name for name in wrapped)
    assert all("unload or merge adapters first" in reason for reason in wrapped.values())
    pruned = [name for name in wrapped if any(name in plan.cuts for plan in compressed.plans)]  # in the model's order
    assert len(pruned) > 3
    names = re.escape(f"base model, {', '.join(pruned[:3])} and {len(pruned) - 3} more")
    message = rf"{names}: expected layers as they were when it was compressed, .*unload adapters before routing"
    for _ in range(2):
        with pytest.raises(ArtefactError, match=message), compressed.routed(pipe):
            pass
    pipe.unet.delete_adapters("default")
    pipe.unload_lora_weights()
    with compressed.routed(pipe):
        pass


def test_a_model_with_adapters_is_not_compressed(compressed: Compressed) -> None:
    pipe = made_of("SD")
    torch.manual_seed(0)
    pipe.unet.add_adapter(lora())
    message = r"pipe\.unet: expected the model's own layers, found adapters on down_blocks.* and \d+ more\. Unload them"
    with pytest.raises(UnsupportedModel, match=message):
        compress(pipe, 0.95, settings(sampling=sampling_of("SD"), prompts=("a fox", "a hat")))


def test_a_fused_adapter_is_a_model_like_any_other(compressed: Compressed) -> None:
    pipe, sampling = made_of("SD"), sampling_of("SD")
    probes = make_probes(pipe, 2, 0, "test")
    before = sample(pipe, probes, sampling)
    torch.manual_seed(0)
    pipe.unet.add_adapter(lora())
    loaded = sample(pipe, probes, sampling)
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    fused = sample(pipe, probes, sampling)
    assert torch.allclose(fused, loaded, atol=1e-2 * float(loaded.abs().max()))
    assert not torch.equal(fused, before)
    with pytest.raises(ArtefactError, match="hash of the base model"), compressed.routed(pipe):
        pass
    small = {**LITTLE, "sampling": sampling, "stages": 2, "prompts": ("a fox", "a hat")}
    with compress(
        pipe, 0.95, settings(**small, method=Method(Width(4, dense=()), granularity=Granularity.WHOLE))
    ).routed(pipe):
        assert not torch.equal(sample(pipe, probes, sampling), fused)
    assert torch.equal(sample(pipe, probes, sampling), fused)


def test_an_adapter_that_comes_while_routed_is_refused_by_its_layers(compressed: Compressed) -> None:
    pipe, sampling = made_of("SD"), sampling_of("SD")
    probes = make_probes(pipe, 2, 0, "test")
    dense = sample(pipe, probes, sampling)
    with compressed.routed(pipe):
        torch.manual_seed(0)
        pipe.unet.add_adapter(lora())
        for _ in range(2):
            with pytest.raises(DiffESError, match=r"adapters on down_blocks.*\.to_\w+.* and \d+ more"):
                sample(pipe, probes, sampling)
        pipe.unet.delete_adapters("default")
        pipe.unload_lora_weights()
        assert not torch.equal(sample(pipe, probes, sampling), dense)
    assert torch.equal(sample(pipe, probes, sampling), dense)


def test_an_adapter_on_other_layers_runs_routed(compressed: Compressed) -> None:
    pipe, sampling = made_of("SD"), sampling_of("SD")
    assert isinstance(pipe, StableDiffusionPipeline)
    probes = make_probes(pipe, 2, 0, "test")
    with compressed.routed(pipe):
        pruned = sample(pipe, probes, sampling)
        torch.manual_seed(0)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["conv_in", "linear_1"], init_lora_weights=False))
        with_it = sample(pipe, probes, sampling)
        assert not torch.equal(with_it, pruned)
    with compressed.routed(pipe):  # there before, and unloaded inside
        assert torch.equal(sample(pipe, probes, sampling), with_it)
        pipe.unload_lora_weights()
        assert torch.equal(sample(pipe, probes, sampling), pruned)
    with compressed.routed(pipe):
        assert torch.equal(sample(pipe, probes, sampling), pruned)


def test_an_adapter_in_a_skipped_block_is_refused(compressed: Compressed) -> None:
    pipe = made_of("SD")
    block = next(block.name for block in discover(pipe.unet).blocks if "transformer_blocks" in block.name)
    skipping = replace(compressed, plans=(Plan(bypasses={block: None}),) * len(compressed.plans))
    with skipping.routed(pipe):
        pass
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=[f"{block}.attn1.to_q"]))
    message = rf"{re.escape(block)}\.attn1\.to_q: .*found an adapter in a block that is skipped.*unload adapters"
    with pytest.raises(ArtefactError, match=message), skipping.routed(pipe):
        pass


def test_an_image_adapter_in_a_skipped_block_is_refused(compressed: Compressed) -> None:
    """Its picture would change nothing."""
    pipe = made_of("SD")
    blocks = [block.name for block in discover(pipe.unet).blocks if "transformer_blocks" in block.name]
    skipping = replace(compressed, plans=(Plan(bypasses={blocks[0]: None}),) * len(compressed.plans))
    load_ip_adapter(pipe)
    message = rf"{re.escape(blocks[0])}\.attn2: .*found an adapter in a block that is skipped"
    with pytest.raises(ArtefactError, match=message), skipping.routed(pipe):
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the denoiser and of the text encoder, as diffusers saves them."""
    folder, pipe = tmp_path_factory.mktemp("adapters"), made_of("SD")
    torch.manual_seed(0)
    pipe.unet.add_adapter(lora())
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    unet, text = (
        convert_state_dict_to_diffusers(get_peft_model_state_dict(part)) for part in (pipe.unet, pipe.text_encoder)
    )
    StableDiffusionPipeline.save_lora_weights(folder / "both", unet_lora_layers=unet, text_encoder_lora_layers=text)
    StableDiffusionPipeline.save_lora_weights(folder / "text", text_encoder_lora_layers=text)
    return folder


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_adapters_from_files_come_and_go(compressed: Compressed, files: Path) -> None:
    pipe, sampling = made_of("SD"), sampling_of("SD")
    probes = make_probes(pipe, 2, 0, "test")

    def drawn() -> Any:
        return sample(pipe, probes, sampling)

    dense = drawn()
    with compressed.routed(pipe):
        pruned = drawn()
        pipe.load_lora_weights(files / "both")
        with pytest.raises(ArtefactError, match=r"attn1.*found adapters on .*attn1.*unload adapters before routing"):
            drawn()
        pipe.unload_lora_weights()
        assert torch.equal(drawn(), pruned)
    assert torch.equal(drawn(), dense)
    for name in ("one", "two"):
        pipe.load_lora_weights(files / "both", adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.5, 0.5])
    assert not torch.equal(drawn(), dense)
    with pytest.raises(ArtefactError, match=r"attn1, .*unload adapters before routing"), compressed.routed(pipe):
        pass
    pipe.unload_lora_weights()
    assert adapted(pipe.unet) == ()
    assert torch.equal(drawn(), dense)
    with compressed.routed(pipe):
        assert torch.equal(drawn(), pruned)


def test_adapters_of_the_text_encoder_change_the_prompt_alone(compressed: Compressed, files: Path) -> None:
    pipe, sampling = made_of("SD"), sampling_of("SD")
    probes = make_probes(pipe, 2, 0, "test")
    with compressed.routed(pipe):
        pruned = sample(pipe, probes, sampling)
    pipe.load_lora_weights(files / "text")
    with compressed.routed(pipe):
        assert not torch.equal(sample(pipe, probes, sampling), pruned)
    pipe.unload_lora_weights()
    with compressed.routed(pipe):
        assert torch.equal(sample(pipe, probes, sampling), pruned)
