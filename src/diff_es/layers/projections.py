"""What finders of attention ask before they would slim it."""

from __future__ import annotations

from torch import nn

FUSED = "its q, k and v are fused: call unfuse_qkv_projections() of the denoiser first"


def unusual(*parts: nn.Module) -> str | None:
    """Why one of these is not the plain linear layer that can be replaced by a smaller one; None if all are."""
    for part in parts:
        if type(part) is not nn.Linear:
            return f"a projection is a {type(part).__name__}, not a plain nn.Linear (unload or merge adapters first)"
    return None


def unproven(processor: object, *known: type) -> str | None:
    """Why an attention processor may not compute with fewer heads; None for one that is known to."""
    if type(processor) in known:
        return None
    names = " or ".join(kind.__name__ for kind in known)
    return f"its processor is {type(processor).__name__}: set {names} to have its heads pruned"
