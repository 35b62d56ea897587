"""Repositories of the Hugging Face hub, from the local cache where the hub is out of reach."""

from __future__ import annotations

import warnings
from functools import partial
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from diffusers import DiffusionPipeline
from huggingface_hub import is_offline_mode, model_info, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import RepositoryNotFoundError

from ..utils.errors import UnsupportedModel
from .model_index import INDEX, attempted


def fetched(model: str, *, local_only: bool = False) -> Path:
    """The folder that the files of a hub repository lie in: from the cache, where the hub is out of reach.

    Args:
        local_only: whether the hub is not asked for anything.

    Raises:
        UnsupportedModel: there is no such repository, or the hub is out of reach and the cache does not hold it.
    """
    cause = "nothing is to be fetched" if local_only else hub_out_of_reach()
    expected = "a diffusers pipeline"
    if cause is None:
        try:
            attempted(model, expected, PLACES, partial(model_info, model, timeout=10))
        except UnsupportedModel as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                found = "no such repository, or one that asks for a login (`hf auth login`)"
                raise UnsupportedModel(model, expected=expected, found=found, remedy=PLACES) from error
            cause = error.found
    if cause is not None:
        if not isinstance(try_to_load_from_cache(model, INDEX), str):
            found = f"none in the local cache, and {cause}"
            raise UnsupportedModel(model, expected=expected, found=found, remedy=PLACES)
        expected += f", whole in the local cache, since {cause}"
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
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        return None if isinstance(reason, SSLError) else f"{ENDPOINT} is out of reach: {reason}"
    return None


ID = r"[\w.-]+/[\w.-]+"
_SECONDS = 4.0
PLACES = (
    "Give 'bundled', 'bundled-turbo' or 'bundled-unet', a folder with a model_index.json, a .safetensors file of "
    "Stable Diffusion or SDXL (offline with --config, a folder that holds its configurations), or the id of a hub "
    "repository (and check the network)."
)
