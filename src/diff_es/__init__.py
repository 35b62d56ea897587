"""Diff-ES: stage-wise structural pruning of diffusion models by evolutionary search (arXiv 2603.05105)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression.compress import Run, compress
    from .compression.enabling import disable, enable
    from .compression.export import Exported, export
    from .compression.result import Compressed, Front, load
    from .compression.settings import Levers, Settings
    from .layers import Channels, Heads, Residual, separate_attention
    from .pipelines.families import Sampling
    from .pipelines.own_sampler import OwnSampler
    from .pruning.budget import Budget, MacsRatio, Speedup, WeightMemory
    from .pruning.compensation import Ridge
    from .pruning.declare import declare
    from .pruning.granularity import Depth, Granularity, Width
    from .pruning.importance import Activation, Magnitude, Obs, Wanda
    from .pruning.library import Method
    from .routing.placements import Compact, Resident, Streamed
    from .scoring.fidelity import ImagePSNR, ImageSSIM, LatentSNR
    from .utils.errors import ArtefactError, BudgetOutOfReach, DiffESError, StorageError, UnsupportedModel
    from .utils.progress import Reporter

__all__ = [
    "Activation",
    "ArtefactError",
    "Budget",
    "BudgetOutOfReach",
    "Channels",
    "Compact",
    "Compressed",
    "Depth",
    "DiffESError",
    "Exported",
    "Front",
    "Granularity",
    "Heads",
    "ImagePSNR",
    "ImageSSIM",
    "LatentSNR",
    "Levers",
    "MacsRatio",
    "Magnitude",
    "Method",
    "Obs",
    "OwnSampler",
    "Reporter",
    "Resident",
    "Residual",
    "Ridge",
    "Run",
    "Sampling",
    "Settings",
    "Speedup",
    "StorageError",
    "Streamed",
    "UnsupportedModel",
    "Wanda",
    "WeightMemory",
    "Width",
    "compress",
    "declare",
    "disable",
    "enable",
    "export",
    "load",
    "separate_attention",
]

_HOMES = {
    "compression.compress": ("Run", "compress"),
    "compression.enabling": ("disable", "enable"),
    "compression.export": ("Exported", "export"),
    "compression.result": ("Compressed", "Front", "load"),
    "compression.settings": ("Levers", "Settings"),
    "layers": ("Channels", "Heads", "Residual", "separate_attention"),
    "pipelines.families": ("Sampling",),
    "pipelines.own_sampler": ("OwnSampler",),
    "pruning.budget": ("Budget", "MacsRatio", "Speedup", "WeightMemory"),
    "pruning.compensation": ("Ridge",),
    "pruning.declare": ("declare",),
    "pruning.granularity": ("Depth", "Granularity", "Width"),
    "pruning.importance": ("Activation", "Magnitude", "Obs", "Wanda"),
    "pruning.library": ("Method",),
    "routing.placements": ("Compact", "Resident", "Streamed"),
    "scoring.fidelity": ("ImagePSNR", "ImageSSIM", "LatentSNR"),
    "utils.errors": ("ArtefactError", "BudgetOutOfReach", "DiffESError", "StorageError", "UnsupportedModel"),
    "utils.progress": ("Reporter",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used: PyTorch takes seconds, in which the command line has to be ready
    for Ctrl-C, and a worker for the end of its parent."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
