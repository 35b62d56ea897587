"""DBCache of the library cache-dit, with TaylorSeer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.sampling import of_class
from ....utils.errors import DiffESError
from ....utils.patching import exchanged
from .cached import library


@dataclass(frozen=True)
class DualBlock:
    """The first blocks run; where they change little, the change of all others is foretold (DBCache), along a Taylor
    series (TaylorSeer, 2503.06923). Fields have the names and the meaning of cache-dit's ``DBCacheConfig``.

    Args:
        taylorseer_order: of the series; None: what was kept is taken as it is.
    """

    residual_diff_threshold: float
    Fn_compute_blocks: int = 1
    Bn_compute_blocks: int = 0
    max_warmup_steps: int = 4
    max_continuous_cached_steps: int = -1
    taylorseer_order: int | None = 1

    @contextmanager
    def enabled(self, pipe: Pipeline, sampling: Sampling) -> Iterator[None]:
        """As :meth:`Cache.enabled`.

        Raises:
            DiffESError: cache-dit is not installed, or does not know such a pipeline.
        """
        cache_dit = library("cache_dit")
        config = cache_dit.DBCacheConfig(
            residual_diff_threshold=self.residual_diff_threshold,
            Fn_compute_blocks=self.Fn_compute_blocks,
            Bn_compute_blocks=self.Bn_compute_blocks,
            max_warmup_steps=self.max_warmup_steps,
            max_continuous_cached_steps=self.max_continuous_cached_steps,
        )
        order = self.taylorseer_order
        calibrator = None if order is None else cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
        kind = type(pipe)
        if not cache_dit.BlockAdapterRegister.is_supported(pipe):
            raise DiffESError(
                kind.__name__,
                expected="a pipeline that cache-dit supports",
                found="none",
                remedy="Use another cache.",
            )
        own = type(kind.__name__, (kind,), {"__module__": kind.__module__})  # what the library sets on it goes with it
        with ExitStack() as stack:
            for handler in logging.getLogger("CACHE_DIT").handlers:
                stack.enter_context(exchanged(handler, "level", logging.ERROR))
            stack.enter_context(of_class(pipe, own))
            cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
            yield
