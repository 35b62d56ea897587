"""How the pipelines of each class are called: with a class, a prompt or nothing, and with the user's own setting."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from diffusers import DiffusionPipeline, ModelMixin

from ..utils.arguments import Text, checked
from ..utils.calls import Kwargs
from ..utils.errors import DiffESError
from ..utils.limits import Batch, Frames, Guidance, Pixels, Steps

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
    both: bool = False  # one without the other is taken for none
    frames: bool = False  # and a number of frames
    distilled: bool = False  # guidance may be an input of the denoiser; otherwise it takes a negative prompt


FAMILIES: dict[str, Family] = {
    "DiTPipeline": Family(Asked.CLASSES, sized=False),
    "StableDiffusionPipeline": Family(Asked.PROMPTS, both=True),
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


def family_of(pipe: Pipeline) -> Family | None:
    """How a pipeline is called; None where Diff-ES does not know its class."""
    return next((FAMILIES[kind.__name__] for kind in type(pipe).__mro__ if kind.__name__ in FAMILIES), None)


def classes_of(pipe: Pipeline) -> tuple[int, ...]:
    """The classes one can ask for: those with a name, or all that the embedding has."""
    named = sorted(set(pipe.labels.values()))
    return tuple(named or range(pipe.transformer.config.num_embeds_ada_norm))


def call_arguments(pipe: Pipeline, conditions: Sequence[Condition], sampling: Sampling) -> Kwargs:
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
    given: Kwargs = {"prompt": list(conditions)}
    if sampling.negative_prompt is not None:
        given["negative_prompt"] = [sampling.negative_prompt] * len(conditions)
    if not family.distilled or pipe.transformer.config.guidance_embeds:
        given["guidance_scale"] = sampling.guidance
    elif sampling.negative_prompt is not None:
        given["true_cfg_scale"] = sampling.guidance
    sizes = {"height": sampling.height, "width": sampling.width, "num_frames": sampling.num_frames}
    said = {name: size for name, size in sizes.items() if size is not None}
    if family.both and said:
        said = dict(zip(("height", "width"), _usual_size(pipe), strict=True)) | said
    return given | said


def _usual_size(pipe: Pipeline) -> tuple[int, int]:
    """Height and width in pixels that the denoiser was trained on."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


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
