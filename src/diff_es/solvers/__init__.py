"""The sampler's steps: which schedulers are known, how chosen steps are run, and from where a run may go on."""

from .custom_timesteps import stepped
from .prefix_cache import PrefixCache, Replay

__all__ = ["PrefixCache", "Replay", "stepped"]
