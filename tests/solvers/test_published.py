"""The components and calls of diffusers' own fast tests of SDXL, SD3, FLUX and PixArt (huggingface/diffusers,
tests/pipelines, Apache-2.0), routed with nothing pruned.

Their published pixels come from tokenizers on the hub; here the tokenizers read letter by letter, so shapes, and
equality with the unrouted pipeline, are what is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tests.helpers.pipelines import clip_tokenizer, t5_encoder, t5_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diff_es.layers import DENSE, discover
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pipelines.supported import check
from diff_es.routing.placements import Resident
from diff_es.routing.routing import routed
from diff_es.trajectory.stages import Stages

CLIP = {
    "bos_token_id": 52,
    "eos_token_id": 53,
    "pad_token_id": 53,
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 37,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "hidden_act": "gelu",
    "projection_dim": 32,
}


def sdxl() -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(2, 4),
        layers_per_block=2,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=1,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
    )
    vae = AutoencoderKL(
        block_out_channels=[32, 64],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        sample_size=128,
    )
    texts = CLIPTextModel(CLIPTextConfig(**CLIP)), CLIPTextModelWithProjection(CLIPTextConfig(**CLIP))
    return StableDiffusionXLPipeline(vae, *texts, clip_tokenizer(), clip_tokenizer(), unet, scheduler)


def sd3() -> Any:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    vae = AutoencoderKL(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    one, two = (CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)) for _ in range(2))
    texts = (one, clip_tokenizer(), two, clip_tokenizer(), t5_encoder(32), t5_tokenizer())
    return StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(), vae, *texts)


def flux() -> Any:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    vae = AutoencoderKL(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    texts = CLIPTextModel(CLIPTextConfig(**CLIP)), clip_tokenizer(), t5_encoder(32), t5_tokenizer()
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, *texts, transformer)


def pixart() -> Any:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return PixArtAlphaPipeline(t5_tokenizer(), t5_encoder(32), AutoencoderKL(), transformer, DDIMScheduler())


PROMPT = "A painting of a squirrel eating a burger"
PUBLISHED: dict[str, tuple[Callable[[], Any], dict[str, Any], tuple[int, ...]]] = {
    "SDXL": (sdxl, {"guidance_scale": 5.0}, (1, 64, 64, 3)),
    "SD3": (sd3, {"guidance_scale": 5.0}, (1, 32, 32, 3)),
    "FLUX": (flux, {"guidance_scale": 5.0, "height": 8, "width": 8, "max_sequence_length": 48}, (1, 8, 8, 3)),
    "PixArt": (pixart, {"guidance_scale": 5.0, "use_resolution_binning": False}, (1, 8, 8, 3)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_diffusers_own_call_is_the_same_with_nothing_pruned(name: str) -> None:
    make, call, shape = PUBLISHED[name]
    pipe = make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    assert check(pipe) is pipe

    def image() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipe(PROMPT, generator=generator, num_inference_steps=2, output_type="np", **call).images

    plain, denoiser = image(), denoiser_of(pipe)
    assert plain.shape == shape
    assert np.isfinite(plain).all()
    pipe.scheduler.set_timesteps(2)
    stages = Stages.split(pipe.scheduler.timesteps.tolist(), 2)
    with routed(denoiser, stages, partial(Resident().open, denoiser, discover(denoiser), [DENSE, DENSE])):
        assert np.array_equal(image(), plain)
