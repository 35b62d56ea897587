"""Folders of safetensors and one JSON manifest: written whole or not at all, checked by hash when read.

A folder is written in place. Tensors go to files that are named after their contents, beside those that are there, and
the manifest, which names the files that count, is exchanged in one step. So at every moment the folder holds one whole
artefact, the old or the new; what no manifest names is removed by who holds the folder next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..utils.checking import validated
from ..utils.errors import ArtefactError, StorageError
from ..utils.files import REPLACE, check_outputs, check_size, digest, exchange_text
from ..utils.locks import held_folder

MANIFEST = "diff-es.json"
FORMAT = 4
READABLE = (3, 4)
EDITED = "The manifest was changed by hand or by another program: copy it again, or compress again."
_DAMAGED = "The artefact is damaged: copy it again, or compress again."
_MOST_BYTES, _MOST_VALUES = 2**25, 2**20
"""Of a manifest; the largest known has a tenth of each."""
_PATIENCE = 60.0
"""Seconds to wait for another process that saves into the same folder."""
_TRIES = 20
"""How often an artefact is read anew that another process replaces meanwhile."""
_NAMED = re.compile(r"[\w-]+\.[0-9a-f]{16}\.safetensors")  # after its contents
_EARLIER = re.compile(r"(plan-\d+|factors)\.safetensors")  # by earlier versions
_UNFINISHED = re.compile(r"\..+\.(partial|lock)")

Hash = Annotated[str, StringConstraints(strict=True, pattern="^[0-9a-f]{64}$")]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: Hash
    bytes: Annotated[int, Strict(), Field(ge=0)]


_FileName = Annotated[str, StringConstraints(strict=True, pattern=r"^\w[\w.-]*\.safetensors$")]  # of the folder itself
_FILES: TypeAdapter[dict[str, _File]] = TypeAdapter(dict[_FileName, _File])


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_target(folder: Path) -> None:
    """Refuse, before any work is done, a folder that :func:`write_folder` would refuse.

    Raises:
        StorageError: it is a file, a folder that is neither empty nor an artefact (journals may be in it), or it cannot
            be written to.
        ArtefactError: it holds an artefact that this version does not know.
    """
    check_outputs(folder)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if MANIFEST in names:
        read_manifest(folder)
    elif not all(name.endswith(".jsonl") or _NAMED.fullmatch(name) or _UNFINISHED.fullmatch(name) for name in names):
        found, expected = "a folder with other files", "a new folder, an empty one or an earlier artefact"
        raise StorageError(str(folder), expected=expected, found=found, remedy=REPLACE)


def write_folder(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    about: Callable[[Mapping[str, str]], Mapping[str, Any]],
) -> None:
    """Write ``{file stem: {name: tensor}}`` and the manifest; an artefact already there is replaced in one step.

    Whatever else lies beside an artefact, such as journals and reports, is kept.

    Args:
        about: what else the manifest holds, for the hash of every file by its stem.

    Raises:
        StorageError: the disk refused, the folder is not ours to replace, or another process works on it; nothing
            half-written stays.
    """
    folder = folder.resolve()  # a link keeps pointing at the artefact
    check_target(folder)
    with held_folder(folder, _PATIENCE):
        try:
            files = dict[str, dict[str, Any]]()
            for stem, group in tensors.items():
                partial = folder / f".{stem}.partial"
                partial.unlink(missing_ok=True)
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}, partial)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                found = _hash(partial)
                target = partial.replace(folder / f"{stem}.{found[:16]}.safetensors")
                files[target.name] = {"sha256": found, "bytes": target.stat().st_size}
            manifest = {"format": FORMAT, "diff_es": version("diff-es"), "files": files}
            manifest |= about({stem_of(name): facts["sha256"] for name, facts in files.items()})
            manifest["sha256"] = digest(manifest)
            text = json.dumps(manifest, indent=2) + "\n"
            if excess := _excess(text.encode()):
                expected, remedy = "a manifest that can be read again", "Take fewer prompts, or shorter ones."
                raise StorageError(str(folder), expected=expected, found=excess, remedy=remedy)
            exchange_text(folder / MANIFEST, text)
        except (OSError, SafetensorError) as error:
            raise StorageError(str(folder), expected="room to write", found=str(error), remedy=REPLACE) from error
        finally:
            sweep(folder)


def _excess(manifest: bytes) -> str:
    """What is too much of it, if anything is, to be read into memory."""
    values = sum(map(manifest.count, b"[{,"))
    for found, most, what in ((len(manifest), _MOST_BYTES, "bytes"), (values, _MOST_VALUES, "values")):
        if found > most:
            return f"{found} {what}, where there can be no more than {most}"
    return ""


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left in a folder, and the files of an artefact that was replaced; only for
    who holds it."""
    with suppress(OSError, ArtefactError):  # another time
        own, whole = set[str](), (folder / MANIFEST).exists()
        if whole:
            own = set(read_manifest(folder)["files"])
        for entry in folder.iterdir():
            old = _NAMED.fullmatch(entry.name) or (whole and _EARLIER.fullmatch(entry.name))
            if (old and entry.name not in own) or re.fullmatch(r"\..+\.partial", entry.name):
                entry.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact.

    Raises:
        ArtefactError: there is none, it is not JSON, or another version of the format wrote it.
    """
    path = folder / MANIFEST
    remedy = "Give the folder that `diff-es compress --out` wrote."
    try:
        check_size(path, _MOST_BYTES)
        data = path.read_bytes()
        if excess := _excess(data):
            raise OSError(errno.EFBIG, excess)
        manifest = json.loads(data.decode())
    except FileNotFoundError as error:
        raise ArtefactError(str(folder), expected=f"a {MANIFEST} in it", found="none", remedy=remedy) from error
    except (OSError, ValueError, RecursionError) as error:  # of values: not UTF-8, not JSON, numbers without end
        raise ArtefactError(str(path), expected="a readable manifest", found=str(error), remedy=remedy) from error
    if not isinstance(manifest, dict) or manifest.get("format") not in READABLE:
        found = f"format {str(manifest.get('format'))[:40]}" if isinstance(manifest, dict) else "other JSON"
        remedy = "Compress again with this version, or install the version that wrote it."
        raise ArtefactError(
            str(path), expected=f"format {FORMAT} or an earlier one from 3 on", found=found, remedy=remedy
        )
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != digest(body):
        raise ArtefactError(str(path), expected="the hash of its contents", found="another", remedy=EDITED)
    files = validated(_FILES, manifest.get("files"), f"{path}: files", EDITED, ArtefactError)
    if len({stem_of(name) for name in files}) < len(files):
        found = ", ".join(sorted(files))[:80]
        raise ArtefactError(f"{path}: files", expected="different parts", found=found, remedy=EDITED)
    return manifest


def stem_of(name: str) -> str:
    """The name of a file without what follows from its contents."""
    return name.partition(".")[0]


def read_folder(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and the manifest of an artefact, every file checked against its hash.

    While another process replaces the artefact, the old or the new one is read, never some of both.

    Raises:
        ArtefactError: a file is missing or its hash differs; the message names it.
    """
    tries = 1
    while True:
        written = _written(folder)
        manifest = read_manifest(folder)
        try:
            files = {stem_of(name): _read(folder / name, facts) for name, facts in manifest["files"].items()}
            return files, manifest
        except ArtefactError:
            tries += 1
            if _written(folder) == written or tries > _TRIES:
                raise


def _written(folder: Path) -> tuple[int, int] | None:
    """What changes whenever the manifest is replaced, by the same one too."""
    with suppress(OSError):
        facts = (folder / MANIFEST).stat()
        return facts.st_ino, facts.st_mtime_ns
    return None


def _read(path: Path, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        if not path.is_file():
            raise ArtefactError(str(path), expected="a file of the artefact", found="none", remedy=_DAMAGED)
        if (size := path.stat().st_size) != facts["bytes"]:
            expected, found = f"sha256 {facts['sha256'][:12]}... of {facts['bytes']} bytes", f"{size} bytes"
            raise ArtefactError(str(path), expected=expected, found=found, remedy=_DAMAGED)
        if (found := _hash(path)) != facts["sha256"]:
            expected, found = f"sha256 {facts['sha256'][:12]}...", f"{found[:12]}..."
            raise ArtefactError(str(path), expected=expected, found=found, remedy=_DAMAGED)
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # of run time: it went after it was hashed
        raise ArtefactError(str(path), expected="tensors", found=str(error), remedy=_DAMAGED) from error
