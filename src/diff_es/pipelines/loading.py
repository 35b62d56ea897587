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
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from ..utils.errors import DiffESError, Extra, UnsupportedModel
from .bundled import MODELS as BUNDLED
from .bundled import SHARED
from .checkpoint import bounded, check_filled, check_folder, check_part, load_part
from .denoiser import dtype_of
from .families import FAMILIES, Asked, Pipeline
from .hub import ID, PLACES, fetched, hub_out_of_reach
from .model_index import AGAIN, INDEX, attempted, check_class_names, class_of, parts_of, read_json
from .origin import Origin
from .own_sampler import OwnSampler
from .quiet import hushed
from .sampling import denoiser_of, sampler_name
from .single_file import kind_of_file
from .supported import check, check_class

SCHEDULERS = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)


OWN = "OwnSampler"
"""What stands in the place of a scheduler's class, of a loop of the user's own."""

_CONFIGS: WeakKeyDictionary[Pipeline, str] = WeakKeyDictionary()  # of pipelines from single files


def load(
    model: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    scheduler: str | None = None,
    config: str | None = None,
    local_only: bool = False,
) -> Pipeline:
    """A pipeline of ours, from a folder, a single ``.safetensors`` file of Stable Diffusion or SDXL, or a hub id.

    Args:
        model: what to load; ``"bundled"`` is our transformer, ``"bundled-turbo"`` the same in four steps,
            ``"bundled-unet"`` our U-Net.
        dtype: default float32 on the CPU, bfloat16 elsewhere.
        device: default CUDA, then MPS, then the CPU.
        scheduler: class name of one of ``SCHEDULERS`` to sample with; default the model's own.
        config: for a single file, the folder or hub id of a pipeline of the same shape, whose configurations and
            tokenizers are taken; default the original model's, from the hub.
        local_only: whether nothing is fetched from elsewhere, nor asked for there.

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
        make = partial(_from_file, source, config) if single else partial(_from_folder, model, source)
        pipe = make(dtype, local_only=local_only)
        pipe.register_to_config(_name_or_path=source)
    if config is not None:
        _CONFIGS[pipe] = _from_anywhere(config)
    if scheduler is not None:
        chosen = {known.__name__: known for known in SCHEDULERS}[scheduler]
        change = partial(chosen.from_config, pipe.scheduler.config)
        pipe.scheduler = attempted(f"{model}, scheduler", f"settings of a {scheduler}", "Take another.", change)
    return check(pipe.to(device))


def at_hand(model: str) -> bool:
    """Whether :func:`load` would find this model here, of a hub repository all files, and fetch nothing from elsewhere.

    Raises:
        UnsupportedModel: what is here of a repository is of a pipeline class that Diff-ES does not know.
    """
    source = str(BUNDLED.get(model, model))
    if Path(source).exists():
        return True
    if not re.fullmatch(ID, source):
        return False
    try:
        folder = fetched(source, local_only=True)
    except UnsupportedModel:
        return False
    kinds = _kinds_in(folder, model)
    try:
        check_folder(folder, list(kinds), model)
        for name, kind in kinds.items():
            if kind is not None:
                check_part(folder / name, kind, model)
    except UnsupportedModel:
        return False
    return True


def _from_folder(model: str, source: str, dtype: torch.dtype, *, local_only: bool) -> Pipeline:
    """From a folder in diffusers format, or a hub repository of one."""
    folder, expected = Path(source), "a diffusers pipeline"
    if not folder.is_dir():
        if not re.fullmatch(ID, source):
            found = "no folder of that name, and hub ids look like owner/name"
            raise UnsupportedModel(model, expected=expected, found=found, remedy=PLACES)
        folder = fetched(source, local_only=local_only)
    if not (folder / INDEX).exists():
        found = f"a folder without a {INDEX}"
        raise UnsupportedModel(model, expected=expected, found=found, remedy=PLACES)
    kinds = _kinds_in(folder, model)
    shared, lender = SHARED.get(model, ("", folder))
    check_folder(folder, [name for name in kinds if name != shared], model)
    places = {name: (lender if name == shared else folder) / name for name in kinds}
    made = {name: load_part(places[name], kind, dtype, f"{model}, {name}") for name, kind in kinds.items() if kind}
    assemble = partial(diffusers.DiffusionPipeline.from_pretrained, str(folder), dtype=dtype, **made)
    pipe: Pipeline = attempted(model, expected, AGAIN, assemble)
    return pipe


def _kinds_in(folder: Path, model: str) -> dict[str, type | None]:
    """The classes of a pipeline's parts by name; None as :func:`class_of` has it."""
    index = read_json(folder / INDEX, model, "a diffusers pipeline")
    parts = _parts(model, str(index.get("_class_name")), index)
    return {name: class_of(*part, f"{model}, {name}") for name, part in parts.items()}


def _from_file(source: str, config: str | None, dtype: torch.dtype, *, local_only: bool) -> Pipeline:
    """From a checkpoint in the format of its authors."""
    kind, local = kind_of_file(source), config is not None and Path(config).is_dir()
    _check_text(kind)
    if config is not None and local:
        index = read_json(Path(config, INDEX), config, "a diffusers pipeline")
        check_folder(Path(config), list(_parts(config, kind, index)), config)
    offline = not local and (local_only or hub_out_of_reach() is not None)
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
    check_class(where, kind)
    _check_text(kind)
    check_class_names(index, where)
    return parts_of(getattr(diffusers, kind), index, where)


def _check_text(kind: str) -> None:
    if FAMILIES[kind].asked is Asked.PROMPTS and find_spec("transformers") is None:
        expected = "transformers, for its text encoders"
        raise UnsupportedModel(kind, expected=expected, found="none", remedy=Extra.TEXT.remedy)


def origin_of(pipe: Pipeline) -> Origin:
    """Where a pipeline came from and how it samples, for :func:`reopen`."""
    dtype = str(dtype_of(denoiser_of(pipe))).removeprefix("torch.")
    if isinstance(pipe, OwnSampler):
        return Origin("", dtype, {"_class_name": OWN, "function": sampler_name(pipe)})
    source = pipe.config.get("_name_or_path") or ""
    ours = next((name for name, place in BUNDLED.items() if place == Path(source)), None)
    return Origin(
        model=ours or _from_anywhere(source),
        dtype=dtype,
        scheduler={"_class_name": type(pipe.scheduler).__name__, **json.loads(pipe.scheduler.to_json_string())},
        config=_CONFIGS.get(pipe),
    )


def _from_anywhere(source: str) -> str:
    """The whole path of what is on this machine, which it has from any folder; of all else the same."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def reopen(origin: Origin, model: str | None = None, device: str | None = None) -> Pipeline:
    """The pipeline of :func:`origin_of`, from its old place or from ``model``, with its sampler.

    Raises:
        UnsupportedModel: it does not load, or its sampler is none of diffusers'.
    """
    if origin.scheduler["_class_name"] == OWN:
        found, remedy = "a loop of the user's own", "Use it from Python: diff_es.load(folder).routed(own_sampler)."
        raise UnsupportedModel("base model", expected="a pipeline of diffusers", found=found, remedy=remedy)
    if not (model or origin.model):
        remedy = "Say where it is: --model."
        raise UnsupportedModel("base model", expected="a place to load it from", found="none", remedy=remedy)
    pipe = load(model or origin.model, dtype=getattr(torch, origin.dtype), device=device, config=origin.config)
    return resampled(pipe, str(origin.scheduler["_class_name"]), origin.scheduler)


def resampled(pipe: Pipeline, name: str, settings: Mapping[str, object]) -> Pipeline:
    """The same pipeline with a scheduler of this class of diffusers, and these settings.

    Raises:
        UnsupportedModel: there is no such class, or it does not take the settings.
    """
    kind: Any = vars(diffusers.schedulers).get(name)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        remedy = "Use it from Python: load the pipeline with its own scheduler."
        raise UnsupportedModel("scheduler", expected="a class of diffusers", found=name, remedy=remedy)
    make = partial(getattr(diffusers, name).from_config, settings)
    pipe.scheduler = attempted("scheduler", f"settings of a {name}", "Correct them, or compress again.", make)
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
