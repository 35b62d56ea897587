"""Timesteps that were published for a model, by its authors or by others."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
from diffusers.schedulers import AysSchedules

from ..pipelines.families import Pipeline
from ..trajectory.timesteps import Timesteps, Trajectory, at_sigmas
from ..utils.errors import DiffESError


class Ays(Enum):
    """The models of images for which Align Your Steps (arXiv 2404.14507) has published ten steps."""

    STABLE_DIFFUSION = "StableDiffusion"  # 1.5
    STABLE_DIFFUSION_XL = "StableDiffusionXL"


def ays(path: Trajectory, model: Ays, steps: int) -> Timesteps:
    """The published steps of a model; other numbers than ten by interpolating the logarithm of sigma, as published.

    Raises:
        DiffESError: a scheduler with another noise schedule than Stable Diffusion's, or as ``trajectory.karras``.
    """
    timesteps, sigmas = AysSchedules[f"{model.value}Timesteps"], AysSchedules[f"{model.value}Sigmas"][:-1]
    if not _has_noise_of(path, model):
        expected, remedy = f"Stable Diffusion's noise schedule, up to sigma {sigmas[0]}", "Use another placement."
        raise DiffESError("noise schedule", expected=expected, found=f"up to {path.noise[-1]:.3f}", remedy=remedy)
    if steps == len(timesteps):
        return tuple(map(float, timesteps))
    places = np.linspace(0, 1, max(steps, 0)), np.linspace(0, 1, len(sigmas))
    return at_sigmas(path, np.exp(np.interp(*places, np.log(sigmas))))


def published(pipe: Pipeline, path: Trajectory, steps: int) -> Timesteps | None:
    """The published steps of a pipeline's own kind of model; None where there are none, or its noise is another."""
    model = _KINDS.get(type(pipe).__name__)
    return ays(path, model, steps) if model is not None and _has_noise_of(path, model) else None


_KINDS = {"StableDiffusionPipeline": Ays.STABLE_DIFFUSION, "StableDiffusionXLPipeline": Ays.STABLE_DIFFUSION_XL}


def _has_noise_of(path: Trajectory, model: Ays) -> bool:
    return math.isclose(path.noise[-1], AysSchedules[f"{model.value}Sigmas"][0], rel_tol=1e-3)
