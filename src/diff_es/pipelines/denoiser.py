"""Where a denoiser lies, what it computes in, and what it is without its weights."""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from torch import nn

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
    """The same architecture without weights, on the meta device."""
    with hushed(), torch.device("meta"):
        twin: ModelMixin = type(denoiser).from_config(denoiser.config)
    nn.Module.to(twin, device="meta", dtype=denoiser.dtype)
    return twin.eval()
