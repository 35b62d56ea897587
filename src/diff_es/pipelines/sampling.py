"""The boundary to diffusers: sampling on fixed probes through the pipeline's own call, and hearing its timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from itertools import cycle, islice
from types import FunctionType, MethodType
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..utils.patching import exchanged
from .families import Denoiser, Pipeline, Sampling, call_arguments, family_of
from .own_sampler import OwnSampler
from .probes import Probe
from .quiet import hushed


class DiffusersPipeline(Protocol):
    """A pipeline of diffusers, as far as those who bring one are concerned; ``supported.check`` sees to the rest."""

    @property
    def components(self) -> dict[str, Any]: ...


AnyPipeline: TypeAlias = DiffusersPipeline | OwnSampler  # what a user may bring


def denoiser_name(pipe: Pipeline) -> str | None:
    """The part of a pipeline that is pruned; None where it has none."""
    return next((name for name in ("transformer", "unet") if name in pipe.components), None)


def denoiser_of(pipe: Pipeline) -> Denoiser:
    """What is pruned: ``pipe.transformer``, ``pipe.unet``, or what a loop of the user's own samples with."""
    if isinstance(pipe, OwnSampler):
        return pipe.denoiser
    return pipe.components[denoiser_name(pipe)]


def with_denoiser(pipe: Pipeline, denoiser: Denoiser) -> Pipeline:
    """A pipeline of the same parts and options but for the denoiser; saved, it keeps the names of the classes."""
    taken = inspect.signature(type(pipe).__init__).parameters
    options = {name: value for name, value in pipe.config.items() if name in taken and name not in pipe.components}
    if "id2label" not in taken:
        with hushed():
            return type(pipe)(**{**pipe.components, **options, denoiser_name(pipe): denoiser})
    names = dict[str, list[str]]()
    for name, number in pipe.labels.items():
        names.setdefault(str(number), []).append(name)
    labels = {number: ", ".join(alike) for number, alike in names.items()}
    other: Pipeline = type(pipe)(denoiser, pipe.vae, pipe.scheduler, id2label=labels or None)
    if labels:
        other.register_to_config(id2label=labels)
    return other


def settled(pipe: Pipeline) -> type[Pipeline]:
    """The class of a pipeline that stays where it is, which knows its device: diffusers looks through all modules for
    it, in some pipelines several times a call."""
    if isinstance(pipe, OwnSampler):
        return type(pipe)
    kind = type(pipe)
    known = {"__module__": kind.__module__, "_execution_device": pipe._execution_device}
    return type(kind.__name__, (kind,), known)


def sampler_name(pipe: AnyPipeline) -> str:
    """What samples, for a reader."""
    if not isinstance(pipe, OwnSampler):
        return type(pipe.components["scheduler"]).__name__
    sample = pipe.sample
    while isinstance(sample, partial):
        sample = sample.func
    return sample.__qualname__ if isinstance(sample, FunctionType | MethodType) else type(sample).__name__


@contextmanager
def of_class(pipe: Pipeline, kind: type[Pipeline]) -> Iterator[None]:
    """With a pipeline of another class; the end restores its own."""
    own = type(pipe)
    if own is kind:
        yield
        return
    pipe.__class__ = kind
    try:
        yield
    finally:
        pipe.__class__ = own


@contextmanager
def intercepted(denoiser: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Run with ``wrap(forward)`` in place of the denoiser's forward; what was there before comes back at the end."""
    with exchanged(denoiser, "forward", torch.compiler.disable(wrap(denoiser.forward))):
        yield


@contextmanager
def _latents_only(pipe: Pipeline, captured: list[Tensor]) -> Iterator[None]:
    """No pipeline gives its latents as the decoder receives them: the decoder is made to keep what it is given, and
    hands back a small blank image, which no safety checker sees."""
    parts = vars(pipe)
    checker = parts.get("safety_checker")

    def keep(latents: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        captured.append(latents)
        blank = latents.new_zeros(len(latents), 3, *latents.shape[2:-2], 8, 8)
        return _Decoded(blank) if return_dict else (blank,)

    if checker is not None:
        parts["safety_checker"] = None  # not by setattr, which would write it into the configuration
    try:
        with exchanged(pipe.vae, "decode", keep):
            yield
    finally:
        if checker is not None:
            parts["safety_checker"] = checker


@dataclass(frozen=True)
class _Decoded:
    sample: Tensor


def sample(pipe: Pipeline, probes: Sequence[Probe], sampling: Sampling) -> Tensor:
    """Final latents of the probes as the decoder receives them, through the pipeline's own call: (N, C, H, W), of
    videos (N, C, F, H, W). A pipeline without a decoder gives its images in [-1, 1].

    Every sample has its own generator, of which come its first noise and what samplers add on the way: neither depends
    on the batch that it runs in. The few samplers that take no generator (a flow's Euler steps with
    ``stochastic_sampling``) draw for the batch, reproducibly.

    Raises:
        DiffESError: the sampling asks for something that this pipeline does not take.
    """
    if isinstance(pipe, OwnSampler):
        seeds, conditions = [probe.seed for probe in probes], [probe.condition for probe in probes]
        return pipe.latents(seeds, conditions, sampling.num_inference_steps, sampling.batch)
    results = list[Tensor]()
    with (
        hushed(),
        exchanged(pipe, "_progress_bar_config", {"disable": True}),
        torch.random.fork_rng(_cuda(denoiser_of(pipe))),
    ):
        for start in range(0, len(probes), sampling.batch):
            part = probes[start : start + sampling.batch]
            _seed(part[0].seed)  # for samplers that add noise and take no generator
            generators = [torch.Generator().manual_seed(probe.seed) for probe in part]
            call = call_arguments(pipe, [probe.condition for probe in part], sampling)
            call |= {"num_inference_steps": sampling.steps, "generator": generators, "output_type": "pt"}
            with _noise_of_each(pipe, generators):
                if "vae" not in pipe.components:
                    results.append(pipe(**call).images * 2 - 1)
                    continue
                with _latents_only(pipe, results):
                    pipe(**call)
    return torch.cat(results)


@contextmanager
def _noise_of_each(pipe: Pipeline, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """What the scheduler adds to a sample comes from the sample's own generator; many pipelines give it none. Where
    guidance runs in one batch with the rest, its half takes what comes next of the same generators."""
    step = pipe.scheduler.step
    if "generator" not in inspect.signature(step).parameters:
        yield
        return

    @wraps(step)
    def own(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("generator") is None:
            kwargs["generator"] = list(islice(cycle(generators), len(output)))
        return step(output, *args, **kwargs)

    with exchanged(pipe.scheduler, "step", own):
        yield


def _seed(seed: int) -> None:
    """As ``torch.manual_seed``, which at each call keeps a stack trace for accelerators, even where there is none."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _cuda(denoiser: Denoiser) -> list[torch.device | int]:
    """The CUDA device whose random state a run changes; an offloaded denoiser waits elsewhere."""
    if not torch.cuda.is_initialized():
        return []
    return [denoiser.device if denoiser.device.type == "cuda" else torch.cuda.current_device()]


@torch.no_grad()
def decode(pipe: Pipeline, latents: Tensor, batch: int = 16) -> Tensor:
    """Images in [0, 1], float32 on the CPU, (N, 3, H, W), of videos (N, 3, F, H, W), of what :func:`sample` returned;
    of a pipeline in pixels whose images are grey, the same three times.

    They are what the pipeline itself gives, before one that rounds the size asked for crops them to it.
    """
    if isinstance(pipe, OwnSampler):
        return pipe.images(latents, batch)
    if "vae" not in pipe.components:
        pixels = (latents / 2 + 0.5).clamp(0, 1).float().cpu()
        return pixels.repeat(1, 3, 1, 1) if pixels.shape[1] == 1 else pixels
    vae, own = pipe.vae, pipe.vae.dtype
    if own != latents.dtype:  # as SDXL does with a decoder that overflows in half precision
        nn.Module.to(vae, dtype=latents.dtype)
    try:
        images = [vae.decode(part, *_decoder_times(pipe, part)).sample / 2 + 0.5 for part in latents.split(batch)]
    finally:
        if vae.dtype != own:
            nn.Module.to(vae, dtype=own)
    decoded = torch.cat([part.clamp(0, 1).float().cpu() for part in images])
    family = family_of(pipe)
    image = family is not None and not family.frames  # a video of one frame to the decoder of Qwen-Image
    return decoded[:, :, 0] if decoded.dim() == 5 and image else decoded


def _decoder_times(pipe: Pipeline, latents: Tensor) -> tuple[Tensor, ...]:
    """The decoder of LTX-Video may take a timestep, by default 0."""
    timed = pipe.vae.config.get("timestep_conditioning", False)
    return (latents.new_zeros(len(latents)),) if timed else ()
