"""Diff-ES: stage-wise structural pruning of diffusion models by evolutionary search (arXiv 2603.05105)."""

from .artefact import Compressed, load
from .compress import compress
from .errors import ArtefactError, BudgetOutOfReach, DiffESError, StorageError, UnsupportedModel
from .export import Exported, export
from .library import Method
from .obs import Activation, Magnitude, Obs, Ridge, Wanda
from .pipeline import Sampling
from .placements import Compact, Resident, Streamed
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
