"""A denoiser of a published size without its weights, and a call of it as its pipeline would make one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import diffusers
import torch
from torch import Tensor

from ..utils.calls import Kwargs
from ..utils.errors import UnsupportedModel
from .families import Denoiser, Sampling
from .model_index import attempted
from .quiet import hushed
from .tracing import Trace

Blank: TypeAlias = Callable[..., Tensor]  # a tensor of a shape
SHRINKS = 8
"""Pixels to a latent of all published decoders that recipes name."""


def without_weights(name: str, settings: Mapping[str, Any]) -> Denoiser:
    """A denoiser of this class of diffusers and of this configuration, on the meta device.

    Raises:
        UnsupportedModel: a class that cannot be called without its pipeline, or settings that it does not take.
    """
    if name not in _CALLS:
        expected = f"one of {', '.join(_CALLS)}"
        remedy = "Leave model.denoiser out: the run is priced where its weights are."
        raise UnsupportedModel("model.denoiser", expected=expected, found=name, remedy=remedy)
    kind: Any = getattr(diffusers, name)
    with hushed(), torch.device("meta"):
        made: Denoiser = attempted(
            "model.denoiser", f"settings of a {name}", "Correct them.", partial(kind, **settings)
        )
    return made.eval()


def call_without_pipeline(denoiser: Denoiser, sampling: Sampling, shrinks: int = SHRINKS) -> Trace:
    """The shapes of the call that a pipeline makes for a sample, as ``tracing.trace`` finds them, and as many timesteps
    as there are.

    Args:
        denoiser: as :func:`without_weights` makes it.
        sampling: whose height and width count where they are said; without them the denoiser's own size.
        shrinks: pixels to a latent.
    """
    kind, config = type(denoiser).__name__, denoiser.config
    high, wide = (None if side is None else side // shrinks for side in (sampling.height, sampling.width))
    size = config.get("sample_size")
    count = 2 if sampling.guidance > 1 and kind != "FluxTransformer2DModel" else 1
    blank = partial(torch.zeros, device="meta")
    given = _CALLS[kind](config, count, high or size, wide or size, blank)
    return Trace((0.0,) * sampling.steps, (), given)


def _dit(config: Any, count: int, high: int, wide: int, blank: Blank) -> Kwargs:
    whole = blank(count, dtype=torch.int64)
    return {"hidden_states": blank(count, config.in_channels, high, wide), "timestep": whole, "class_labels": whole}


def _unet(config: Any, count: int, high: int, wide: int, blank: Blank) -> Kwargs:
    given = {"sample": blank(count, config.in_channels, high, wide), "timestep": blank(())}
    given["encoder_hidden_states"] = blank(count, 77, config.cross_attention_dim)
    if config.addition_embed_type != "text_time":
        return given
    text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {**given, "added_cond_kwargs": {"text_embeds": blank(count, text), "time_ids": blank(count, 6)}}


def _sd3(config: Any, count: int, high: int, wide: int, blank: Blank) -> Kwargs:
    text = 77 + 256  # tokens of CLIP's and T5's encodings
    return {
        "hidden_states": blank(count, config.in_channels, high, wide),
        "timestep": blank(count),
        "encoder_hidden_states": blank(count, text, config.joint_attention_dim),
        "pooled_projections": blank(count, config.pooled_projection_dim),
    }


def _flux(config: Any, count: int, high: int, wide: int, blank: Blank) -> Kwargs:
    tokens, text = (high // 2) * (wide // 2), 512
    given = {
        "hidden_states": blank(count, tokens, config.in_channels),
        "timestep": blank(count),
        "encoder_hidden_states": blank(count, text, config.joint_attention_dim),
        "pooled_projections": blank(count, config.pooled_projection_dim),
        "img_ids": blank(tokens, 3),
        "txt_ids": blank(text, 3),
    }
    return {**given, "guidance": blank(count)} if config.guidance_embeds else given


_CALLS: dict[str, Callable[[Any, int, int, int, Blank], Kwargs]] = {
    "DiTTransformer2DModel": _dit,
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
