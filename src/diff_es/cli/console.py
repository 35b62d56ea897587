"""What all commands share: the terminal, opening what a user names, and the last line for programs."""

from __future__ import annotations

import codecs
import io
import json
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from ..compression.result import Compressed, load
from ..pipelines.families import Pipeline
from ..pipelines.loading import load as load_pipeline
from ..pipelines.loading import reopen
from ..utils.errors import ArtefactError
from .options import Dtype, Scheduler

out = Console(markup=False, emoji=False)  # names and paths are printed as they are


_PLAIN = {"–": "-", "—": "-", "•": "*", "×": "x", "…": "~", "≤": "<", "≥": ">", "’": "'"}


def print_anywhere() -> None:
    """From now on, what a terminal cannot show is printed as the nearest that it can, one character for each."""
    codecs.register_error("diff-es", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="diff-es")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    alike = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _PLAIN.get(character) or alike[:1] or "?"


def open_pipeline(
    model: str, dtype: Dtype | None, device: str | None, scheduler: Scheduler | None, config: str | None = None
) -> Pipeline:
    """The pipeline that a command's options name."""
    kind, name = None if dtype is None else getattr(torch, dtype.value), None if scheduler is None else scheduler.value
    return load_pipeline(model, dtype=kind, device=device, scheduler=name, config=config)


def reopened(
    folder: Path, model: str | None, device: str | None, point: float | None = None
) -> tuple[Compressed, Pipeline]:
    """An artefact and the pipeline it was made from, from its old place or its new one."""
    fast = load(folder, point)
    if fast.searched is None or fast.origin is None:
        found, remedy = "none: it was made by hand", "Use it from Python: diff_es.load(...).routed(...)."
        raise ArtefactError(str(folder), expected="what a search said of it", found=found, remedy=remedy)
    return fast, reopen(fast.origin, model, device)


def finish(result: Mapping[str, object], as_json: bool) -> None:
    """One JSON object as the last line, where it was asked for."""
    if as_json and sys.stdout is not None:
        sys.stdout.write(json.dumps(result) + "\n")
