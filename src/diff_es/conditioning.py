"""What pipelines are asked for: a class, a prompt or nothing, with the user's guidance; and prompts encoded once."""

from __future__ import annotations

import inspect
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .arguments import Text, checked
from .errors import DiffESError
from .exchange import exchanged
from .limits import Batch, Frames, Guidance, Pixels, Steps
from .own_sampler import OwnSampler
from .rng import derive_seed

Pipeline: TypeAlias = DiffusionPipeline  # what Diff-ES can drive
Denoiser: TypeAlias = ModelMixin  # what is pruned
Condition: TypeAlias = int | str | None  # a class, a prompt, or nothing


class Asked(Enum):
    """What a pipeline is asked for."""

    CLASSES = "classes"
    PROMPTS = "prompts"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class are called."""

    asked: Asked
    sized: bool = True  # whether height and width can be asked for
    frames: bool = False  # and a number of frames
    distilled: bool = False  # guidance may be an input of the denoiser; otherwise it takes a negative prompt


FAMILIES: dict[str, Family] = {
    "DiTPipeline": Family(Asked.CLASSES, sized=False),
    "StableDiffusionPipeline": Family(Asked.PROMPTS),
    "StableDiffusionXLPipeline": Family(Asked.PROMPTS),
    "StableDiffusion3Pipeline": Family(Asked.PROMPTS),
    "FluxPipeline": Family(Asked.PROMPTS, distilled=True),
    "PixArtAlphaPipeline": Family(Asked.PROMPTS),
    "PixArtSigmaPipeline": Family(Asked.PROMPTS),
    "SanaPipeline": Family(Asked.PROMPTS),
    "QwenImagePipeline": Family(Asked.PROMPTS, distilled=True),
    "WanPipeline": Family(Asked.PROMPTS, frames=True),
    "LTXPipeline": Family(Asked.PROMPTS, frames=True),
    "DDPMPipeline": Family(Asked.NOTHING, sized=False),
    "DDIMPipeline": Family(Asked.NOTHING, sized=False),
}
"""By the class's name, so that none of them is imported, with all that it needs, unless it is used."""


@checked("")
@dataclass(frozen=True)
class Sampling:
    """The user's own setting, which everything is calibrated on and judged at, in the words of diffusers.

    Args:
        num_inference_steps: of the sampler; None: the default of the pipeline's own call.
        guidance_scale: as the pipeline understands it; None: the default of its own call. Where the denoiser was
            distilled to take it as an input (FLUX.1-dev), it is that input; QwenImagePipeline, and FluxPipeline with
            another denoiser, guide only away from a negative prompt, which " " is too.
        batch: samples per pipeline call; guidance doubles it inside.
        negative_prompt: what guidance leads away from; None: what the pipeline takes of its own.
        height, width: in pixels; None: the pipeline's own.
        num_frames: of a video; None: the pipeline's own.
    """

    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    batch: Batch = 16
    negative_prompt: Text | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    num_frames: Frames | None = None

    def of(self, pipe: Pipeline) -> Sampling:
        """With the defaults of a pipeline's own call for what is not said.

        Raises:
            DiffESError: its call has no default number of steps.
        """
        taken, family = inspect.signature(type(pipe).__call__).parameters, family_of(pipe)
        guided = "guidance_scale"
        if family is not None and family.distilled and not pipe.transformer.config.guidance_embeds:
            guided = "true_cfg_scale"
        steps, guidance = self.num_inference_steps, self.guidance_scale
        if steps is None and "num_inference_steps" in taken:
            steps = taken["num_inference_steps"].default
        if guidance is None:
            guidance = float(taken[guided].default) if guided in taken else 1.0
        if not isinstance(steps, int):
            remedy = "Say it: Sampling(num_inference_steps=...)."
            raise DiffESError("sampling", expected="a number of steps", found="none", remedy=remedy)
        return replace(self, num_inference_steps=steps, guidance_scale=guidance)

    @property
    def steps(self) -> int:
        """``num_inference_steps``, once it is known (:meth:`of`)."""
        if self.num_inference_steps is None:
            remedy = "Say it: Sampling(num_inference_steps=...)."
            raise DiffESError("sampling", expected="a number of steps", found="none", remedy=remedy)
        return self.num_inference_steps

    @property
    def guidance(self) -> float:
        """``guidance_scale``, once it is known (:meth:`of`)."""
        if self.guidance_scale is None:
            remedy = "Say it: Sampling(guidance_scale=...)."
            raise DiffESError("sampling", expected="a guidance scale", found="none", remedy=remedy)
        return self.guidance_scale


@dataclass(frozen=True)
class Probe:
    """A fixed noise and class or prompt on which the dense model and a candidate are compared."""

    seed: int
    condition: Condition


def family_of(pipe: Pipeline) -> Family | None:
    """How a pipeline is called; None where Diff-ES does not know its class."""
    return next((FAMILIES[kind.__name__] for kind in type(pipe).__mro__ if kind.__name__ in FAMILIES), None)


def classes_of(pipe: Pipeline) -> tuple[int, ...]:
    """The classes one can ask for: those with a name, or all that the embedding has."""
    named = sorted(set(pipe.labels.values()))
    return tuple(named or range(pipe.transformer.config.num_embeds_ada_norm))


@cache
def bundled_prompts() -> tuple[str, ...]:
    """The prompts that text pipelines are calibrated and judged on unless they bring their own or others are given."""
    return read_prompts(Path(__file__).with_name("prompts.txt"))


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file in UTF-8, one on each line; empty lines are none, nor is a byte-order mark.

    Raises:
        DiffESError: the file cannot be read, is in another encoding, or holds no prompt.
    """
    expected = "prompts, one on each line"
    try:
        lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        found, remedy = str(error), "Give a text file in UTF-8."
        raise DiffESError(str(file), expected=expected, found=found, remedy=remedy) from error
    prompts = tuple(filter(None, (_prompt(file, number, line) for number, line in enumerate(lines, 1))))
    if not prompts:
        raise DiffESError(str(file), expected=expected, found="none", remedy="Write some into it.")
    return prompts


def _prompt(file: Path, number: int, line: bytes) -> str:
    try:
        if b"\0" in line:  # as text in UTF-16 has them
            raise ValueError("a zero byte")
        return line.decode("utf-8").strip()
    except ValueError as error:
        found, remedy = f"another encoding: {error}", "Save the file as UTF-8."
        raise DiffESError(f"{file}, line {number}", expected="text in UTF-8", found=found, remedy=remedy) from error


def own_prompts(pipe: Pipeline) -> tuple[str, ...]:
    """Those of the ``prompts.txt`` in the folder that a pipeline was loaded from, else the bundled ones."""
    source = pipe.config.get("_name_or_path")
    file = Path(source, "prompts.txt") if source else None
    return read_prompts(file) if file is not None and file.is_file() else bundled_prompts()


def conditions_of(pipe: Pipeline, prompts: Sequence[str] | None = None) -> tuple[Condition, ...]:
    """What can be asked of a pipeline: its classes, ``prompts`` (None: :func:`own_prompts`), or nothing.

    Raises:
        DiffESError: prompts for a pipeline that takes none, or an empty list of them.
    """
    family = family_of(pipe)
    if family is not None and family.asked is Asked.PROMPTS:
        if prompts is not None and not prompts:
            raise DiffESError("prompts", expected="at least one", found="none", remedy="Leave them out for ours.")
        return tuple(own_prompts(pipe) if prompts is None else prompts)
    if isinstance(pipe, OwnSampler) and prompts is None:
        return tuple(pipe.conditions) or (None,)
    if prompts is not None:
        found, remedy = f"{len(prompts)} for a {type(pipe).__name__}", "Leave them out."
        raise DiffESError("prompts", expected="none for a pipeline without text", found=found, remedy=remedy)
    return (None,) if family is not None and family.asked is Asked.NOTHING else classes_of(pipe)


def make_probes(
    pipe: Pipeline, count: int, seed: int, purpose: str, prompts: Sequence[str] | None = None
) -> tuple[Probe, ...]:
    """``count`` probes; classes or prompts are dealt round robin, or drawn where there are more than 32.

    Probes of different purposes never share a noise; the first n of a larger set are the set of size n. Raises as
    :func:`conditions_of` does.
    """
    conditions, probes = conditions_of(pipe, prompts), list[Probe]()
    for i in range(count):
        draw = derive_seed(seed, purpose, i)
        index = i if len(conditions) <= 32 else draw
        probes.append(Probe(draw, conditions[index % len(conditions)]))
    return tuple(probes)


def call_arguments(pipe: Pipeline, conditions: Sequence[Condition], sampling: Sampling) -> dict[str, Any]:
    """What a pipeline is called with for a batch, besides steps, generators and the kind of output.

    Raises:
        DiffESError: the sampling asks for something that this pipeline does not take.
    """
    family = family_of(pipe)
    assert family is not None, "checked before anything runs"
    _check_asked(pipe, family, sampling)
    if family.asked is Asked.NOTHING:
        return {"batch_size": len(conditions)}
    if family.asked is Asked.CLASSES:
        return {"class_labels": list(conditions), "guidance_scale": sampling.guidance}
    given: dict[str, Any] = {"prompt": list(conditions)}
    if sampling.negative_prompt is not None:
        given["negative_prompt"] = [sampling.negative_prompt] * len(conditions)
    if not family.distilled or pipe.transformer.config.guidance_embeds:
        given["guidance_scale"] = sampling.guidance
    elif sampling.negative_prompt is not None:
        given["true_cfg_scale"] = sampling.guidance
    sizes = {"height": sampling.height, "width": sampling.width, "num_frames": sampling.num_frames}
    return given | {name: size for name, size in sizes.items() if size is not None}


def _check_asked(pipe: Pipeline, family: Family, sampling: Sampling) -> None:
    trained = pipe.scheduler.config.get("num_train_timesteps", sampling.steps)
    if sampling.steps > trained:
        expected = f"at most {trained}, the timesteps of {type(pipe.scheduler).__name__}"
        raise DiffESError(
            "num_inference_steps", expected=expected, found=str(sampling.steps), remedy="Take fewer steps."
        )
    name, remedy = type(pipe).__name__, "Leave it out."
    text = family.asked is Asked.PROMPTS
    for value, takes, what in (
        (sampling.negative_prompt, text, "negative_prompt"),
        (sampling.height, family.sized, "height"),
        (sampling.width, family.sized, "width"),
        (sampling.num_frames, family.frames, "num_frames"),
    ):
        if value is not None and not takes:
            raise DiffESError(what, expected=f"none for a {name}", found=repr(value), remedy=remedy)
    if text and family.distilled and pipe.transformer.config.guidance_embeds and sampling.negative_prompt is not None:
        expected = "none: guidance is an input of this denoiser"
        raise DiffESError("negative_prompt", expected=expected, found=repr(sampling.negative_prompt), remedy=remedy)


class Encodings:
    """Encoded prompts by what was asked for, held on the CPU."""

    def __init__(self) -> None:
        self._held = dict[Any, Any]()

    def fetch(self, encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``encode(*args, **kwargs)`` gives, run the first time only."""
        key = _key((args, kwargs))
        if key not in self._held:
            output = encode(*args, **kwargs)
            self._held[key] = tree_map_only(Tensor, lambda t: (t.device, t.cpu()), output)
            return output
        return _returned(self._held[key])


def _key(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_key(entry) for entry in value)
    if isinstance(value, dict):
        return tuple((name, _key(entry)) for name, entry in sorted(value.items()))
    return value


def _returned(held: Any) -> Any:
    if isinstance(held, tuple) and len(held) == 2 and isinstance(held[0], torch.device):
        return held[1].to(held[0])
    return type(held)(_returned(entry) for entry in held) if isinstance(held, list | tuple) else held


@contextmanager
def encoded_once(pipe: Pipeline, encodings: Encodings) -> Iterator[None]:
    """Let a text pipeline take prompts that it encoded before from ``encodings``; it must not change meanwhile."""
    family = family_of(pipe)
    if family is None or family.asked is not Asked.PROMPTS:
        yield
        return
    encode = pipe.encode_prompt
    with exchanged(pipe, "encode_prompt", lambda *args, **kwargs: encodings.fetch(encode, args, kwargs)):
        yield
