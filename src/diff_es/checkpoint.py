"""A model's files, looked at before they are read: every part is there, of a size that can be meant, and whole."""

from __future__ import annotations

import json
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from ssl import SSLError
from typing import Annotated, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import is_offline_mode, model_info, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import RepositoryNotFoundError
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from .errors import FOREIGN, DiffESError, UnsupportedModel, said, several

INDEX = "model_index.json"
AGAIN = "Download or save the model again."
_JSON_BYTES = 1 << 27
_Made = TypeVar("_Made")
_MOST = (  # of whole numbers in configurations, by their names
    (re.compile("sample_size"), 1 << 12),
    (re.compile("^num_|^n_|layers|order|offset|steps|seq_len|length"), 1 << 20),
)
_CLASS_NAMES: TypeAdapter[dict[str, str] | None] = TypeAdapter(
    dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], str] | None
)
_PART = TypeAdapter(tuple[str, str] | tuple[None, None])


def attempted(where: str, expected: str, remedy: str, read: Callable[[], _Made]) -> _Made:
    """What other libraries make of a user's files.

    Raises:
        UnsupportedModel: they raised whatever it may be; the message says it.
    """
    try:
        return read()
    except (DiffESError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of no common kind: tokenizers raises just this
        raise UnsupportedModel(where, expected=expected, found=said(error), remedy=remedy) from error


def read_json(file: Path, where: str, expected: str) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises:
        UnsupportedModel: no regular file, a very large one, or no JSON object in it.
    """
    try:
        facts = file.stat()
        regular, size = stat.S_ISREG(facts.st_mode), facts.st_size
        value = json.loads(file.read_text(encoding="utf-8")) if regular and size <= _JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(where, expected=expected, found=f"{file.name}: {said(error)}", remedy=AGAIN) from error
    if not isinstance(value, dict):
        kind = "no regular file" if not regular else f"another kind of JSON, or {size} bytes"
        raise UnsupportedModel(where, expected=expected, found=f"{file.name}, {kind}", remedy=AGAIN)
    return value


def parts_of(kind: type, index: Mapping[str, Any], where: str) -> dict[str, tuple[str, str]]:
    """The parts that an index names for a pipeline class: (library, class) by name.

    Raises:
        UnsupportedModel: one that the class needs is missing or null, or an entry is none.
    """
    found = dict[str, tuple[str, str]]()
    for name, argument in list(signature(kind.__init__).parameters.items())[1:]:  # type: ignore[misc]
        needed = argument.default is Parameter.empty and name not in kind._optional_components  # type: ignore[attr-defined]
        entry = index.get(name)
        if isinstance(entry, list) or needed:
            try:
                library, part = _PART.validate_python(entry)
            except ValidationError as error:
                expected, shown = f"{name}, as [library, class]", repr(entry)[:80]
                raise UnsupportedModel(f"{where}, {INDEX}", expected=expected, found=shown, remedy=AGAIN) from error
            if library is not None and part is not None:
                found[name] = (library, part)
            elif needed:
                raise UnsupportedModel(f"{where}, {INDEX}", expected=f"a {name}", found="null", remedy=AGAIN)
    return found


def check_class_names(index: Mapping[str, Any], where: str) -> None:
    """Whether the names of classes, where an index has them, are texts by number.

    Raises:
        UnsupportedModel: they are not, or a number has two.
    """
    names, expected = index.get("id2label"), "id2label, names of classes by number"
    try:
        numbers = [int(number) for number in _CLASS_NAMES.validate_python(names) or ()]
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{first['input']!r} at {'.'.join(map(str, first['loc'])) or 'its top'}"[:120]
        raise UnsupportedModel(f"{where}, {INDEX}", expected=expected, found=found, remedy=_RENAME) from error
    if len(set(numbers)) < len(numbers):
        raise UnsupportedModel(f"{where}, {INDEX}", expected=expected, found="a number twice", remedy=_RENAME)


_RENAME = 'Write them as {"0": "name", ...}, or leave id2label out.'


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
        for file in [*place.glob("config.json"), *place.glob("scheduler_config.json")]:
            _check_sizes(read_json(file, here, "a configuration"), f"{here}, {file.name}")
        for file in place.glob("*.index.json"):
            _check_shards(read_json(file, here, "an index of its files"), place, here)


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


def load_part(place: Path, library: str, name: str, dtype: torch.dtype, where: str) -> Any:
    """A part of a pipeline, from its folder; of a model every weight comes from its files.

    Raises:
        UnsupportedModel: no such class, files that it cannot be made from, or weights that they do not hold.
    """
    kind: Any = _class_of(library, name, where)
    expected, folder = f"the files of a {name}", str(place)
    if not issubclass(kind, nn.Module):
        return attempted(where, expected, AGAIN, lambda: kind.from_pretrained(folder))
    ours = issubclass(kind, ModelMixin)
    as_dtype = {"torch_dtype" if ours else "dtype": dtype}
    with bounded([file for file in place.iterdir() if file.is_file()], where):
        if ours:  # a size beyond all memory is seen before it is asked for, as the others' own loaders do
            with torch.device("meta"):
                attempted(where, expected, AGAIN, lambda: kind.from_config(kind.load_config(folder)))
        load = partial(kind.from_pretrained, folder, output_loading_info=True, **as_dtype)
        part, info = attempted(where, expected, AGAIN, load)
    check_whole(part, info["missing_keys"], where)
    return part


def check_whole(part: nn.Module, missing: Sequence[str], where: str) -> None:
    """Whether a model's weights were all found in its files.

    Args:
        missing: the names of those that were not, some of which may be others under a second name.

    Raises:
        UnsupportedModel: they were not; the message names them.
    """
    tensors = {
        **dict(part.named_parameters(remove_duplicate=False)),
        **dict(part.named_buffers(remove_duplicate=False)),
    }
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    if lost := sorted(name for name in missing if id(tensors.get(name)) not in loaded):
        found = f"no {several(lost)}"
        raise UnsupportedModel(where, expected="all weights", found=found, remedy=AGAIN)


def _class_of(library: str, name: str, where: str) -> type:
    """A class by what an index calls it; libraries are those that pipelines of diffusers take their parts from."""
    expected, remedy = "a class of diffusers or transformers", f"Correct {INDEX}, or take a model of known parts."
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    try:
        kind = getattr(import_module(module), name) if library.isidentifier() else None
    except FOREIGN as error:
        raise UnsupportedModel(where, expected=expected, found=said(error), remedy=remedy) from error
    if not isinstance(kind, type):
        raise UnsupportedModel(where, expected=expected, found=f"{library}.{name}", remedy=remedy)
    return kind


@contextmanager
def bounded(files: Sequence[Path], where: str) -> Iterator[None]:
    """Refuse to build a model of far more, or far larger, tensors than these files hold."""
    tensors = sum(_tensors(file, where) for file in files if file.suffix == ".safetensors") or 1 << 14
    left = {"tensors": 8 * tensors + 1024, "numbers": 8 * sum(file.stat().st_size for file in files) + (1 << 22)}

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            left["tensors"] -= 1
            left["numbers"] -= tensor.numel()
        if min(left.values()) < 0:
            found = f"a configuration of far more: {type(module).__name__}.{name}"
            expected = f"a model of about {tensors} tensors, as its files hold"
            raise UnsupportedModel(where, expected=expected, found=found, remedy=AGAIN)

    hooks = register_module_parameter_registration_hook, register_module_buffer_registration_hook
    handles = [register(count) for register in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(file: Path, where: str) -> int:
    def count() -> int:
        with safe_open(file, "pt") as opened:
            return len(opened.keys())

    return attempted(where, f"{file.name}, in safetensors", AGAIN, count)


def fetched(model: str) -> Path:
    """The folder that the files of a hub repository lie in: from the cache, where the hub is out of reach.

    Raises:
        UnsupportedModel: there is no such repository, or the hub is out of reach and the cache does not hold it.
    """
    cause = hub_out_of_reach()
    if cause is None:
        try:
            model_info(model, timeout=10)
        except RepositoryNotFoundError as error:
            found = "no such repository, or one that asks for a login (`hf auth login`)"
            raise UnsupportedModel(model, expected="a diffusers pipeline", found=found, remedy=PLACES) from error
        except OSError as error:
            cause = said(error)
    expected = "a diffusers pipeline" + ("" if cause is None else f" in the local cache, since {cause}")
    if cause is not None and not isinstance(try_to_load_from_cache(model, INDEX), str):
        raise UnsupportedModel(model, expected=expected, found="none", remedy=PLACES)
    download = partial(DiffusionPipeline.download, model, local_files_only=cause is not None)
    with warnings.catch_warnings():  # of how diffusers calls huggingface_hub
        warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
        return Path(attempted(model, expected, PLACES, download))


def hub_out_of_reach() -> str | None:
    """Why the hub cannot be asked: the user's own wish, or the network; None where it can."""
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        urlopen(Request(ENDPOINT, method="HEAD"), timeout=_SECONDS).close()
    except HTTPError:
        return None  # it answers
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        return None if isinstance(reason, SSLError) else f"{ENDPOINT} is out of reach: {reason}"
    return None


_SECONDS = 4.0
PLACES = (
    "Give 'bundled' or 'bundled-unet', a folder with a model_index.json, a .safetensors file of Stable Diffusion or "
    "SDXL (offline with --config, a folder that holds its configurations), or the id of a hub repository (and check "
    "the network)."
)
