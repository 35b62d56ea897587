"""The boundary to diffusers: opening pipelines, sampling with them on fixed noises, hearing their timesteps."""

from .families import Sampling
from .loading import load
from .own_sampler import OwnSampler
from .probes import Probe, make_probes
from .sampling import decode, denoiser_of, sample

__all__ = ["OwnSampler", "Probe", "Sampling", "decode", "denoiser_of", "load", "make_probes", "sample"]
