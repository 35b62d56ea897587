"""Where pipelines come from: the bundled ones, a folder, a single file or the hub; and which Diff-ES can drive."""

from __future__ import annotations

import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from safetensors import SafetensorError, safe_open
from torch import nn

from .conditioning import FAMILIES, Asked, family_of
from .errors import DiffESError, UnsupportedModel, several
from .layers import adapted, check_groups, declared, lost, sequentially
from .pipeline import AnyPipeline, Denoiser, Pipeline, denoiser_name, denoiser_of, hushed
from .tiles import MODELS as BUNDLED

SUPPORTED = tuple(FAMILIES)
"""The pipeline classes that Diff-ES drives: those of text, of classes and of neither, that begin with noise."""
SCHEDULERS = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)


_CONFIGS: WeakKeyDictionary[Pipeline, str] = WeakKeyDictionary()  # of pipelines from single files


def load(
    model: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    scheduler: str | None = None,
    config: str | None = None,
) -> Pipeline:
    """A pipeline of ours, from a folder, a single ``.safetensors`` file of Stable Diffusion or SDXL, or a hub id.

    Args:
        model: what to load; ``"bundled"`` is our transformer, ``"bundled-unet"`` our U-Net.
        dtype: default float32 on the CPU, bfloat16 elsewhere.
        device: default CUDA, then MPS, then the CPU.
        scheduler: class name of one of ``SCHEDULERS`` to sample with; default the model's own.
        config: for a single file, the folder or hub id of a pipeline of the same shape, whose configurations and
            tokenizers are taken; default the original model's, from the hub.

    Raises:
        UnsupportedModel: nothing loads from there, its pipeline class is none that Diff-ES knows, or transformers is
            missing.
        DiffESError: PyTorch has no such device.
    """
    device = _device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    source = str(BUNDLED.get(model, model))
    kind = _kind_of_file(source) if source.endswith(".safetensors") else _kind_of_model(model, source)
    _check_class(model, kind)
    _check_text(kind)
    try:
        with hushed():
            if source.endswith(".safetensors"):
                loaded = getattr(diffusers, kind).from_single_file(source, config=config, dtype=dtype)
                loaded.register_to_config(_name_or_path=source)
            else:
                loaded = AnyPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        found = str(error).splitlines()[0]
        raise UnsupportedModel(model, expected="a diffusers pipeline", found=found, remedy=_PLACES) from error
    pipe: Pipeline = loaded
    if config is not None:
        _CONFIGS[pipe] = config
    if scheduler is not None:
        chosen = {known.__name__: known for known in SCHEDULERS}[scheduler]
        pipe.scheduler = chosen.from_config(pipe.scheduler.config)
    return check(pipe.to(device))


_PLACES = (
    "Give 'bundled' or 'bundled-unet', a folder with a model_index.json, a .safetensors file of Stable Diffusion or "
    "SDXL (offline with --config, a folder that holds its configurations), or the id of a hub repository (and check "
    "the network)."
)


def _kind_of_model(model: str, source: str) -> str:
    """The pipeline class that a folder or hub repository names."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        found = "no folder of that name, and hub ids look like owner/name"
        raise UnsupportedModel(model, expected="a diffusers pipeline", found=found, remedy=_PLACES)
    try:
        with warnings.catch_warnings():  # of how diffusers calls huggingface_hub
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
            config = AnyPipeline.load_config(source)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        found = str(error).splitlines()[0] if not Path(source).is_dir() else "a folder without a model_index.json"
        raise UnsupportedModel(model, expected="a diffusers pipeline", found=found, remedy=_PLACES) from error
    return str(config.get("_class_name")) if isinstance(config, dict) else "another kind of JSON"


def _kind_of_file(source: str) -> str:
    """The pipeline class of a checkpoint in the format of its authors, by the names of its tensors."""
    expected = "a checkpoint of Stable Diffusion or SDXL"
    try:
        with safe_open(source, "pt") as file:
            names, inputs = set(file.keys()), 4
            if _FIRST in names:
                inputs = file.get_slice(_FIRST).get_shape()[1]
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(source, expected=expected, found=str(error), remedy=_PLACES) from error
    starts = {".".join(name.split(".")[:3]) for name in names}
    remedy = "Convert it with diffusers and give the folder."
    if _FIRST not in names:
        found = f"no {_FIRST} among its {len(names)} tensors"
        raise UnsupportedModel(source, expected=expected, found=found, remedy=remedy)
    if inputs != 4:
        found = f"a denoiser of {inputs} input channels, as for inpainting"
        raise UnsupportedModel(source, expected=expected, found=found, remedy="Give the text-to-image checkpoint.")
    if "conditioner.embedders.1" in starts:
        return "StableDiffusionXLPipeline"
    if starts & {"cond_stage_model.transformer.text_model", "cond_stage_model.model.transformer"}:
        return "StableDiffusionPipeline"
    found = "a denoiser, but the text encoders of neither"
    raise UnsupportedModel(source, expected=expected, found=found, remedy=remedy)


_FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def _check_text(kind: str) -> None:
    if FAMILIES[kind].asked is Asked.PROMPTS and find_spec("transformers") is None:
        remedy = "pip install diff-es[text]"
        raise UnsupportedModel(kind, expected="transformers, for its text encoders", found="none", remedy=remedy)


def origin_of(pipe: Pipeline) -> dict[str, Any]:
    """Where a pipeline came from and how it samples, as JSON values for :func:`reopen`."""
    source = pipe.config.get("_name_or_path") or ""
    folder = Path(source)
    ours = next((name for name, place in BUNDLED.items() if place == folder), None)
    return {
        "model": ours or (str(folder.resolve()) if source and folder.exists() else source),
        "config": _CONFIGS.get(pipe),
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
    dtype = getattr(torch, origin["dtype"])
    pipe = load(model or origin["model"], dtype=dtype, device=device, config=origin.get("config"))
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
    if found not in SUPPORTED:
        remedy = "Convert the model to one of them, or wait for its kind."
        raise UnsupportedModel(where, expected="one of " + ", ".join(SUPPORTED), found=found, remedy=remedy)


def check(pipe: AnyPipeline) -> Pipeline:
    """The pipeline itself, if Diff-ES can drive it.

    Raises:
        UnsupportedModel: another pipeline class, two denoisers, sequential offload, adapters on the denoiser, or as
            :func:`check_denoiser`.
        DiffESError: group offloading that brings in copies of parameters.
    """
    if family_of(pipe) is None:
        _check_class("pipe", type(pipe).__name__)
    if sequentially(check_denoiser(pipe)):
        remedy = "Call pipe.remove_all_hooks(), and offload again to run a result; or take model or group offload."
        raise UnsupportedModel("pipe", expected="weights in memory", found="sequential offload", remedy=remedy)
    check_groups(denoiser_of(pipe))
    if wrapped := adapted(denoiser_of(pipe)):
        expected, found = "the model's own layers", f"adapters on {several(wrapped)}"
        remedy = "Unload them; or fuse them first (pipe.fuse_lora(), pipe.unload_lora_weights()) to keep what they add."
        raise UnsupportedModel(f"pipe.{denoiser_name(pipe)}", expected=expected, found=found, remedy=remedy)
    if pipe.components.get("transformer_2") is not None:
        remedy = "Wan 2.1 and Wan 2.2 5B have one denoiser; take one of them."
        raise UnsupportedModel("pipe", expected="one denoiser", found="transformer and transformer_2", remedy=remedy)
    return pipe


def check_denoiser(pipe: AnyPipeline | nn.Module) -> Denoiser:
    """The denoiser of a pipeline, if it can be routed: any pipeline will do, and a module that was declared.

    Raises:
        UnsupportedModel: there is none, it is wrapped, it has no weights, or it is in training mode.
    """
    if isinstance(pipe, nn.Module):
        return _check_weights("denoiser", _check_declared(pipe))
    name = denoiser_name(pipe)
    if name is None:
        found, remedy = ", ".join(pipe.components), "Give a diffusers pipeline that has one of them."
        raise UnsupportedModel("pipe", expected="a transformer or a unet", found=found, remedy=remedy)
    denoiser, where = denoiser_of(pipe), f"pipe.{name}"
    if not isinstance(denoiser, ModelMixin):
        found = type(denoiser).__name__
        remedy = "Put the model itself there. To compile it, call `compile()` on its blocks, which keeps them in place."
        raise UnsupportedModel(where, expected="a diffusers model", found=found, remedy=remedy)
    return _check_weights(where, denoiser)


def _check_declared(module: nn.Module) -> nn.Module:
    if declared(module) is None:
        expected, found = "a diffusers pipeline, or a denoiser that was declared", f"a {type(module).__name__}"
        remedy = "Call diff_es.layers.declare(module, ...) first, with what was declared when the result was made."
        raise UnsupportedModel("denoiser", expected=expected, found=found, remedy=remedy)
    return module


def _check_weights(where: str, denoiser: nn.Module) -> nn.Module:
    if denoiser.training:
        found = "training mode, in which labels and activations are dropped at random"
        raise UnsupportedModel(where, expected="evaluation mode", found=found, remedy=f"Call {where}.eval() first.")
    if missing := lost(denoiser):
        found, remedy = f"{missing[0]} on the meta device", "Load it with its weights, or offload it as diffusers does."
        raise UnsupportedModel(where, expected="weights in memory", found=found, remedy=remedy)
    return denoiser
