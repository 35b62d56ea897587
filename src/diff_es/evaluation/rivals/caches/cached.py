"""The dense model through a cache, as a way to sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.quiet import hushed
from ....pipelines.sampling import denoiser_of
from ....routing.placements import parameter_bytes
from ....utils.errors import DiffESError
from ....utils.patching import untouched


class Cache(Protocol):
    """What a library skips, and how it foretells what it skips."""

    def enabled(self, pipe: Pipeline, sampling: Sampling) -> AbstractContextManager[None]:
        """Where the denoiser of the pipeline runs through the cache, which forgets between trajectories.

        What it sets on the pipeline, the denoiser and its modules may stay: whoever calls clears it away.

        Raises:
            DiffESError: this cache does not take such a pipeline.
        """


@dataclass(frozen=True)
class Cached:
    """The dense model through a cache of another library."""

    name: str
    sampling: Sampling
    cache: Cache

    @property
    def steps(self) -> int:
        """Sampler steps that it takes."""
        return self.sampling.steps

    def of_batch(self, batch: int) -> Cached:
        """The same for batches of another size."""
        return replace(self, sampling=replace(self.sampling, batch=batch))

    @contextmanager
    def context(self, pipe: Pipeline) -> Iterator[None]:
        """With the cache; afterwards the pipeline and every module are as they were, whatever happened."""
        with untouched(pipe, *denoiser_of(pipe).modules()), hushed(), self.cache.enabled(pipe, self.sampling):
            yield

    def weight_bytes(self, pipe: Pipeline) -> int:
        """The most bytes of weights on the device during a trajectory: all of them."""
        return parameter_bytes(denoiser_of(pipe))


def library(name: str) -> Any:
    """A module of a library that is not needed otherwise.

    Raises:
        DiffESError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        remedy = "pip install diff-es[caches]"
        raise DiffESError(name, expected="this library", found="none", remedy=remedy) from error
