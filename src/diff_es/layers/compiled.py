"""torch.compile under routing: the names of the uncompiled model, and room for one compilation per level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor, nn
from torch._dynamo import config

from .offload import valued

_WRAPPED = "_orig_mod"  # where torch.compile(module) keeps the module
# PyTorch 2.6 has the older names only, which are slow to look up where they are aliases
_NAMED_ANEW = torch.__version__ >= "2.7"
_LIMIT = "recompile_limit" if _NAMED_ANEW else "cache_size_limit"
_MOST = f"accumulated_{_LIMIT}"


def submodule(root: nn.Module, name: str) -> nn.Module:
    """The module of this name in the uncompiled model, also where ``torch.compile`` has put wrappers around it.

    Raises:
        AttributeError: there is none.
    """
    module = root.get_submodule(name)
    while (inner := module._modules.get(_WRAPPED)) is not None:
        module = inner
    return module


def plain_name(name: str) -> str:
    """A module's or parameter's name in the uncompiled model."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


def named_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters with their values, under their names in the uncompiled model."""
    for name, parameter in root.named_parameters():
        owner, _, leaf = name.rpartition(".")
        yield plain_name(name), valued(root.get_submodule(owner), leaf) if parameter.is_meta else parameter


def state_dict(root: nn.Module) -> dict[str, Tensor]:
    """The state dict that the uncompiled model has."""
    return {plain_name(name): value for name, value in root.state_dict().items()}


_lock, _depth, _own = RLock(), 0, 0  # of denoiser calls under way, and the user's limit outside of them


@contextmanager
def room_to_compile() -> Iterator[None]:
    """Lets a denoiser's code be compiled once per level while it runs.

    Blocks of one class share their compiled code, and PyTorch runs what comes after ``recompile_limit`` (8) variants
    uncompiled. Inside routed forwards, and nowhere else, that limit is raised to ``accumulated_recompile_limit``
    (256), PyTorch's bound on all variants of one function.

    The variants stay when the denoiser is dense again. If a dense call then needs one more (another batch size) and the
    user's own limit is used up, PyTorch gives up compiling that function until ``torch.compiler.reset()``: whoever goes
    on with dense calls of other shapes raises ``torch._dynamo.config.recompile_limit`` beforehand.
    """
    global _depth, _own
    with _lock:
        if not _depth:
            _own = getattr(config, _LIMIT)
            setattr(config, _LIMIT, max(_own, getattr(config, _MOST)))
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                setattr(config, _LIMIT, _own)
