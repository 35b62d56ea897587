"""What all ways to sample have in common that leave the dense model's weights alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ...pipelines.families import Pipeline, Sampling
from ...pipelines.sampling import denoiser_of
from ...routing.placements import parameter_bytes


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
