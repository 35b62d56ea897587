"""What all ways to sample have in common that leave the dense model's weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ...pipelines.families import Pipeline, Sampling
from ...pipelines.probes import Probe
from ...pipelines.sampling import denoiser_of, sample
from ...routing.placements import parameter_bytes
from ...scoring.timing import Way


@dataclass(frozen=True)
class DenseWay:
    """A way to sample the dense model, as ``scoring.timing.Way`` has it but for its ``context``."""

    name: str
    sampling: Sampling

    @property
    def steps(self) -> int:
        """Sampler steps that it takes."""
        return self.sampling.steps

    def of_batch(self, batch: int) -> Self:
        """The same for batches of another size."""
        return replace(self, sampling=replace(self.sampling, batch=batch))

    def weight_bytes(self, pipe: Pipeline) -> int:
        """The most bytes of weights on the device during a trajectory: all of the denoiser's."""
        return parameter_bytes(denoiser_of(pipe))


def latents_of(pipe: Pipeline, way: Way, probes: Sequence[Probe]) -> Tensor:
    """Final latents of the probes, (N, ...)."""
    with way.context(pipe):
        return sample(pipe, probes, way.sampling)
