"""A hash by which a result knows the denoiser that it was made for."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from .adapters import base_parameters

_SAMPLED = 512
"""Values of each parameter that are read."""


def fingerprint(denoiser: nn.Module) -> str:
    """A hash of a denoiser's parameter names, shapes, and values at equal distances from the first on, which may leave
    up to half of a parameter unread; the same in float32 and bfloat16, and with adapters that are not fused."""
    digest = hashlib.sha256()
    for name, parameter in base_parameters(denoiser):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].bfloat16().cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()
