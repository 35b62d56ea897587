"""Levels of a stage, from statistics to compensated weights, and what they cost."""

from .budget import Budget, MacsRatio, Speedup, WeightMemory
from .calibration import calibrate
from .compensation import Ridge
from .declare import declare
from .granularity import Depth, Granularity, Width
from .importance import Activation, Magnitude, Obs, Wanda
from .library import Library
from .method import Method
from .statistics import Statistics

__all__ = [
    "Activation",
    "Budget",
    "Depth",
    "Granularity",
    "Library",
    "MacsRatio",
    "Magnitude",
    "Method",
    "Obs",
    "Ridge",
    "Speedup",
    "Statistics",
    "Wanda",
    "WeightMemory",
    "Width",
    "calibrate",
    "declare",
]
