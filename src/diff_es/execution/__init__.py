"""Who runs the independent pieces that a search or an evaluation falls into: this process, or workers of a Ray cluster.

It knows pipelines, so that a worker can open one (``shipping``, which is imported by itself, since it takes its time),
and nothing of what is asked of it.
"""

from .contract import Alone, Crew, Executor, InProcess, Work
from .on_ray import OnRay

__all__ = ["Alone", "Crew", "Executor", "InProcess", "OnRay", "Work"]
