"""Tiny transformers of random weights, one of every family, made from diffusers' own classes, and a call of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from diff_es.layers import Anatomy, Cut, Plan, Weights, discover
from diff_es.routing.realise import output_of, realise
from diff_es.routing.switch import Switch

HEADS, SIZE, BLOCKS = 3, 8, 2
HIDDEN = HEADS * SIZE
TEXT, TOKENS, BATCH = 10, 5, 2  # width and length of the prompt's embedding


@dataclass(frozen=True)
class Family:
    """A denoiser and the arguments of a call, both from a seed."""

    build: Callable[[], nn.Module]
    call: Callable[[torch.Generator], dict[str, Any]]
    timestep: float = 500.0


def built(family: Family, seed: int = 0) -> nn.Module:
    """The denoiser with random weights: fresh ones of these kinds are near the identity."""
    torch.manual_seed(seed)
    model = family.build().eval().requires_grad_(False)
    for parameter in model.parameters():
        spread = 0.2 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        parameter.copy_(parameter * (parameter == 1) + torch.randn(parameter.shape) * spread)
    return model


def arguments(family: Family, seed: int = 1) -> dict[str, Any]:
    """The keyword arguments of a call."""
    generator = torch.Generator().manual_seed(seed)
    made = family.call(generator)
    return {"timestep": torch.full((BATCH,), family.timestep), "return_dict": False, **made}


@torch.no_grad()
def run(model: nn.Module, family: Family, seed: int = 1) -> Tensor:
    output: Tensor = model(**arguments(family, seed))[0]
    assert output.isfinite().all()
    return output


def _normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def _calls(**parts: Any) -> Callable[[torch.Generator], dict[str, Any]]:
    """Shapes become noise, whatever else stays as it is."""

    def call(generator: torch.Generator) -> dict[str, Any]:
        return {name: part(generator) if callable(part) else part for name, part in parts.items()}

    return call


IMAGE, PROMPT = _normal(BATCH, 4, 4, 4), _normal(BATCH, TOKENS, TEXT)
POOLED = _normal(BATCH, TEXT)
HEADED = {"num_attention_heads": HEADS, "attention_head_dim": SIZE}
MASK = torch.tensor([[1, 1, 1, 0, 0], [1] * TOKENS])  # prompts of two lengths


def _pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        **HEADED,
        in_channels=4,
        out_channels=8,
        num_layers=BLOCKS,
        cross_attention_dim=HIDDEN,
        sample_size=4,
        caption_channels=TEXT,
    )


def _sd3(dual: tuple[int, ...] = (), norm: str | None = None) -> nn.Module:
    return SD3Transformer2DModel(
        **HEADED,
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        joint_attention_dim=TEXT,
        caption_projection_dim=HIDDEN,
        pooled_projection_dim=TEXT,
        pos_embed_max_size=4,
        dual_attention_layers=dual,
        qk_norm=norm,
    )


def _flux(guided: bool = False) -> nn.Module:
    return FluxTransformer2DModel(
        **HEADED,
        in_channels=4,
        num_layers=BLOCKS,
        num_single_layers=BLOCKS,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=guided,
    )


def _sana(norm: str | None = None) -> nn.Module:
    return SanaTransformer2DModel(
        **HEADED,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        num_cross_attention_heads=2,
        cross_attention_head_dim=HIDDEN // 2,
        cross_attention_dim=HIDDEN,
        caption_channels=TEXT,
        sample_size=4,
        qk_norm=norm,
    )


def _qwen() -> nn.Module:
    return QwenImageTransformer2DModel(
        **HEADED,
        in_channels=16,
        out_channels=4,
        num_layers=BLOCKS,
        joint_attention_dim=TEXT,
        axes_dims_rope=(2, 2, 4),
    )


def _wan(image: int | None = None) -> nn.Module:
    return WanTransformer3DModel(
        **HEADED,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=8,
        ffn_dim=2 * HIDDEN,
        num_layers=BLOCKS,
        image_dim=image,
        added_kv_proj_dim=None if image is None else HIDDEN,
        rope_max_seq_len=8,
    )


def _ltx() -> nn.Module:
    return LTXVideoTransformer3DModel(
        **HEADED,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=HIDDEN,
        num_layers=BLOCKS,
        caption_channels=TEXT,
    )


_IDS = {
    "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0)),
    "txt_ids": torch.zeros(TOKENS, 3),
}
_JOINT = _calls(hidden_states=IMAGE, encoder_hidden_states=PROMPT, pooled_projections=POOLED)
_FLUX = _calls(hidden_states=_normal(BATCH, 6, 4), encoder_hidden_states=PROMPT, pooled_projections=POOLED, **_IDS)
_MASKED = _calls(hidden_states=IMAGE, encoder_hidden_states=PROMPT, encoder_attention_mask=MASK)
_VIDEO = _normal(BATCH, 4, 2, 4, 4)

FAMILIES = {
    "pixart": Family(
        _pixart,
        _calls(
            hidden_states=IMAGE,
            encoder_hidden_states=PROMPT,
            encoder_attention_mask=MASK,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
    ),
    "sd3": Family(_sd3, _JOINT),
    "sd3.5": Family(lambda: _sd3((0,), "rms_norm"), _JOINT),
    "flux": Family(_flux, _FLUX, 0.5),
    "sana": Family(_sana, _MASKED),
    "sana-sprint": Family(lambda: _sana("rms_norm_across_heads"), _MASKED),
    "qwen": Family(
        _qwen,
        _calls(
            hidden_states=_normal(BATCH, 6, 16),
            encoder_hidden_states=PROMPT,
            encoder_hidden_states_mask=MASK,
            img_shapes=[[(1, 2, 3)]] * BATCH,
        ),
        0.5,
    ),
    "wan": Family(_wan, _calls(hidden_states=_VIDEO, encoder_hidden_states=PROMPT)),
    "wan-image": Family(
        lambda: _wan(6),
        _calls(
            hidden_states=_VIDEO,
            encoder_hidden_states=_normal(BATCH, 512, TEXT),
            encoder_hidden_states_image=_normal(BATCH, 3, 6),
        ),
    ),
    "ltx": Family(
        _ltx,
        _calls(
            hidden_states=_normal(BATCH, 8, 4),
            encoder_hidden_states=PROMPT,
            encoder_attention_mask=MASK,
            num_frames=2,
            height=2,
            width=2,
        ),
    ),
}


every_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def model_of(name: str) -> Any:
    return built(FAMILIES[name])


def random_plan(model: nn.Module, anatomy: Anatomy, seed: int, *, solved: bool = True) -> Plan:
    """Random groups of every layer, the same for those that follow; with ``solved`` new output projections too."""
    g, cuts = torch.Generator().manual_seed(seed), dict[str, Cut]()
    for layer in anatomy.layers:
        if layer.follows is None:
            count = int(torch.randint(1, layer.groups, (), generator=g))
            kept = torch.randperm(layer.groups, generator=g)[:count].sort().values
        else:
            kept = cuts[layer.follows].kept
        dense = output_of(model, layer).weight
        weight = torch.randn(len(dense), len(kept) * layer.width, *dense.shape[2:], generator=g) / 4
        bias = torch.randn(len(dense), generator=g)
        cuts[layer.name] = Cut(kept, weight, bias) if solved else Cut(kept)
    return Plan(cuts)


def slim(name: str, plan: Plan, seed: int = 1) -> Tensor:
    model = model_of(name)
    switch = Switch(model)
    switch.to(realise(model, discover(model), plan))
    try:
        return run(model, FAMILIES[name], seed)
    finally:
        switch.to(Weights())


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def layer_names(pattern: str, *parts: str) -> list[str]:
    return [f"{pattern}.{i}.{part}" for i in range(BLOCKS) for part in parts]
