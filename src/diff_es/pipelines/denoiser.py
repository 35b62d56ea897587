"""Where a denoiser lies, what it computes in, and what it is without its weights."""

from __future__ import annotations

from collections import Counter

import torch
from diffusers import ModelMixin
from torch import nn

from ..layers import base_parameters
from ..utils.errors import UnsupportedModel
from .quiet import hushed


def device_of(denoiser: nn.Module) -> torch.device:
    """The device of its weights."""
    if isinstance(denoiser, ModelMixin):  # which knows where it runs while it is offloaded
        found: torch.device = denoiser.device
        return found
    return next(denoiser.parameters()).device


def dtype_of(denoiser: nn.Module) -> torch.dtype:
    """The precision of its weights."""
    if isinstance(denoiser, ModelMixin):
        found: torch.dtype = denoiser.dtype
        return found
    return next((p.dtype for p in denoiser.parameters() if p.is_floating_point()), torch.float32)


def meta_twin(denoiser: ModelMixin) -> ModelMixin:
    """The same architecture without weights, on the meta device.

    Raises:
        UnsupportedModel: its weights are not of the shapes that its configuration says; names may be others.
    """
    with hushed(), torch.device("meta"):
        twin: ModelMixin = type(denoiser).from_config(denoiser.config)
    own = {name: tuple(parameter.shape) for name, parameter in base_parameters(denoiser)}
    told = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    if Counter(own.values()) != Counter(told.values()):
        odd = sorted(name for name in own | told if own.get(name) != told.get(name))
        found = f"{odd[0]}: {own.get(odd[0], 'not there')}, and {told.get(odd[0], 'none')} by the configuration"
        remedy = "Say in the configuration what was changed by hand (denoiser.register_to_config), or change it back."
        expected = "the weights of its configuration"
        raise UnsupportedModel(type(denoiser).__name__, expected=expected, found=found, remedy=remedy)
    nn.Module.to(twin, device="meta", dtype=denoiser.dtype)
    return twin.eval()
