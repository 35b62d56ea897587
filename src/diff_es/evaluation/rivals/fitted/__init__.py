"""Solvers that are fitted to a model, or could be, written from their papers: rivals at equal calls of the denoiser."""

from .adams_bashforth import adams_bashforth
from .corrected import corrected
from .gits import gits
from .gradient import Descent, by_gradient, descended
from .pas import pas
from .way import Fit, FittedWay

__all__ = ["Descent", "Fit", "FittedWay", "adams_bashforth", "by_gradient", "corrected", "descended", "gits", "pas"]
