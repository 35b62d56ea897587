"""What is added to a model from outside: adapters around layers, such as LoRA, which peft wraps (the layer itself is
its ``base_layer``); processors with weights and projections of images, as IP-Adapters bring them; and copies of q, k
and v in one, which ``fuse_qkv_projections`` makes."""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import IPAdapterTimeImageProjection, MultiIPAdapterImageProjection
from torch import nn

from .compiled import named_parameters, plain_name

_KEPT = ".base_layer"
_FUSED = {"to_qkv": "to_q", "to_kv": "to_k", "to_added_qkv": "add_q_proj", "to_added_kv": "add_k_proj"}
_IMAGE = (IPAdapterTimeImageProjection, MultiIPAdapterImageProjection)


def adapted(denoiser: nn.Module) -> tuple[str, ...]:
    """The names of the layers that adapters wrap."""
    names = (plain_name(name) for name, _ in denoiser.named_modules())
    return tuple(name.removesuffix(_KEPT) for name in names if name.endswith(_KEPT))


def base_parameters(denoiser: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's own parameters under their own names, without what was added to it."""
    wrapped = tuple(f"{name}." for name in adapted(denoiser))
    added = tuple(f"{name}." for name in _added(denoiser))
    for name, parameter in named_parameters(denoiser):
        if name.startswith(added):
            continue
        if f"{_KEPT}." in name:
            yield name.replace(f"{_KEPT}.", "."), parameter
        elif not name.startswith(wrapped):
            yield name, parameter


def image_adapters(denoiser: nn.Module) -> tuple[str, ...]:
    """The names of the attention layers whose processor has weights of its own, as an IP-Adapter gives them."""
    return tuple(plain_name(name) for name, module in denoiser.named_modules() if _processed(module))


def _processed(module: nn.Module) -> bool:
    """Whether it is an attention layer of diffusers whose processor has weights; others' parts may have that name."""
    processor = module._modules.get("processor") if isinstance(module, Attention | AttentionModuleMixin) else None
    return processor is not None and any(True for _ in processor.parameters())


def _added(denoiser: nn.Module) -> Iterator[str]:
    """The names of modules beside the model's own, with weights of their own."""
    for wrapped, module in denoiser.named_modules():
        name, children = plain_name(wrapped), module._modules
        if isinstance(module, _IMAGE):
            yield name
        added = [fused for fused, own in _FUSED.items() if fused in children and own in children]
        added += ["processor"] if _processed(module) else []
        yield from (f"{name}.{child}".lstrip(".") for child in added)
