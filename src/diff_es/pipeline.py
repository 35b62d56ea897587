"""The boundary to diffusers: sampling on fixed probes through the pipeline's own call, and hearing its timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, DiTPipeline, ModelMixin
from diffusers.utils import logging
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from .errors import DiffESError
from .rng import derive_seed

Pipeline: TypeAlias = DiTPipeline  # what Diff-ES can drive
AnyPipeline: TypeAlias = DiffusionPipeline  # what a user may bring
Denoiser: TypeAlias = ModelMixin  # what is pruned


@dataclass(frozen=True)
class Sampling:
    """The user's own setting, which everything is calibrated on and judged at."""

    steps: int = 50
    guidance: float = 4.0
    batch: int = 16  # samples per pipeline call; guidance doubles it inside

    def __post_init__(self) -> None:
        for name, value, least in (("steps", self.steps, 1), ("batch", self.batch, 1), ("guidance", self.guidance, 0)):
            if not least <= value < float("inf"):
                remedy = "Give the value you sample with."
                raise DiffESError(name, expected=f"a number from {least} up", found=str(value), remedy=remedy)


@dataclass(frozen=True)
class Probe:
    """A fixed noise and class on which the dense model and a candidate are compared."""

    seed: int
    label: int


@dataclass(frozen=True)
class Trace:
    """One trajectory without its arithmetic: the timesteps the denoiser receives, its first call on the meta device."""

    timesteps: tuple[float, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def denoiser_of(pipe: Pipeline) -> Denoiser:
    """What is pruned."""
    return pipe.transformer


def meta_twin(denoiser: Denoiser) -> Denoiser:
    """The same architecture without weights, on the meta device."""
    with hushed(), torch.device("meta"):
        twin: Denoiser = type(denoiser).from_config(denoiser.config)
    nn.Module.to(twin, device="meta", dtype=denoiser.dtype)
    return twin.eval()


def with_denoiser(pipe: Pipeline, denoiser: Denoiser) -> Pipeline:
    """A pipeline of the same parts but for the denoiser; saved, it keeps the names of the classes."""
    names = dict[str, list[str]]()
    for name, number in pipe.labels.items():
        names.setdefault(str(number), []).append(name)
    labels = {number: ", ".join(alike) for number, alike in names.items()}
    other: Pipeline = type(pipe)(denoiser, pipe.vae, pipe.scheduler, id2label=labels or None)
    if labels:
        other.register_to_config(id2label=labels)
    return other


def classes_of(pipe: Pipeline) -> tuple[int, ...]:
    """The classes one can ask for: those with a name, or all that the embedding has."""
    named = sorted(set(pipe.labels.values()))
    return tuple(named or range(pipe.transformer.config.num_embeds_ada_norm))


def make_probes(pipe: Pipeline, count: int, seed: int, purpose: str) -> tuple[Probe, ...]:
    """``count`` probes; the classes are dealt round robin over the named ones, or drawn where there are more.

    Probes of different purposes never share a noise; the first n of a larger set are the set of size n.
    """
    classes = classes_of(pipe)
    probes = []
    for i in range(count):
        draw = derive_seed(seed, purpose, i)
        label = classes[i % len(classes)] if len(classes) <= 32 else classes[draw % len(classes)]
        probes.append(Probe(draw, label))
    return tuple(probes)


@contextmanager
def hushed() -> Iterator[None]:
    """Without diffusers' bars, and its remarks on parts that are merely of another class than it expects."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def intercepted(denoiser: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Run with ``wrap(forward)`` in place of the denoiser's forward; what was there before comes back at the end."""
    before, forward = vars(denoiser).get("forward"), denoiser.forward
    denoiser.forward = torch.compiler.disable(wrap(forward))
    try:
        yield
    finally:
        if before is None:
            del denoiser.forward
        else:
            denoiser.forward = before


@contextmanager
def _latents_only(pipe: Pipeline, captured: list[Tensor]) -> Iterator[None]:
    """DiTPipeline has no latent output: its decoder is made to keep what it is given and hand it back."""
    before, config = vars(pipe.vae).get("decode"), vars(pipe).get("_progress_bar_config")

    def keep(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        captured.append(latents)
        return _Decoded(latents)

    pipe.vae.decode = keep
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is None:
            del pipe.vae.decode
        else:
            pipe.vae.decode = before
        if config is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = config


@dataclass(frozen=True)
class _Decoded:
    sample: Tensor


def sample(pipe: Pipeline, probes: Sequence[Probe], sampling: Sampling) -> Tensor:
    """Final latents of the probes, (N, C, H, W) as the decoder receives them, through the pipeline's own call.

    Every sample has its own generator, so a probe's first noise does not depend on the batch it runs in. Samplers that
    add noise on the way draw it for the batch, reproducibly, but not independently of the batch.
    """
    captured, device = list[Tensor](), denoiser_of(pipe).device
    with _latents_only(pipe, captured), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for start in range(0, len(probes), sampling.batch):
            part = probes[start : start + sampling.batch]
            torch.manual_seed(part[0].seed)  # for samplers that add noise: the pipeline gives them no generator
            pipe(
                class_labels=[probe.label for probe in part],
                guidance_scale=sampling.guidance,
                num_inference_steps=sampling.steps,
                generator=[torch.Generator().manual_seed(probe.seed) for probe in part],
                output_type="pt",
            )
    return torch.cat(captured)


@torch.no_grad()
def decode(pipe: Pipeline, latents: Tensor, batch: int = 16) -> Tensor:
    """Images in [0, 1], float32 on the CPU (N, 3, H, W), of latents that :func:`sample` returned."""
    images = [pipe.vae.decode(part).sample / 2 + 0.5 for part in latents.split(batch)]
    return torch.cat([part.clamp(0, 1).float().cpu() for part in images])


def on_timestep(denoiser: nn.Module, call: Callable[[float], None]) -> RemovableHandle:
    """Call ``call(timestep)`` before every forward of the denoiser; reading it is the only host sync of a call."""
    position = list(inspect.signature(type(denoiser).forward).parameters).index("timestep") - 1

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = kwargs["timestep"] if "timestep" in kwargs else args[position]
        call(float(value.reshape(-1)[0]) if isinstance(value, Tensor) else float(value))

    return denoiser.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True)


class _Caught(Exception):
    """Carries the arguments of a call out of the pipeline that makes it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = (args, kwargs)


def first_call(pipe: Pipeline, sampling: Sampling) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the first denoiser call of a batch, without running the denoiser."""

    def catch(forward: Callable[..., Any]) -> Callable[..., Any]:
        def raise_it(*args: Any, **kwargs: Any) -> Any:
            raise _Caught(args, kwargs)

        return raise_it

    try:
        with intercepted(denoiser_of(pipe), catch):
            sample(pipe, make_probes(pipe, sampling.batch, 0, "trace"), sampling)
    except _Caught as caught:
        return caught.call
    raise AssertionError("the pipeline ended without calling its denoiser")


def trace(pipe: Pipeline, sampling: Sampling) -> Trace:
    """The timesteps of a trajectory and the shapes of a denoiser call, without running the denoiser.

    Raises:
        DiffESError: the scheduler refuses this number of steps.
    """
    denoiser, timesteps, calls = denoiser_of(pipe), list[float](), list[tuple[tuple[Any, ...], dict[str, Any]]]()
    device, outputs = denoiser.device, list[Any]()

    def shapes_only(forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if not outputs:
                args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
                calls.append((args, kwargs))
                outputs.append(meta_twin(denoiser)(*args, **kwargs))
            return tree_map_only(Tensor, lambda t: torch.zeros_like(t, device=device), outputs[0])

        return stand_in

    handle = on_timestep(denoiser, timesteps.append)
    try:
        with intercepted(denoiser, shapes_only):
            sample(pipe, make_probes(pipe, 1, 0, "trace"), sampling)
    except (ValueError, IndexError) as error:
        where = f"{sampling.steps} steps with {type(pipe.scheduler).__name__}"
        remedy = "Take another number of steps, or another scheduler."
        raise DiffESError(where, expected="a trajectory", found=str(error), remedy=remedy) from error
    finally:
        handle.remove()
    args, kwargs = calls[0]
    return Trace(tuple(timesteps), args, kwargs)
