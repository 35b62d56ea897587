"""What is set of a loop of the user's own: what the loop itself says, and nothing that it does not take."""

from __future__ import annotations

from dataclasses import replace

from .errors import DiffESError
from .measures import LatentSNR
from .pipeline import OwnSampler, Sampling, trace
from .settings import Levers, Settings

_USUAL = Sampling()


def own_settings(own: OwnSampler, settings: Settings) -> Settings:
    """The settings with the loop's own number of steps, and without guidance, which is inside of it.

    Raises:
        DiffESError: settings that the loop does not take, or a measure of images where it gives none.
    """
    if settings.levers is not Levers.PRUNE and own.times is None:
        raise own.without_times("a loop whose steps are a choice")
    if own.decode is None and not isinstance(settings.measure, LatentSNR):
        found, remedy = type(settings.measure).__name__, "Give OwnSampler decode=..., or compare latents: LatentSNR()."
        raise DiffESError("measure", expected="one of latents, for there are no images", found=found, remedy=remedy)
    return replace(settings, sampling=own_sampling(own, settings.sampling))


def own_sampling(own: OwnSampler, sampling: Sampling) -> Sampling:
    """The same of what is sampled."""
    steps = len(set(trace(own, sampling).timesteps)) if own.times is None else len(own.times)
    remedy = "Leave it out: what the loop takes besides is bound beforehand (functools.partial)."
    for name in ("guidance", "negative_prompt", "height", "width", "frames"):
        said = getattr(sampling, name)
        if said not in (getattr(_USUAL, name), 1.0 if name == "guidance" else None):
            raise DiffESError(name, expected="none for a loop of your own", found=repr(said), remedy=remedy)
    if sampling.steps not in (_USUAL.steps, steps):
        remedy = "Leave it out, or give OwnSampler other times."
        raise DiffESError("steps", expected=f"{steps}, as the loop takes", found=str(sampling.steps), remedy=remedy)
    return replace(sampling, steps=steps, guidance=1.0)
