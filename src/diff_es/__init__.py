"""Diff-ES: stage-wise structural pruning of diffusion models by evolutionary search (arXiv 2603.05105)."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artefact import Compressed, load
    from .compress import compress
    from .errors import ArtefactError, BudgetOutOfReach, DiffESError, StorageError, UnsupportedModel
    from .export import Exported, export
    from .library import Method
    from .obs import Activation, Magnitude, Obs, Ridge, Wanda
    from .own_sampler import OwnSampler
    from .pipeline import Sampling
    from .placements import Compact, Resident, Streamed
    from .progress import Reporter
    from .settings import Levers, Settings
    from .units import Depth, Width

__all__ = [
    "Activation",
    "ArtefactError",
    "BudgetOutOfReach",
    "Compact",
    "Compressed",
    "Depth",
    "DiffESError",
    "Exported",
    "Levers",
    "Magnitude",
    "Method",
    "Obs",
    "OwnSampler",
    "Reporter",
    "Resident",
    "Ridge",
    "Sampling",
    "Settings",
    "StorageError",
    "Streamed",
    "UnsupportedModel",
    "Wanda",
    "Width",
    "compress",
    "export",
    "load",
]

_HOMES = {
    "artefact": ("Compressed", "load"),
    "compress": ("compress",),
    "errors": ("ArtefactError", "BudgetOutOfReach", "DiffESError", "StorageError", "UnsupportedModel"),
    "export": ("Exported", "export"),
    "library": ("Method",),
    "obs": ("Activation", "Magnitude", "Obs", "Ridge", "Wanda"),
    "own_sampler": ("OwnSampler",),
    "pipeline": ("Sampling",),
    "placements": ("Compact", "Resident", "Streamed"),
    "progress": ("Reporter",),
    "settings": ("Levers", "Settings"),
    "units": ("Depth", "Width"),
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
