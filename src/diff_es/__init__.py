"""Diff-ES: stage-wise structural pruning of diffusion models by evolutionary search (arXiv 2603.05105)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression import (
        Compressed,
        Effort,
        Exported,
        Forecast,
        Front,
        Levers,
        Run,
        Settings,
        compress,
        disable,
        enable,
        export,
        forecast,
        load,
        with_effort,
        within_hours,
    )
    from .execution import OnRay
    from .layers import Channels, Heads, Residual, separate_attention
    from .pipelines import OwnSampler, Sampling
    from .pruning import (
        Activation,
        Budget,
        Depth,
        Granularity,
        MacsRatio,
        Magnitude,
        Method,
        Obs,
        Ridge,
        Speedup,
        Wanda,
        WeightMemory,
        Width,
        declare,
    )
    from .routing import Compact, Resident, Streamed
    from .scoring import BandSNR, Blend, Distribution, ImagePSNR, ImageSSIM, LatentSNR
    from .utils.errors import ArtefactError, BudgetOutOfReach, DiffESError, StorageError, UnsupportedModel
    from .utils.progress import Reporter

__all__ = [
    "Activation",
    "ArtefactError",
    "BandSNR",
    "Blend",
    "Budget",
    "BudgetOutOfReach",
    "Channels",
    "Compact",
    "Compressed",
    "Depth",
    "DiffESError",
    "Distribution",
    "Effort",
    "Exported",
    "Forecast",
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
    "OnRay",
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
    "forecast",
    "load",
    "separate_attention",
    "with_effort",
    "within_hours",
]

_HOMES = {
    "compression": (
        "Compressed",
        "Effort",
        "Exported",
        "Forecast",
        "Front",
        "Levers",
        "Run",
        "Settings",
        "compress",
        "disable",
        "enable",
        "export",
        "forecast",
        "load",
        "with_effort",
        "within_hours",
    ),
    "execution": ("OnRay",),
    "layers": ("Channels", "Heads", "Residual", "separate_attention"),
    "pipelines": ("OwnSampler", "Sampling"),
    "pruning": (
        "Activation",
        "Budget",
        "Depth",
        "Granularity",
        "MacsRatio",
        "Magnitude",
        "Method",
        "Obs",
        "Ridge",
        "Speedup",
        "Wanda",
        "WeightMemory",
        "Width",
        "declare",
    ),
    "routing": ("Compact", "Resident", "Streamed"),
    "scoring": ("BandSNR", "Blend", "Distribution", "ImagePSNR", "ImageSSIM", "LatentSNR"),
    "utils.errors": ("ArtefactError", "BudgetOutOfReach", "DiffESError", "StorageError", "UnsupportedModel"),
    "utils.progress": ("Reporter",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used: PyTorch takes seconds, in which the command line has to be ready
    for Ctrl-C."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
