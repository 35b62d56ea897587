"""Diff-ES: stage-wise structural pruning of diffusion models by evolutionary search (arXiv 2603.05105)."""

from .artefact import Compressed, load
from .compress import compress
from .errors import ArtefactError, BudgetOutOfReach, DiffESError, StorageError, UnsupportedModel
from .export import Exported, export
from .library import Depth, Method, Width
from .obs import Activation, Magnitude, Obs, Ridge, Wanda
from .pipeline import Sampling
from .settings import Settings

__all__ = [
    "Activation",
    "ArtefactError",
    "BudgetOutOfReach",
    "Compressed",
    "Depth",
    "DiffESError",
    "Exported",
    "Magnitude",
    "Method",
    "Obs",
    "Ridge",
    "Sampling",
    "Settings",
    "StorageError",
    "UnsupportedModel",
    "Wanda",
    "Width",
    "compress",
    "export",
    "load",
]
