"""Denoisers of published sizes with random weights: shapes decide the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DConditionModel

_DIT: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
}


def dit_xl_2_256() -> DiTTransformer2DModel:
    sizes = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}
    return DiTTransformer2DModel(**sizes, **_DIT, num_embeds_ada_norm=1000, norm_eps=1e-5).eval()


def dit_s(patch: int) -> DiTPipeline:
    """A pipeline of DiT-S with patches of so many latents."""
    torch.manual_seed(0)
    return dit(patch, num_layers=12, num_attention_heads=6, attention_head_dim=64)


def dit(patch: int, **sizes: int) -> DiTPipeline:
    """A pipeline of a DiT with patches of so many latents and hardly any decoder."""
    denoiser = DiTTransformer2DModel(**sizes, **_DIT, patch_size=patch)
    for parameter in denoiser.parameters():
        if parameter.dim() > 1:  # those that training begins with at 0 too
            torch.nn.init.normal_(parameter, std=0.02)
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    decoder = AutoencoderKL(latent_channels=4, block_out_channels=(4, 8), norm_num_groups=4, **ends)
    return DiTPipeline(denoiser.eval(), decoder.eval(), DDIMScheduler(clip_sample=False))


def sdxl(channels: Sequence[int] = (320, 640, 1280), blocks: Sequence[int] = (1, 2, 10)) -> UNet2DConditionModel:
    """The UNet of SDXL, or one of other widths, multiples of 64, the size of a head, and numbers of blocks."""
    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(channels),
        attention_head_dim=tuple(width // 64 for width in channels),
        cross_attention_dim=2048,
        transformer_layers_per_block=tuple(blocks),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ).eval()
