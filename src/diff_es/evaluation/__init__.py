"""A result beside its rivals: figures, pictures and a report."""

from .benchmark import compare
from .evaluate import Effort, evaluated

__all__ = ["Effort", "compare", "evaluated"]
