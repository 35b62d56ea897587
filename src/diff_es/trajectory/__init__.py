"""The mathematics of a sampler's run: its stages, where steps stand, how they are corrected."""

from .corrections import Corrections
from .stages import Schedule, Stages
from .timesteps import Trajectory

__all__ = ["Corrections", "Schedule", "Stages", "Trajectory"]
