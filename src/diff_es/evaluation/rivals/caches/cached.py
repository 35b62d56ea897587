"""The dense model through a cache, as a way to sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.quiet import hushed
from ....pipelines.sampling import denoiser_of
from ....utils.errors import DiffESError, Extra
from ....utils.patching import untouched
from ..dense import DenseWay


class Cache(Protocol):
    """What a library skips, and how it foretells what it skips."""

    def enabled(self, pipe: Pipeline, sampling: Sampling) -> AbstractContextManager[None]:
        """Where the denoiser of the pipeline runs through the cache, which forgets between trajectories.

        What it sets on the pipeline, the denoiser and its modules may stay: whoever calls clears it away.

        Raises:
            DiffESError: this cache does not take such a pipeline.
        """


@dataclass(frozen=True)
class Cached(DenseWay):
    """The dense model through a cache of another library."""

    cache: Cache

    @contextmanager
    def context(self, pipe: Pipeline) -> Iterator[None]:
        """With the cache; afterwards the pipeline and every module are as they were, whatever happened."""
        with untouched(pipe, *denoiser_of(pipe).modules()), hushed(), self.cache.enabled(pipe, self.sampling):
            yield


def library(name: str) -> Any:
    """A module of a library that is not needed otherwise.

    Raises:
        DiffESError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise DiffESError(name, expected="this library", found="none", remedy=Extra.CACHES.remedy) from error
