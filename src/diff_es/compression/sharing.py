"""Results on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Protocol

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..utils.errors import ArtefactError, StorageError


class HubClient(Protocol):
    """What is asked of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> object: ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> object: ...


def push(folder: Path, repository: str, client: HubClient, *, private: bool | None) -> None:
    """Upload a folder to a repository, which is made where it is missing.

    Raises:
        StorageError: the hub refused, or is out of reach.
    """
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message="A result of Diff-ES")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        remedy = "Log in with `hf auth login`, and check the name and the network."
        found = str(error).splitlines()[0][:200]
        raise StorageError(f"hub: {repository}", expected="an upload", found=found, remedy=remedy) from error


def fetched_result(name: str | PurePath) -> Path:
    """The folder of a result: itself, or the local copy of a repository of the hub.

    Raises:
        ArtefactError: there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        remedy = "Give a folder that `save` wrote, or the name of a repository that `push_to_hub` did."
        found = str(error).splitlines()[0][:200]
        raise ArtefactError(str(name), expected="a result", found=found, remedy=remedy) from error
