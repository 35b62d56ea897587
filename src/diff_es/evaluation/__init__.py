"""A result beside its rivals: figures, pictures and a report."""

from .benchmark import compare
from .evaluate import Extent, evaluated

__all__ = ["Extent", "compare", "evaluated"]
