"""What is set of a loop of the user's own: what the loop itself says, and nothing that it does not take."""

from __future__ import annotations

from dataclasses import replace

from ..pipelines.families import Sampling
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.tracing import trace
from ..utils.errors import DiffESError
from .settings import Levers, Settings


def own_settings(own: OwnSampler, settings: Settings) -> Settings:
    """The settings with the loop's own number of steps, and without guidance, which is inside of it.

    Raises:
        DiffESError: settings that the loop does not take, or a measure of images where it gives none.
    """
    if settings.levers is not Levers.PRUNE and own.times is None:
        raise own.without_times("a loop whose steps are a choice")
    if own.decode is None and settings.measure.of_images:
        found, remedy = type(settings.measure).__name__, "Give OwnSampler decode=..., or compare latents: LatentSNR()."
        raise DiffESError("measure", expected="one of latents, for there are no images", found=found, remedy=remedy)
    return replace(settings, sampling=own_sampling(own, settings.sampling))


def own_sampling(own: OwnSampler, sampling: Sampling) -> Sampling:
    """The same of what is sampled."""
    remedy = "Leave it out: what the loop takes besides is bound beforehand (functools.partial)."
    taken = {"guidance_scale": (None, 1.0), "negative_prompt": (None,), "height": (None,), "width": (None,)}
    for name, allowed in {**taken, "num_frames": (None,)}.items():
        said = getattr(sampling, name)
        if said not in allowed:
            raise DiffESError(name, expected="none for a loop of your own", found=repr(said), remedy=remedy)
    steps = len(set(trace(own, sampling).timesteps)) if own.times is None else len(own.times)
    if sampling.num_inference_steps not in (None, steps):
        expected, found = f"{steps}, as the loop takes", str(sampling.num_inference_steps)
        remedy = "Leave it out, or give OwnSampler other times."
        raise DiffESError("num_inference_steps", expected=expected, found=found, remedy=remedy)
    return replace(sampling, num_inference_steps=steps, guidance_scale=1.0)
