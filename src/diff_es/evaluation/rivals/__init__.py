"""What users and earlier methods do instead: every way to sample that a result is judged beside."""

from .pruned import Contender, contenders, random_rival, scheduled, searched

__all__ = ["Contender", "contenders", "random_rival", "scheduled", "searched"]
