"""Where pipelines come from: the bundled ones, a folder, a single file or the hub; and which Diff-ES can drive."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
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
from torch import nn

from .bundled_models import MODELS as BUNDLED
from .checkpoint import bounded, check_filled, check_folder, load_part
from .conditioning import FAMILIES, Asked, classes_of, family_of
from .errors import DiffESError, UnsupportedModel, several
from .hub import PLACES, fetched, hub_out_of_reach
from .layers import adapted, check_groups, declared, image_adapters, lost, sequentially, stored_otherwise
from .model_index import AGAIN, INDEX, attempted, check_class_names, class_of, parts_of, read_json
from .origin import Origin
from .pipeline import AnyPipeline, Denoiser, Pipeline, denoiser_name, denoiser_of, hushed
from .single_file import kind_of_file

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
    with hushed():
        single = source.endswith(".safetensors")
        pipe = _from_file(source, config, dtype) if single else _from_folder(model, source, dtype)
        pipe.register_to_config(_name_or_path=source)
    if config is not None:
        _CONFIGS[pipe] = config
    if scheduler is not None:
        chosen = {known.__name__: known for known in SCHEDULERS}[scheduler]
        change = partial(chosen.from_config, pipe.scheduler.config)
        pipe.scheduler = attempted(f"{model}, scheduler", f"settings of a {scheduler}", "Take another.", change)
    return check(pipe.to(device))


def _from_folder(model: str, source: str, dtype: torch.dtype) -> Pipeline:
    """From a folder in diffusers format, or a hub repository of one."""
    folder, expected = Path(source), "a diffusers pipeline"
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            found = "no folder of that name, and hub ids look like owner/name"
            raise UnsupportedModel(model, expected=expected, found=found, remedy=PLACES)
        folder = fetched(source)
    if not (folder / INDEX).exists():
        found = f"a folder without a {INDEX}"
        raise UnsupportedModel(model, expected=expected, found=found, remedy=PLACES)
    index = read_json(folder / INDEX, model, expected)
    parts = _parts(model, str(index.get("_class_name")), index)
    check_folder(folder, list(parts), model)
    kinds = {name: class_of(*part, f"{model}, {name}") for name, part in parts.items()}
    made = {name: load_part(folder / name, kind, dtype, f"{model}, {name}") for name, kind in kinds.items() if kind}
    assemble = partial(AnyPipeline.from_pretrained, str(folder), dtype=dtype, **made)
    pipe: Pipeline = attempted(model, expected, AGAIN, assemble)
    return pipe


def _from_file(source: str, config: str | None, dtype: torch.dtype) -> Pipeline:
    """From a checkpoint in the format of its authors."""
    kind, local = kind_of_file(source), config is not None and Path(config).is_dir()
    _check_text(kind)
    if config is not None and local:
        index = read_json(Path(config, INDEX), config, "a diffusers pipeline")
        check_folder(Path(config), list(_parts(config, kind, index)), config)
    offline = not local and hub_out_of_reach() is not None
    make = partial(getattr(diffusers, kind).from_single_file, source, config=config, local_files_only=offline)
    with bounded([Path(source)], source) as unfilled:
        try:
            pipe: Pipeline = attempted(source, "a diffusers pipeline", PLACES, partial(make, dtype=dtype))
        except UnsupportedModel:
            check_filled(unfilled(), source)  # which is the cause, if there are any
            raise
        check_filled(unfilled(), source)
    return pipe


def _parts(where: str, kind: str, index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline that we can drive, as its index names them."""
    _check_class(where, kind)
    _check_text(kind)
    check_class_names(index, where)
    return parts_of(getattr(diffusers, kind), index, where)


def _check_text(kind: str) -> None:
    if FAMILIES[kind].asked is Asked.PROMPTS and find_spec("transformers") is None:
        remedy = "pip install diff-es[text]"
        raise UnsupportedModel(kind, expected="transformers, for its text encoders", found="none", remedy=remedy)


def origin_of(pipe: Pipeline) -> Origin:
    """Where a pipeline came from and how it samples, for :func:`reopen`."""
    source = pipe.config.get("_name_or_path") or ""
    folder = Path(source)
    ours = next((name for name, place in BUNDLED.items() if place == folder), None)
    return Origin(
        model=ours or (str(folder.resolve()) if source and folder.exists() else source),
        dtype=str(denoiser_of(pipe).dtype).removeprefix("torch."),
        scheduler={"_class_name": type(pipe.scheduler).__name__, **json.loads(pipe.scheduler.to_json_string())},
        config=_CONFIGS.get(pipe),
    )


def reopen(origin: Origin, model: str | None = None, device: str | None = None) -> Pipeline:
    """The pipeline of :func:`origin_of`, from its old place or from ``model``, with its sampler.

    Raises:
        UnsupportedModel: it does not load, or its sampler is none of diffusers'.
    """
    if not (model or origin.model):
        remedy = "Say where it is: --model."
        raise UnsupportedModel("base model", expected="a place to load it from", found="none", remedy=remedy)
    dtype = getattr(torch, origin.dtype)
    pipe = load(model or origin.model, dtype=dtype, device=device, config=origin.config)
    name = origin.scheduler["_class_name"]
    kind: Any = vars(diffusers.schedulers).get(name)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        remedy = "Use it from Python: load the pipeline with its own scheduler."
        raise UnsupportedModel("scheduler", expected="a class of diffusers", found=str(name), remedy=remedy)
    make = partial(getattr(diffusers, name).from_config, origin.scheduler)
    pipe.scheduler = attempted("scheduler", f"settings of a {name}", "Compress again.", make)
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
        UnsupportedModel: another pipeline class, two denoisers, sequential offload, adapters on the denoiser, weights
            that are stored otherwise than it computes, classes that it has not, or as :func:`check_denoiser`.
        DiffESError: group offloading that brings in copies of parameters.
    """
    _check_pipeline(pipe)
    if family_of(pipe) is None:
        _check_class("pipe", type(pipe).__name__)
    if sequentially(check_denoiser(pipe)):
        remedy = "Call pipe.remove_all_hooks(), and offload again to run a result; or take model or group offload."
        raise UnsupportedModel("pipe", expected="weights in memory", found="sequential offload", remedy=remedy)
    denoiser, where = denoiser_of(pipe), f"pipe.{denoiser_name(pipe)}"
    check_groups(denoiser)
    if odd := stored_otherwise(denoiser):
        remedy = "Load it anew in float32, bfloat16 or float16, without quantization and without layerwise casting."
        raise UnsupportedModel(where, expected="weights as it computes with them", found=odd, remedy=remedy)
    if prompted := image_adapters(denoiser):
        found, remedy = f"an IP-Adapter's on {several(prompted)}", "Call pipe.unload_ip_adapter() first."
        raise UnsupportedModel(where, expected="the model's own weights", found=found, remedy=remedy)
    if wrapped := adapted(denoiser):
        expected, found = "the model's own layers", f"adapters on {several(wrapped)}"
        remedy = "Unload them; or fuse them first (pipe.fuse_lora(), pipe.unload_lora_weights()) to keep what they add."
        raise UnsupportedModel(where, expected=expected, found=found, remedy=remedy)
    _check_labels(pipe)
    _check_tokenizers(pipe)
    if pipe.components.get("transformer_2") is not None:
        remedy = "Wan 2.1 and Wan 2.2 5B have one denoiser; take one of them."
        raise UnsupportedModel("pipe", expected="one denoiser", found="transformer and transformer_2", remedy=remedy)
    return pipe


def _check_labels(pipe: Pipeline) -> None:
    family = family_of(pipe)
    if family is None or family.asked is not Asked.CLASSES:
        return
    count, numbers = pipe.transformer.config.num_embeds_ada_norm, classes_of(pipe)
    if not numbers or max(numbers) >= count:
        expected, found = f"classes below {count}, the number it was trained on", str(max(numbers, default="none"))
        raise UnsupportedModel("pipe.labels", expected=expected, found=found, remedy="Correct id2label in its index.")


def _check_tokenizers(pipe: Pipeline) -> None:
    """CLIP's prompts are filled up to the most tokens that its tokenizer knows of."""
    for number in ("", "_2"):
        encoder, tokenizer = pipe.components.get(f"text_encoder{number}"), pipe.components.get(f"tokenizer{number}")
        if tokenizer is not None and type(encoder).__name__ in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            most, found = encoder.config.max_position_embeddings, tokenizer.model_max_length
            if found > most:
                where, expected = f"pipe.tokenizer{number}", f"a model_max_length of at most {most}, as its encoder's"
                raise UnsupportedModel(where, expected=expected, found=f"{found:g}", remedy="Correct it.")


def check_denoiser(pipe: AnyPipeline | nn.Module) -> Denoiser:
    """The denoiser of a pipeline, if it can be routed: any pipeline will do, and a module that was declared.

    Raises:
        UnsupportedModel: there is none, it is wrapped, it has no weights, or it is in training mode.
    """
    if isinstance(pipe, nn.Module):
        check_module(pipe, "pipe")
        return pipe
    _check_pipeline(pipe)
    name = denoiser_name(pipe)
    if name is None:
        found, remedy = ", ".join(pipe.components), "Give a diffusers pipeline that has one of them."
        raise UnsupportedModel("pipe", expected="a transformer or a unet", found=found, remedy=remedy)
    denoiser = denoiser_of(pipe)
    if not isinstance(denoiser, ModelMixin):
        found, where = type(denoiser).__name__, f"pipe.{name}"
        remedy = "Put the model itself there. To compile it, call `compile()` on its blocks, which keeps them in place."
        raise UnsupportedModel(where, expected="a diffusers model", found=found, remedy=remedy)
    check_module(denoiser, f"pipe.{name}")
    return denoiser


def _check_pipeline(pipe: object) -> None:
    if not isinstance(pipe, diffusers.DiffusionPipeline):
        expected, found, remedy = f"one of {', '.join(SUPPORTED)}", type(pipe).__name__, "Give a pipeline of diffusers."
        if isinstance(pipe, nn.Module):
            found += ", a network without a pipeline that samples with it"
            remedy = "Give the pipeline that it belongs to. What can be pruned in a network of your own is declared: "
            remedy += "diff_es.layers.declare, as in examples/foreign_denoiser.py."
        raise UnsupportedModel("pipe", expected=expected, found=found, remedy=remedy)


def check_module(denoiser: nn.Module, where: str) -> None:
    """Whether a denoiser can be routed; raises as :func:`check_denoiser`."""
    if not isinstance(denoiser, ModelMixin) and declared(denoiser) is None:
        expected, found = "a diffusers pipeline, or a denoiser that was declared", f"a {type(denoiser).__name__}"
        remedy = "Call diff_es.layers.declare(module, ...) first, with what was declared when the result was made."
        raise UnsupportedModel(where, expected=expected, found=found, remedy=remedy)
    if denoiser.training:
        found = "training mode, in which labels and activations are dropped at random"
        raise UnsupportedModel(where, expected="evaluation mode", found=found, remedy=f"Call {where}.eval() first.")
    if missing := lost(denoiser):
        found, remedy = f"{missing[0]} on the meta device", "Load it with its weights, or offload it as diffusers does."
        raise UnsupportedModel(where, expected="weights in memory", found=found, remedy=remedy)
