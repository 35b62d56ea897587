"""From a candidate to a number: closeness to the dense model, time, and the journal of both."""

from .distribution import Blend, Distribution
from .fidelity import BandSNR, ImagePSNR, ImageSSIM, LatentSNR
from .fitness import Fitness
from .journal import Journal

__all__ = ["BandSNR", "Blend", "Distribution", "Fitness", "ImagePSNR", "ImageSSIM", "Journal", "LatentSNR"]
