"""From a candidate to a number: closeness to the dense model, time, and the journal of both."""

from .fidelity import BandSNR, ImagePSNR, ImageSSIM, LatentSNR
from .fitness import Fitness
from .journal import Journal

__all__ = ["BandSNR", "Fitness", "ImagePSNR", "ImageSSIM", "Journal", "LatentSNR"]
