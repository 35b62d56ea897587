"""Folders of safetensors and one JSON manifest: written whole or not at all, checked by hash when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import ArtefactError, StorageError

MANIFEST = "diff-es.json"
FORMAT = 3
_REPLACE = "Choose another folder, or free some space and run the same command again."


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step.

    Raises:
        StorageError: the disk refused; the old file, if any, is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(
            str(path), expected="a file that can be written", found=str(error), remedy=_REPLACE
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is missing.

    Raises:
        StorageError: the disk refused, or there is a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(str(folder), expected="a folder", found=str(error), remedy=_REPLACE) from error


def check_outputs(folder: Path, *files: str) -> None:
    """Refuse, before any work is done, a folder that cannot be made or written to, or in which something else has the
    name of one of these files. Nothing is left behind.

    Raises:
        StorageError: the disk refuses, or there is a file, a device or a folder of such a name.
    """
    made = list[Path]()
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / name for name in files):
            if path.exists() and not path.is_file():
                raise StorageError(str(path), expected="a file", found="something else", remedy=_REPLACE)
    except OSError as error:
        there = os.path.isfile(folder)
        expected, found = ("a folder", "a file") if there else ("a folder to write to", str(error))
        raise StorageError(str(folder), expected=expected, found=found, remedy=_REPLACE) from error
    finally:
        with suppress(OSError):  # another run has begun to write there
            for part in reversed(made):
                part.rmdir()


def check_target(folder: Path) -> None:
    """Refuse, before any work is done, a folder that :func:`write_folder` would refuse.

    Raises:
        StorageError: the folder exists and is neither empty nor an artefact, it is a mount point, or it cannot be
            written to.
        ArtefactError: it holds an artefact that this version does not know.
    """
    folder = Path(os.path.realpath(folder))  # such as `.`, which is a folder like others
    check_outputs(folder)
    if folder.is_mount():
        found = "a mount point, which cannot be replaced in one step"
        raise StorageError(str(folder), expected="a folder", found=found, remedy="Name a folder inside it.")
    if (folder / MANIFEST).exists():
        read_manifest(folder)
    elif folder.exists() and any(p.suffix != ".jsonl" for p in folder.iterdir()):
        found, expected = "a folder with other files", "a new folder, an empty one or an earlier artefact"
        raise StorageError(str(folder), expected=expected, found=found, remedy=_REPLACE)


def write_folder(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    """Write ``{file stem: {name: tensor}}`` and the manifest; an artefact already there is replaced in one step.

    Whatever else lies beside an artefact, such as journals and reports, is kept.

    Raises:
        StorageError: the disk refused, or the folder is not ours to replace; nothing half-written stays.
    """
    folder = folder.resolve()  # a link keeps pointing at the artefact
    check_target(folder)
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        staging.chmod(0o755)
        files = {}
        for stem, group in tensors.items():
            target = staging / f"{stem}.safetensors"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}, target)
            files[target.name] = {"sha256": _hash(target), "bytes": target.stat().st_size}
        manifest = {"format": FORMAT, "diff_es": version("diff-es"), "files": files, **about}
        manifest["sha256"] = _digest(manifest)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            _carry_over(folder, staging)
            _swap(folder, staging)
        else:
            os.replace(staging, folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(str(folder), expected="room to write", found=str(error), remedy=_REPLACE) from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging)


def _carry_over(folder: Path, staging: Path) -> None:
    """Copy what lies beside an artefact's own files: journals, reports, whatever the user put there."""
    own = {MANIFEST}
    if (folder / MANIFEST).exists():
        own |= read_manifest(folder)["files"].keys()
    for entry in folder.iterdir():
        if entry.name not in own:
            if entry.is_dir():
                shutil.copytree(entry, staging / entry.name)
            else:
                shutil.copy2(entry, staging / entry.name)


def _swap(folder: Path, staging: Path) -> None:
    """Put one folder in another's place; if that fails, the old one is where it was."""
    old = staging.with_name(staging.name + ".old")
    os.replace(folder, old)
    try:
        os.replace(staging, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)


def _digest(manifest: Mapping[str, Any]) -> str:
    """The hash of a manifest's contents, itself left out."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact.

    Raises:
        ArtefactError: there is none, it is not JSON, or another version of the format wrote it.
    """
    path = folder / MANIFEST
    remedy = "Give the folder that `diff-es compress --out` wrote."
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(str(folder), expected=f"a {MANIFEST} in it", found="none", remedy=remedy) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(str(path), expected="a readable manifest", found=str(error), remedy=remedy) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = f"format {manifest.get('format')!r}" if isinstance(manifest, dict) else "other JSON"
        remedy = "Compress again with this version, or install the version that wrote it."
        raise ArtefactError(str(path), expected=f"format {FORMAT}", found=found, remedy=remedy)
    if manifest.get("sha256") != _digest(manifest):
        remedy = "The manifest was changed by hand or by another program: copy it again, or compress again."
        raise ArtefactError(str(path), expected="the hash of its contents", found="another", remedy=remedy)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        remedy = "The manifest was changed by hand or by another program: compress again."
        raise ArtefactError(str(path), expected="a hash for every file", found=repr(files)[:80], remedy=remedy)
    return manifest


def read_folder(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and the manifest of an artefact, every file checked against its hash.

    Raises:
        ArtefactError: a file is missing or its hash differs; the message names it.
    """
    manifest = read_manifest(folder)
    tensors = {}
    for name, facts in manifest["files"].items():
        path = folder / name
        remedy = "The artefact is damaged: copy it again, or compress again."
        if not path.is_file():
            raise ArtefactError(str(path), expected="a file of the artefact", found="none", remedy=remedy)
        if (digest := _hash(path)) != facts["sha256"]:
            expected, found = f"sha256 {facts['sha256'][:12]}...", f"{digest[:12]}..."
            raise ArtefactError(str(path), expected=expected, found=found, remedy=remedy)
        tensors[path.stem] = load_file(path)
    return tensors, manifest
