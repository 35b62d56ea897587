"""Checkpoints in the format of Stable Diffusion's authors, written from tiny pipelines of diffusers' classes.

The names are those that diffusers' own conversion scripts write; linear layers of the decoder's attention are 1 x 1
convolutions there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_stable_diffusion(pipe: Any, file: Path) -> None:
    """The checkpoint of Stable Diffusion 1, of any size."""
    tensors = _denoiser_and_decoder(pipe)
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


def write_sdxl(pipe: Any, file: Path) -> None:
    """The checkpoint of SDXL, of any size: its second text encoder is OpenCLIP's."""
    tensors = _denoiser_and_decoder(pipe)
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name}"] = value
    state, start = pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model"
    tensors[f"{start}.text_projection"] = state["text_projection.weight"].T
    tensors[f"{start}.token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    tensors[f"{start}.positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    for leaf in ("weight", "bias"):
        tensors[f"{start}.ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for i in range(pipe.text_encoder_2.config.num_hidden_layers):
        theirs, ours = f"{start}.transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            for other, own in parts.items():
                tensors[f"{theirs}.{other}.{leaf}"] = state[f"{ours}.{own}.{leaf}"]
            joined = torch.cat([state[f"{ours}.self_attn.{each}_proj.{leaf}"] for each in "qkv"])
            tensors[f"{theirs}.attn.in_proj_{leaf}"] = joined
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


def _denoiser_and_decoder(pipe: Any) -> dict[str, Tensor]:
    layers = pipe.unet.config.layers_per_block
    tensors = {
        f"model.diffusion_model.{_unet_name(name, layers, pipe.unet)}": value
        for name, value in pipe.unet.state_dict().items()
    }
    blocks = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        square = ".attentions." in name and name.endswith("weight") and "norm" not in name
        tensors[f"first_stage_model.{_vae_name(name, blocks)}"] = value[..., None, None] if square else value
    return tensors


def _replaced(rest: str, names: dict[str, str]) -> str:
    return next((rest.replace(own, other, 1) for own, other in names.items() if rest.startswith(own)), rest)


def _unet_name(name: str, layers: int, unet: Any) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{leaf}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, i, rest = found.groups()
        place = 2 * int(i) if kind == "resnets" else 1
        return f"middle_block.{place}.{_replaced(rest, _RESNET) if kind == 'resnets' else rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    assert found, name
    way, block, kind, i, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    first = block * (layers + 1) + (1 if way == "down" else 0)
    row = "input_blocks" if way == "down" else "output_blocks"
    if kind == "upsamplers":
        place = 2 if "Attn" in unet.config.up_block_types[block] else 1
        return f"{row}.{first + layers}.{place}.{rest}"
    if kind == "resnets":
        return f"{row}.{first + i}.0.{_replaced(rest, _RESNET)}"
    return f"{row}.{first + i}.1.{rest}"


def _vae_name(name: str, blocks: int) -> str:
    if found := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(.*)", name):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.*)", name):
        return f"{found[1]}.mid.attn_1.{_replaced(found[2], _ATTENTION)}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d)\.(resnets\.(\d)|downsamplers\.0)\.(.*)", name):
        part = f"block.{found[3]}" if found[3] else "downsample"
        return f"encoder.down.{found[1]}.{part}.{found[4]}".replace("conv_shortcut", "nin_shortcut")
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)\.(.*)", name):
        part = f"block.{found[3]}" if found[3] else "upsample"
        return f"decoder.up.{blocks - 1 - int(found[1])}.{part}.{found[4]}".replace("conv_shortcut", "nin_shortcut")
    return name.replace("conv_norm_out", "norm_out")
