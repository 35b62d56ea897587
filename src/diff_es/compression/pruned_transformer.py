"""A pruned diffusers transformer that needs diffusers and PyTorch, and nothing else.

A copy of this file lies beside the weights of an exported pipeline. diffusers runs it when told that it may:
``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``. The model is diffusers' own class; once that has
built its dense layers, those that ``config.json`` names under "pruning" are exchanged for smaller ones. diffusers does
both on the meta device where accelerate is installed, so that no dense weight is ever allocated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class Skip(TypedDict):
    """What is left of a skipped block."""

    bypass: int | None  # hidden size, where a linear map stands in its place
    keeps: list[str]  # parts of the block that the model reads from outside of it


class Pruning(TypedDict):
    """What differs from the dense model, by module name; the rest is dense."""

    heads: dict[str, int]  # that an attention module has left
    channels: dict[str, int]  # hidden ones that a feed-forward module has left
    skipped: dict[str, Skip]


class SkippedBlock(nn.Module):
    """Stands where a block was: hidden + W hidden + b, or the hidden states as they came."""

    def __init__(self, block: nn.Module, skip: Skip) -> None:
        super().__init__()
        width = skip["bypass"]
        self.bypass = None if width is None else nn.Linear(width, width)
        for name in skip["keeps"]:
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.add_module(leaf, block.get_submodule(name))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states and result: (..., width)."""
        if self.bypass is None:
            return hidden_states
        added: Tensor = self.bypass(hidden_states)
        return hidden_states + added


def prune(model: nn.Module, pruning: Pruning) -> None:
    """Exchange dense layers for smaller ones of fresh weights."""
    for name, heads in pruning["heads"].items():
        _thin_attention(model.get_submodule(name), heads)
    for name, channels in pruning["channels"].items():
        _thin_feed_forward(model.get_submodule(name), channels)
    for name, skip in pruning["skipped"].items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, SkippedBlock(model.get_submodule(name), skip))


def _thin_attention(module: Any, heads: int) -> None:
    """Of diffusers' ``Attention``: processors read ``heads`` and take a head's size from what the projections give."""
    width = module.inner_dim // module.heads * heads
    module.to_q, module.to_k, module.to_v = (
        nn.Linear(dense.in_features, width, bias=dense.bias is not None)
        for dense in (module.to_q, module.to_k, module.to_v)
    )
    module.to_out[0] = nn.Linear(width, module.to_out[0].out_features, bias=module.to_out[0].bias is not None)
    module.heads = module.sliceable_head_dim = heads
    module.inner_dim = module.inner_kv_dim = width


def _thin_feed_forward(module: Any, channels: int) -> None:
    """Of diffusers' ``FeedForward``."""
    first, last = module.net[0].proj, module.net[2]
    halves = first.out_features // last.in_features  # 2 where a gate stands beside the values
    module.net[0].proj = nn.Linear(first.in_features, halves * channels, bias=first.bias is not None)
    module.net[2] = nn.Linear(channels, last.out_features, bias=last.bias is not None)


def _configured_like(dense: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """diffusers' ``register_to_config``, for an ``__init__`` that takes what a dense class's takes, and ``pruning``.

    diffusers reads from the signature what belongs in the configuration.
    """

    def declare(init: Any) -> Callable[..., None]:
        own = inspect.Parameter("pruning", inspect.Parameter.KEYWORD_ONLY)
        init.__signature__ = inspect.Signature([*inspect.signature(dense).parameters.values(), own])
        registered: Callable[..., None] = register_to_config(init)
        return registered

    return declare


class PrunedDiTTransformer2DModel(DiTTransformer2DModel):
    """diffusers' ``DiTTransformer2DModel`` with fewer heads, channels and blocks; it takes the same arguments, those of
    the dense model, and ``pruning``."""

    __module__ = Path(__file__).stem  # what a pipeline's index names, also when a loaded pipeline is saved again

    @_configured_like(DiTTransformer2DModel.__init__)
    def __init__(self, *dense: Any, pruning: Pruning, **named: Any) -> None:
        super().__init__(*dense, **named)
        prune(self, pruning)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the configuration and, beside it, this file."""
        super().save_config(save_directory, *args, **kwargs)
        own = Path(__file__)
        (Path(save_directory) / own.name).write_bytes(own.read_bytes())


PRUNED: dict[type, type] = {DiTTransformer2DModel: PrunedDiTTransformer2DModel}  # from dense class to pruned
