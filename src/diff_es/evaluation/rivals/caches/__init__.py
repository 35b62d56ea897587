"""Caches as people use them: the dense model, parts of whose steps another library foretells from earlier ones."""

from .cached import Cache, Cached
from .deep import Deep
from .dual_block import DualBlock
from .native import Native, calibrated
from .offered import offered
from .ran import Ran, counted

__all__ = ["Cache", "Cached", "Deep", "DualBlock", "Native", "Ran", "calibrated", "counted", "offered"]
