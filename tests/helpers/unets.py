"""Tiny U-Nets of random weights, made from diffusers' own classes, and what tests do with any denoiser by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from diff_es.layers import Anatomy, Bypass, Cut, Plan, discover
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.statistics import Statistics
from diff_es.pruning.wanted import Wanted
from diff_es.routing.realise import output_of
from diff_es.trajectory.stages import Stages

SIZE, TEXT, BATCH = 8, 12, 2
BOUNDED = Stages.split([900.0, 100.0], 2)


def conditioned(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion 1.5 in small: a head count for each level, and cross-attention to a text."""
    config: dict[str, Any] = {
        "sample_size": SIZE,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return drawn(UNet2DConditionModel, {**config, **changes}, seed)


def sd(seed: int = 0) -> UNet2DConditionModel:
    return conditioned(seed)


def sdxl(seed: int = 0) -> UNet2DConditionModel:
    """Several transformer blocks at depth, linear projections into them, and sizes of the image as embeddings."""
    return conditioned(
        seed,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[2, 4],
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )


def shifted(seed: int = 0) -> UNet2DConditionModel:
    """Time embeddings that scale and shift, ResNet blocks that sample up and down inside, two layers a level."""
    return conditioned(
        seed,
        layers_per_block=2,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )


def unconditional(seed: int = 0) -> UNet2DModel:
    """The U-Net of DDPM: self-attention with a norm and a residual connection inside, and classes."""
    config = {
        "sample_size": SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "num_class_embeds": 5,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return drawn(UNet2DModel, config, seed)


MODELS: tuple[Callable[[], Any], ...] = (sd, sdxl, shifted, unconditional)


def drawn(kind: Any, config: dict[str, Any], seed: int) -> Any:
    """A model whose every weight is drawn, so that nothing is zero and no norm is plain."""
    model, generator = kind(**config).eval().requires_grad_(False), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        offset = 1.0 if parameter.dim() < 2 and bool((parameter == 1).all()) else 0.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + offset)
    return model


def inputs(model: Any, seed: int = 1, timestep: float = 500.0, device: str = "cpu", size: int = SIZE) -> dict[str, Any]:
    """The arguments of one call."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    arguments: dict[str, Any] = {
        "sample": draw(BATCH, 4, size, size),
        "timestep": torch.full((BATCH,), timestep, device=device),
    }
    if isinstance(model, UNet2DModel):
        return {**arguments, "class_labels": torch.arange(BATCH, device=device)}
    arguments["encoder_hidden_states"] = draw(BATCH, 5, TEXT)
    if model.config.addition_embed_type == "text_time":
        arguments["added_cond_kwargs"] = {"text_embeds": draw(BATCH, 8), "time_ids": draw(BATCH, 6)}
    return arguments


@torch.no_grad()
def run(model: Any, seed: int = 1, timestep: float = 500.0, size: int = SIZE) -> Tensor:
    output: Tensor = model(**inputs(model, seed, timestep, size=size)).sample
    assert output.isfinite().all()
    return output


@torch.no_grad()
def gathered(model: Any, calls: int = 2) -> Statistics:
    """Of all layers and blocks, for the two stages of ``BOUNDED``."""
    anatomy = discover(model)
    with Gatherer(model, BOUNDED, Wanted(anatomy.layers, anatomy.blocks)) as gatherer:
        for seed in range(calls):
            gatherer.begin()
            for timestep in (900.0, 100.0):
                model(**inputs(model, seed, timestep))
    return gatherer.statistics()


def random_plan(model: nn.Module, seed: int, *, solved: bool) -> Plan:
    """Random groups of every layer; with ``solved`` also output projections of their own."""
    g, anatomy, cuts = torch.Generator().manual_seed(seed), discover(model), dict[str, Cut]()
    for layer in anatomy.layers:
        count = int(torch.randint(1, layer.groups, (), generator=g))
        kept = torch.randperm(layer.groups, generator=g)[:count].sort().values
        dense = output_of(model, layer).weight
        shape = (len(dense), count * layer.width, *dense.shape[2:])
        weight = torch.randn(shape, generator=g) * dense[0].numel() ** -0.5
        cuts[layer.name] = Cut(kept, weight, torch.randn(len(dense), generator=g)) if solved else Cut(kept)
    return Plan(cuts)


@contextmanager
def masked(model: nn.Module, anatomy: Anatomy, plan: Plan) -> Iterator[None]:
    """The dense network with the removed groups' columns of inputs zeroed, and the plan's own weights written in."""
    handles, before = [], {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in anatomy.layers:
        cut, output = plan.cuts[layer.name], model.get_submodule(layer.output)
        mask = torch.isin(torch.arange(layer.groups), cut.kept).repeat_interleave(layer.width)
        handles.append(output.register_forward_pre_hook(_zeroing(mask)))
        weight, bias = output.weight, output.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        if cut.weight is not None:
            weight.zero_()
            weight[:, mask] = cut.weight
        if cut.bias is not None:
            bias.copy_(cut.bias)
    yield
    model.load_state_dict(before)
    for handle in handles:
        handle.remove()


def _zeroing(mask: Tensor) -> Callable[..., tuple[Tensor]]:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * (mask[:, None, None] if isinstance(module, nn.Conv2d) else mask),)

    return hook


def random_bypass(model: nn.Module, name: str, seed: int) -> Bypass:
    block = next(block for block in discover(model).blocks if block.name == name)
    g = torch.Generator().manual_seed(seed)
    return block.blank().map(lambda tensor: torch.randn(tensor.shape, generator=g) / 4)
