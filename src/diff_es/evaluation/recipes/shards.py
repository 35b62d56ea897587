"""A folder that a run's scores are kept in, a file for each batch: killed at any moment, it loses a batch at most."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...utils.errors import DiffESError, StorageError
from ...utils.files import REPLACE, check_size, digest, make_folder, write_text

IDENTITY, RESULT, SHARDS = "recipe.json", "result.json", "shards"
_MOST_BYTES = 1 << 25


@dataclass(frozen=True)
class Shards:
    """The scores of batches, in files that are written whole or not at all and know which recipe they are of."""

    folder: Path
    recipe: str  # its hash

    def path(self, batch: range) -> Path:
        """The file of a batch, by the numbers of its images."""
        return self.folder / SHARDS / f"{batch.start:07d}-{batch.stop:07d}.safetensors"

    def write(self, batch: range, scores: Mapping[str, Tensor]) -> None:
        """Keep a batch's scores; they are on the disk when this returns.

        Raises:
            StorageError: the disk refused.
        """
        path = self.path(batch)
        partial = path.with_name(f".{path.name}.partial")
        kept = {name: score.detach().cpu().contiguous() for name, score in scores.items()}
        about = {"recipe": self.recipe, "contents": _contents(kept)}
        try:
            save_file(kept, partial, about)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise StorageError(str(path), expected="room to write", found=str(error), remedy=REPLACE) from error

    def read(self, batch: range) -> dict[str, Tensor] | None:
        """A batch's scores; None where there is no file of it, or one that is damaged or of another recipe."""
        try:
            with safe_open(self.path(batch), "pt") as file:
                about, scores = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        whole = about.get("recipe") == self.recipe and about.get("contents") == _contents(scores)
        return scores if whole else None

    def column(self, name: str, batches: tuple[range, ...]) -> Iterator[Tensor]:
        """One score of all batches, a batch at a time."""
        for batch in batches:
            with safe_open(self.path(batch), "pt") as file:
                yield file.get_tensor(name)


def begun(folder: Path, identity: Mapping[str, object]) -> Shards:
    """The folder of a run that begins, or goes on.

    Raises:
        DiffESError: it holds a run of another recipe; the message names what differs.
        StorageError: the disk refused.
    """
    path, own = folder / IDENTITY, json.loads(json.dumps(identity))
    if path.exists():
        before = _read(path)
        if changed := sorted(key for key in before.keys() | own.keys() if before.get(key) != own.get(key)):
            found, remedy = f"one with another {', '.join(changed)}", "Choose another folder, or put it back as it was."
            raise DiffESError(str(path), expected="the recipe that the run began with", found=found, remedy=remedy)
    make_folder(folder / SHARDS)
    for partial in (folder / SHARDS).glob(".*.partial"):  # of a process that was killed
        partial.unlink()
    write_text(path, json.dumps(own, indent=2) + "\n")
    return Shards(folder, digest(own))


def _read(path: Path) -> dict[str, object]:
    try:
        check_size(path, _MOST_BYTES)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        expected, remedy = "what an evaluation of a recipe wrote", "Choose another folder."
        raise DiffESError(str(path), expected=expected, found=str(error), remedy=remedy) from error
    return found if isinstance(found, dict) else {}


def _contents(scores: Mapping[str, Tensor]) -> str:
    """A hash of names, kinds and values."""
    found = hashlib.sha256()
    for name, score in sorted(scores.items()):
        found.update(f"{name}{score.dtype}{tuple(score.shape)}".encode() + score.numpy().tobytes())
    return found.hexdigest()
