"""Diff-ES: stage-wise structural pruning of diffusion models by evolutionary search (arXiv 2603.05105)."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artefact import Compressed, Front, load
    from .budget import Budget, MacsRatio, Speedup, WeightMemory
    from .compensation import Ridge
    from .compress import Run, compress
    from .enabling import disable, enable
    from .errors import ArtefactError, BudgetOutOfReach, DiffESError, StorageError, UnsupportedModel
    from .export import Exported, export
    from .importance import Activation, Magnitude, Obs, Wanda
    from .library import Method
    from .measures import ImagePSNR, ImageSSIM, LatentSNR
    from .own_sampler import OwnSampler
    from .pipeline import Sampling
    from .placements import Compact, Resident, Streamed
    from .progress import Reporter
    from .settings import Levers, Settings
    from .units import Depth, Grain, Width

__all__ = [
    "Activation",
    "ArtefactError",
    "Budget",
    "BudgetOutOfReach",
    "Compact",
    "Compressed",
    "Depth",
    "DiffESError",
    "Exported",
    "Front",
    "Grain",
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
    "disable",
    "enable",
    "export",
    "load",
]

_HOMES = {
    "artefact": ("Compressed", "Front", "load"),
    "budget": ("Budget", "MacsRatio", "Speedup", "WeightMemory"),
    "compress": ("Run", "compress"),
    "errors": ("ArtefactError", "BudgetOutOfReach", "DiffESError", "StorageError", "UnsupportedModel"),
    "enabling": ("disable", "enable"),
    "export": ("Exported", "export"),
    "library": ("Method",),
    "measures": ("ImagePSNR", "ImageSSIM", "LatentSNR"),
    "own_sampler": ("OwnSampler",),
    "compensation": ("Ridge",),
    "importance": ("Activation", "Magnitude", "Obs", "Wanda"),
    "pipeline": ("Sampling",),
    "placements": ("Compact", "Resident", "Streamed"),
    "progress": ("Reporter",),
    "settings": ("Levers", "Settings"),
    "units": ("Depth", "Grain", "Width"),
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


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Importing the module ``diff_es.compress`` would put it in the place of the function."""
        shadows = isinstance(value, ModuleType) and _HOME.get(name) == name
        super().__setattr__(name, getattr(value, name) if shadows else value)


sys.modules[__name__].__class__ = _Package
