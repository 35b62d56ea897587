"""DeepCache of its own library, for U-Nets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.sampling import denoiser_name
from ....utils.errors import DiffESError
from .cached import library


@dataclass(frozen=True)
class Deep:
    """All but the shallow blocks of a U-Net run every so many steps only (2312.00858). Fields have the names and the
    meaning of the library's ``set_params``."""

    cache_interval: int
    cache_branch_id: int = 0

    @contextmanager
    def enabled(self, pipe: Pipeline, sampling: Sampling) -> Iterator[None]:
        """As :meth:`Cache.enabled`.

        Raises:
            DiffESError: DeepCache is not installed, or the denoiser is no U-Net.
        """
        if denoiser_name(pipe) != "unet":
            raise DiffESError(
                type(pipe).__name__, expected="a U-Net", found="a transformer", remedy="Use another cache."
            )
        helper = library("DeepCache").DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=self.cache_interval, cache_branch_id=self.cache_branch_id)
        helper.enable()
        yield
