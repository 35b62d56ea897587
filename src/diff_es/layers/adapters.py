"""Adapters around layers, such as LoRA: peft keeps the layer itself under ``base_layer``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .compiled import named_parameters, plain_name

_KEPT = ".base_layer"


def adapted(denoiser: nn.Module) -> tuple[str, ...]:
    """The names of the layers that adapters wrap."""
    names = (plain_name(name) for name, _ in denoiser.named_modules())
    return tuple(name.removesuffix(_KEPT) for name in names if name.endswith(_KEPT))


def base_parameters(denoiser: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's own parameters under their own names, without those of adapters."""
    wrapped = tuple(f"{name}." for name in adapted(denoiser))
    for name, parameter in named_parameters(denoiser):
        if f"{_KEPT}." in name:
            yield name.replace(f"{_KEPT}.", "."), parameter
        elif not name.startswith(wrapped):
            yield name, parameter


def image_adapters(denoiser: nn.Module) -> tuple[str, ...]:
    """The names of the attention layers whose processor has weights of its own, as an IP-Adapter gives them."""
    own = (plain_name(name) for name, _ in denoiser.named_parameters())
    found = (name.partition(".processor.") for name in own)
    return tuple(dict.fromkeys(layer for layer, inside, _ in found if inside))
