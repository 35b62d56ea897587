"""Where pipelines come from: the bundled one, a folder or the hub; and which of them Diff-ES can drive."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from .errors import DiffESError, UnsupportedModel
from .pipeline import AnyPipeline, Pipeline, denoiser_of, hushed
from .tiles import MODEL as BUNDLED

SUPPORTED = (DiTPipeline,)
SCHEDULERS = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)


def load(
    model: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    scheduler: str | None = None,
) -> Pipeline:
    """A pipeline from ``"bundled"``, a folder, or a hub id.

    Args:
        model: what to load.
        dtype: default float32 on the CPU, bfloat16 elsewhere.
        device: default CUDA, then MPS, then the CPU.
        scheduler: class name of one of ``SCHEDULERS`` to sample with; default the model's own.

    Raises:
        UnsupportedModel: nothing loads from there, or its pipeline class is none that Diff-ES knows.
        DiffESError: PyTorch has no such device.
    """
    device = _device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    source = str(BUNDLED) if model == "bundled" else model
    remedy = "Give 'bundled', a folder with a model_index.json, or the id of a hub repository (and check the network)."
    expected = "a diffusers pipeline"
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        found = "no folder of that name, and hub ids look like owner/name"
        raise UnsupportedModel(model, expected=expected, found=found, remedy=remedy)
    try:
        with warnings.catch_warnings():  # of how diffusers calls huggingface_hub
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
            config = AnyPipeline.load_config(source)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        found = str(error).splitlines()[0] if not Path(source).is_dir() else "a folder without a model_index.json"
        raise UnsupportedModel(model, expected=expected, found=found, remedy=remedy) from error
    _check_class(model, str(config.get("_class_name")) if isinstance(config, dict) else "another kind of JSON")
    try:
        with hushed():
            pipe = AnyPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnsupportedModel(model, expected=expected, found=str(error).splitlines()[0], remedy=remedy) from error
    if scheduler is not None:
        kind = {known.__name__: known for known in SCHEDULERS}[scheduler]
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return check(pipe.to(device))


def origin_of(pipe: Pipeline) -> dict[str, Any]:
    """Where a pipeline came from and how it samples, as JSON values for :func:`reopen`."""
    source = pipe.config.get("_name_or_path") or ""
    folder = Path(source)
    return {
        "model": "bundled" if folder == BUNDLED else str(folder.resolve()) if source and folder.is_dir() else source,
        "dtype": str(denoiser_of(pipe).dtype).removeprefix("torch."),
        "scheduler": {"_class_name": type(pipe.scheduler).__name__, **json.loads(pipe.scheduler.to_json_string())},
    }


def reopen(origin: dict[str, Any], model: str | None = None, device: str | None = None) -> Pipeline:
    """The pipeline of :func:`origin_of`, from its old place or from ``model``, with its sampler.

    Raises:
        UnsupportedModel: it does not load, or its sampler is none of diffusers'.
    """
    if not (model or origin["model"]):
        remedy = "Say where it is: --model."
        raise UnsupportedModel("base model", expected="a place to load it from", found="none", remedy=remedy)
    pipe = load(model or origin["model"], dtype=getattr(torch, origin["dtype"]), device=device)
    name = origin["scheduler"]["_class_name"]
    kind: Any = vars(diffusers.schedulers).get(name)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        remedy = "Use it from Python: load the pipeline with its own scheduler."
        raise UnsupportedModel("scheduler", expected="a class of diffusers", found=str(name), remedy=remedy)
    pipe.scheduler = getattr(diffusers, name).from_config(origin["scheduler"])
    return pipe


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        return default_device()
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        remedy = "Give one that this PyTorch has, such as cpu, or leave --device out."
        found = str(error).splitlines()[0]
        raise DiffESError(f"device {wanted}", expected="a working device", found=found, remedy=remedy) from error
    return device


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check_class(where: str, found: str) -> None:
    names = [kind.__name__ for kind in SUPPORTED]
    if found not in names:
        remedy = "This version prunes class-conditional DiT pipelines; convert the model or wait for its kind."
        raise UnsupportedModel(where, expected=" or ".join(names), found=found, remedy=remedy)


def check(pipe: AnyPipeline) -> Pipeline:
    """The pipeline itself, if Diff-ES can drive it.

    Raises:
        UnsupportedModel: another pipeline class, or a denoiser in training mode.
    """
    if not isinstance(pipe, SUPPORTED):
        _check_class("pipe", type(pipe).__name__)
    if not isinstance(pipe.transformer, ModelMixin):
        found = type(pipe.transformer).__name__
        remedy = "Put the model itself there. To compile it, call `compile()` on its blocks, which keeps them in place."
        raise UnsupportedModel("pipe.transformer", expected="a diffusers model", found=found, remedy=remedy)
    if pipe.transformer.training:
        found, remedy = "training mode, in which labels are dropped at random", "Call pipe.transformer.eval() first."
        raise UnsupportedModel("pipe.transformer", expected="evaluation mode", found=found, remedy=remedy)
    return pipe
