"""Tiny pipelines of random weights of every supported class, made from diffusers' and transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from diff_es import Sampling

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer() -> CLIPTokenizer:
    """Reads letter by letter."""
    tokens = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Reads letter by letter."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*specials, *((letter, -3.0) for letter in _LETTERS)], extra_ids=0)


def gemma_tokenizer() -> GemmaTokenizer:
    """Reads letter by letter."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_LETTERS]
    return GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Reads byte by byte; Ġ is a space."""
    tokens = [*_LETTERS, *_LETTERS.upper(), *".,:;<>|_", "Ġ", "Ċ", "<|endoftext|>"]
    return Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def clip_config(width: int = 16, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def t5_encoder(width: int = 16) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=32, **sizes))


def kl(channels: int = 4, blocks: int = 2, **others: Any) -> AutoencoderKL:
    """Shrinks by 2 for every block but the first."""
    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=2,
        **others,
    )


def stable_diffusion(in_channels: int = 4) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    text = CLIPTextModel(clip_config())
    return StableDiffusionPipeline(
        kl(), text, clip_tokenizer(), unet, scheduler, None, None, requires_safety_checker=False
    )


def sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 4 + 16,
        cross_attention_dim=16 + 32,
        norm_num_groups=4,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    texts = CLIPTextModel(clip_config()), CLIPTextModelWithProjection(clip_config(32))
    return StableDiffusionXLPipeline(kl(), *texts, clip_tokenizer(), clip_tokenizer(), unet, scheduler)


def sd3(**changes: Any) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        **changes,
    )
    texts = [CLIPTextModelWithProjection(clip_config()) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        kl(shift_factor=0.06),
        texts[0],
        clip_tokenizer(),
        texts[1],
        clip_tokenizer(),
        t5_encoder(32),
        t5_tokenizer(),
    )


def sd35() -> StableDiffusion3Pipeline:
    return sd3(qk_norm="rms_norm", dual_attention_layers=(0,))


def flux(guidance_embeds: bool = True) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        kl(shift_factor=0.1),
        CLIPTextModel(clip_config()),
        clip_tokenizer(),
        t5_encoder(32),
        t5_tokenizer(),
        transformer,
    )


def pixart(kind: type) -> PixArtAlphaPipeline | PixArtSigmaPipeline:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=32,  # the least that its pipelines know
        patch_size=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=32,
        use_additional_conditions=False,
    )
    return kind(t5_tokenizer(), t5_encoder(32), kl(blocks=4), transformer, DPMSolverMultistepScheduler())


def pixart_alpha() -> PixArtAlphaPipeline:
    return pixart(PixArtAlphaPipeline)


def pixart_sigma() -> PixArtSigmaPipeline:
    return pixart(PixArtSigmaPipeline)


def sana() -> SanaPipeline:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,  # the least that its pipeline knows
        patch_size=1,
    )
    stages = 6  # shrinks by 32
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * stages,
        decoder_block_types=("ResBlock",) * stages,
        encoder_block_out_channels=(4,) * stages,
        decoder_block_out_channels=(4,) * stages,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        encoder_layers_per_block=(1,) * stages,
        decoder_layers_per_block=(1,) * stages,
        scaling_factor=0.41407,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    config = Gemma2Config(vocab_size=32, num_attention_heads=2, num_key_value_heads=1, **sizes)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return SanaPipeline(gemma_tokenizer(), Gemma2Model(config), vae, transformer, scheduler)


def qwen_image() -> QwenImagePipeline:
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02, time_shift_type="exponential"
    )
    return QwenImagePipeline(scheduler, vae, encoder, qwen_tokenizer(), transformer)


def wan(expand_timesteps: bool = False) -> WanPipeline:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=32, **sizes))
    return WanPipeline(t5_tokenizer(), encoder, vae, scheduler, transformer, expand_timesteps=expand_timesteps)


def ltx(timed_decoder: bool = False) -> LTXPipeline:
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=timed_decoder,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    return LTXPipeline(scheduler, vae, t5_encoder(16), t5_tokenizer(), transformer)


def pixel_unet(channels: int = 3) -> UNet2DModel:
    return UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )


def ddpm() -> DDPMPipeline:
    return DDPMPipeline(pixel_unet(), DDPMScheduler())


def ddim() -> DDIMPipeline:
    return DDIMPipeline(pixel_unet(), DDIMScheduler())


@dataclass(frozen=True)
class Case:
    """A pipeline, the setting that it runs in within a moment, and the same in the words of its own call."""

    make: Callable[[], Any]
    sampling: Sampling
    call: dict[str, Any] = field(default_factory=dict)
    calls: int = 1  # of the denoiser in a step
    steppable: bool = True


_FIVE = Sampling(num_inference_steps=5, guidance_scale=4.0, batch=2)
_VIDEO = Sampling(num_inference_steps=5, guidance_scale=4.0, batch=2, height=32, width=32, num_frames=9)
_SHOT = {"guidance_scale": 4.0, "height": 32, "width": 32, "num_frames": 9}
CASES: dict[str, Case] = {
    "SD": Case(stable_diffusion, _FIVE, {"guidance_scale": 4.0}),
    "SDXL": Case(sdxl, _FIVE, {"guidance_scale": 4.0}),
    "SD3": Case(sd3, _FIVE, {"guidance_scale": 4.0}),
    "SD3.5": Case(sd35, _FIVE, {"guidance_scale": 4.0}),
    "FLUX": Case(flux, Sampling(5, 4.0, 2, height=16, width=16), {"guidance_scale": 4.0, "height": 16, "width": 16}),
    "PixArt-alpha": Case(pixart_alpha, _FIVE, {"guidance_scale": 4.0}),
    "PixArt-Sigma": Case(pixart_sigma, _FIVE, {"guidance_scale": 4.0}),
    "Sana": Case(
        sana, Sampling(5, 4.0, 2, height=512, width=512), {"guidance_scale": 4.0, "height": 512, "width": 512}
    ),
    "Qwen-Image": Case(
        qwen_image,
        Sampling(5, 4.0, 2, "blurred", 16, 16),
        {"true_cfg_scale": 4.0, "negative_prompt": ["blurred"] * 2, "height": 16, "width": 16},
        calls=2,
    ),
    "Wan": Case(wan, _VIDEO, _SHOT, calls=2),
    "LTX": Case(ltx, _VIDEO, _SHOT),
    "DDPM": Case(ddpm, Sampling(5, 0.0, 2), steppable=False),
    "DDIM": Case(ddim, Sampling(5, 0.0, 2)),
}


def made(make: Callable[[], Any], seed: int = 0) -> Any:
    """A pipeline whose weights are random, none of them zero, and the same every time."""
    pipe, generator = make(), torch.Generator().manual_seed(seed)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            randomise(part.eval(), generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


BY_BLOCK, BY_LEAF = {"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}


def in_groups(pipe: Any, device: str, **kind: Any) -> None:
    """Offload the U-Net of a pipeline of Stable Diffusion in groups; the rest lies on the device."""
    for part in (pipe.vae, pipe.text_encoder):
        part.to(device)
    pipe.unet.enable_group_offload(torch.device(device), **kind)


def randomise(part: nn.Module, generator: torch.Generator) -> None:
    """Diffusers' own start leaves some gates shut."""
    for parameter in part.parameters():
        spread = 0.2 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        noise = torch.randn(parameter.shape, generator=generator) * spread
        keep = parameter.dim() < 2 and bool((parameter == 1).all())  # the scale of a norm
        parameter.data.copy_(parameter.data + noise if keep else noise)


def shown(pipe: Any, conditions: Sequence[Any], seeds: Sequence[int], steps: int = 5, **call: Any) -> Tensor:
    """What a user of the pipeline gets, (N, 3, H, W) or (N, 3, F, H, W), in [0, 1]."""
    asked: dict[str, Any] = {"batch_size": len(conditions)} if conditions[0] is None else {"prompt": list(conditions)}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    result = pipe(**asked, generator=generators, num_inference_steps=steps, output_type="pt", **call)
    if isinstance(pipe, WanPipeline | LTXPipeline):
        return result.frames.transpose(1, 2)
    return result.images
