"""Who runs the independent pieces that a search or an evaluation falls into: this process, or workers of a Ray cluster.

It knows pipelines, so that a worker can open one, and nothing of what is asked of it.
"""

from .contract import Crew, Executor, InProcess, Work, alone
from .on_ray import OnRay
from .shipping import Shipped, shipped

__all__ = ["Crew", "Executor", "InProcess", "OnRay", "Shipped", "Work", "alone", "shipped"]
