"""A model's files, looked at before they are read: every part is there, of a size that can be meant, and whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..utils.errors import UnsupportedModel, said, several
from .model_index import AGAIN, attempted, read_json

_MOST = (  # of whole numbers in configurations, by their names
    (re.compile("sample_size"), 1 << 12),
    (re.compile("^num_|^n_|layers|order|offset|steps|seq_len|length"), 1 << 20),
)

_OF_VARIANT = re.compile(r"^(?:diffusion_pytorch_model|model|pytorch_model)\.([a-z]\w*?)(?:-\d+-of-\d+)?\.\w+$")


def check_folder(folder: Path, names: Sequence[str], where: str) -> None:
    """Whether the folders of these parts hold regular files, and configurations of sizes that can be meant.

    Raises:
        UnsupportedModel: there is no such folder, something else lies in it, or a size is beyond all models.
    """
    for name in names:
        place, here = folder / name, f"{where}, {name}"
        if not place.is_dir():
            raise UnsupportedModel(here, expected="a folder of this name", found="none", remedy=AGAIN)
        try:
            odd = [file.name for file in place.iterdir() if not (file.is_file() or file.is_dir())]
        except OSError as error:
            raise UnsupportedModel(here, expected="files", found=said(error), remedy=AGAIN) from error
        if odd:
            found = f"{several(sorted(odd))}, which is none"
            raise UnsupportedModel(here, expected="regular files", found=found, remedy=AGAIN)
        for file in _there(place, "config.json", "scheduler_config.json"):
            _check_sizes(read_json(file, here, "a configuration"), f"{here}, {file.name}")
        for file in _there(place, "model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json"):
            _check_shards(read_json(file, here, "an index of its files"), place, here)


def _there(place: Path, *names: str) -> list[Path]:
    return [place / name for name in names if (place / name).exists()]


def _check_shards(index: Mapping[str, Any], place: Path, where: str) -> None:
    """Whether the files that hold a model in parts lie beside their index."""
    shards = index.get("weight_map")
    names = sorted(map(str, shards.values())) if isinstance(shards, dict) else []
    odd = [name for name in names if Path(name).name != name or not (place / name).is_file()]
    if odd or not names:
        found = f"none, or no file {several(odd)}" if odd else "none"
        raise UnsupportedModel(where, expected="the files that its index names", found=found, remedy=AGAIN)


def _check_sizes(config: Any, where: str, key: str = "") -> None:
    if isinstance(config, dict):
        for name, value in config.items():
            _check_sizes(value, where, name)
    elif isinstance(config, list):
        for value in config:
            _check_sizes(value, where, key)
    elif isinstance(config, int | float):
        for pattern, most in _MOST:
            if pattern.search(key) and config > most:
                found = f"{config:g}"
                raise UnsupportedModel(where, expected=f"{key} of at most {most}", found=found, remedy=AGAIN)


def check_part(place: Path, kind: Any, where: str) -> None:
    """Whether the files that a part of a pipeline is made from lie in its folder.

    Raises:
        UnsupportedModel: weights, a configuration or a vocabulary are missing.
    """
    if issubclass(kind, nn.Module):
        _files_of_model(place, where)
    elif kind.__module__.startswith("transformers."):
        _check_vocabulary(kind, place, where)


def _files_of_model(place: Path, where: str) -> tuple[list[Path], dict[str, Any]]:
    """The files of its weights, and its configuration; raises as :func:`check_part` does."""
    files = [file for file in place.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
    if not files:
        raise UnsupportedModel(where, expected="a .safetensors file of its weights", found="none", remedy=AGAIN)
    return files, read_json(place / "config.json", where, "a configuration")


def load_part(place: Path, kind: Any, dtype: torch.dtype, where: str) -> Any:
    """A part of a pipeline, of a class, from its folder; of a model every weight comes from its files.

    Raises:
        UnsupportedModel: files that it cannot be made from, or weights that they do not hold.
    """
    expected, folder = f"the files of a {kind.__name__}", str(place)
    if not issubclass(kind, nn.Module):
        check_part(place, kind, where)
        return attempted(where, expected, AGAIN, lambda: kind.from_pretrained(folder))
    (files, config), ours = _files_of_model(place, where), issubclass(kind, ModelMixin)
    as_dtype = {"torch_dtype" if ours else "dtype": dtype}
    with bounded(files, where):
        if ours:
            _rehearse(kind, folder, where)
        load = partial(kind.from_pretrained, folder, output_loading_info=True, variant=_variant(files), **as_dtype)
        part, info = attempted(where, expected, AGAIN, load)
    check_filled(_strangers(part, info["missing_keys"]), where)
    if "quantization_config" not in config:
        _check_kinds(part, files, info["unexpected_keys"], where)
    return part


def _variant(files: Sequence[Path]) -> str | None:
    """The variant that all of these files of weights are of, as in ``model.fp16.safetensors``; None where some are of
    none."""
    found = {match[1] if (match := _OF_VARIANT.match(file.name)) else None for file in files}
    return found.pop() if len(found) == 1 else None


def _rehearse(kind: Any, folder: str, where: str) -> None:
    """Build a model of diffusers without memory, so that a size beyond all is refused before it is asked for;
    transformers does so on its own."""
    try:
        with torch.device("meta"):
            attempted(where, "", AGAIN, lambda: kind.from_config(kind.load_config(folder)))
    except UnsupportedModel as error:
        if error.__cause__ is None:  # nothing but its size; all else the loading itself will say, or not mind
            raise


def _check_vocabulary(kind: Any, place: Path, where: str) -> None:
    """Whether a tokenizer's vocabulary is there: without one it is made with none, and reads every prompt as nothing.

    Raises:
        UnsupportedModel: it is not.
    """
    from transformers import PreTrainedTokenizerBase  # not a requirement; here a model has asked for it

    if not issubclass(kind, PreTrainedTokenizerBase) or any(place.glob("*.model")):
        return
    names = dict[str, str](kind.vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    if not (place / whole).is_file() and not (names and all((place / name).is_file() for name in names.values())):
        raise UnsupportedModel(where, expected=f"a vocabulary, such as {whole}", found="none", remedy=AGAIN)


def _check_kinds(part: Any, files: Sequence[Path], unused: Collection[str], where: str) -> None:
    """Whether weights that a model computes with are not whole numbers, which without a quantization mean nothing.

    Raises:
        UnsupportedModel: some are; the message names the first.
    """
    counted = {name.rpartition(".")[2] for name, buffer in part.named_buffers() if not buffer.is_floating_point()}
    for file in files:
        for name, dtype in _tensors(file, where).items():
            if dtype.startswith(("I", "U", "BOOL")) and name not in unused and name.rpartition(".")[2] not in counted:
                expected, found = "weights in a floating type", f"{name} in {dtype}"
                remedy = "Take the model's weights in float32, bfloat16 or float16."
                raise UnsupportedModel(where, expected=expected, found=found, remedy=remedy)


def _strangers(part: nn.Module, missing: Collection[str]) -> list[str]:
    """Those of these tensors of a model that are not others of it under a second name."""
    tensors: dict[str, torch.Tensor] = dict(part.named_parameters(remove_duplicate=False))
    tensors |= part.named_buffers(remove_duplicate=False)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return sorted(name for name in missing if id(tensors.get(name)) not in loaded)


def check_filled(missing: Sequence[str], where: str) -> None:
    """Whether there are no weights without values.

    Raises:
        UnsupportedModel: there are; the message names them.
    """
    if missing:
        raise UnsupportedModel(where, expected="all weights", found=f"no {several(missing)}", remedy=AGAIN)


@contextmanager
def bounded(files: Sequence[Path], where: str) -> Iterator[Callable[[], list[str]]]:
    """Refuse to build models of far more, or far larger, tensors than these files hold.

    Yields:
        what gives the names of the parameters of these models that are still without values.
    """
    tensors = sum(len(_tensors(file, where)) for file in files) or 1 << 14
    left = {"tensors": 8 * tensors + 1024, "numbers": 8 * sum(file.stat().st_size for file in files) + (1 << 22)}

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            left["tensors"] -= 1
            left["numbers"] -= tensor.numel()
        if min(left.values()) < 0:
            found = f"a configuration of far more: {type(module).__name__}.{name}"
            expected = f"a model of about {tensors} tensors, as its files hold"
            raise UnsupportedModel(where, expected=expected, found=found, remedy=AGAIN)

    def note(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is not None:
            places[module] = (parent, name)

    def unfilled() -> list[str]:
        return sorted(
            ".".join([*_path(module, places), leaf])
            for module in places
            for leaf, value in module.named_parameters(recurse=False)
            if value.is_meta
        )

    places = dict[nn.Module, tuple[nn.Module, str]]()
    hooks = register_module_parameter_registration_hook, register_module_buffer_registration_hook
    handles = [*(register(count) for register in hooks), register_module_module_registration_hook(note)]
    try:
        yield unfilled
    finally:
        for handle in handles:
            handle.remove()


def _path(module: nn.Module, places: Mapping[nn.Module, tuple[nn.Module, str]]) -> list[str]:
    names = list[str]()
    while module in places:
        module, name = places[module]
        names.insert(0, name)
    return names


def _tensors(file: Path, where: str) -> dict[str, str]:
    """The types of a file's tensors, by name; of other files than safetensors, nothing."""

    def read() -> dict[str, str]:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118, it is no mapping

    if file.suffix != ".safetensors":
        return {}
    return attempted(where, f"{file.name}, in safetensors", AGAIN, read)
