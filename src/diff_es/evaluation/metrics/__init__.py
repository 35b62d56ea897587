"""How good images are: beside the dense model's, beside real ones, and for their prompts."""

from .adm import reference_images, reference_moments
from .contract import OfSet, OfText, Paired, Summary
from .moments import Gaussian, Moments
from .names import MetricName, metric

__all__ = [
    "Gaussian",
    "MetricName",
    "Moments",
    "OfSet",
    "OfText",
    "Paired",
    "Summary",
    "metric",
    "reference_images",
    "reference_moments",
]
