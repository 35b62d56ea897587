"""Denoisers of published sizes with random weights: shapes decide the time. What stands around them is tiny."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

Weighted = TypeVar("Weighted", bound=nn.Module)
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
    denoiser = weighted(DiTTransformer2DModel(**sizes, **_DIT, patch_size=patch))
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


def sdxl_pipeline(unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """Its text encoders have SDXL's widths and one layer; a latent is a pixel."""
    texts = CLIPTextModel(_text(768)), CLIPTextModelWithProjection(_text(1280))
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    decoder = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2)
    return StableDiffusionXLPipeline(decoder, *texts, _tokenizer(), _tokenizer(), unet, scheduler)


def flux_pipeline(double: int, single: int, heads: int = 24) -> FluxPipeline:
    """FLUX.1 with so many double and single blocks, of heads of 128; text encoders and decoder as above."""
    denoiser = FluxTransformer2DModel(
        num_layers=double, num_single_layers=single, num_attention_heads=heads, guidance_embeds=True
    )
    letters = [
        (token, -float(place)) for place, token in enumerate(("<pad>", "</s>", "<unk>", *string.ascii_lowercase))
    ]
    sizes = {"vocab_size": len(letters), "d_model": 4096, "d_kv": 64, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        AutoencoderKL(latent_channels=16, block_out_channels=(4,), norm_num_groups=2, shift_factor=0.1159),
        CLIPTextModel(_text(768)),
        _tokenizer(),
        T5EncoderModel(T5Config(**sizes)),
        T5Tokenizer(vocab=letters, extra_ids=0),
        weighted(denoiser).eval(),
    )


def weighted(denoiser: Weighted) -> Weighted:
    """With weights where training begins with none, too."""
    for parameter in denoiser.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return denoiser


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_tokens()),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=len(_tokens()) - 2,
        eos_token_id=len(_tokens()) - 1,
    )


def _tokenizer() -> CLIPTokenizer:
    """Reads letter by letter."""
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(_tokens())}, merges=[], model_max_length=77)


def _tokens() -> list[str]:
    signs = string.ascii_lowercase + string.digits + string.punctuation
    return [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
