"""An append-only journal of evaluations: what lets a search be stopped at any moment and go on to the same result."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, Self

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError, model_validator

from ..search import Candidate
from ..utils.checking import validated
from ..utils.errors import DiffESError, StorageError
from ..utils.files import check_size, digest, write_text

_MOST_BYTES, _LONGEST = 2**30, 2**22
"""Of a journal, and of one of its lines: a hundred times what is known."""


_Whole = Annotated[int, Strict(), Field(ge=0)]
_Time = Annotated[float, Strict(), AllowInfNan(False)]


class Scale(StrEnum):
    """What a score was measured on; scores of different scales never meet."""

    ALL = "all"  # all probes of a search
    RUNG = "heat"  # those of the first rung of a race
    ALONE = "alone"  # single changes of one schedule, against that schedule


class CandidateJson(BaseModel):
    """What ``Candidate.to_json`` wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: Annotated[tuple[tuple[_Whole, ...], ...], Field(min_length=1)]
    steps: tuple[_Whole, ...] | None = None
    timesteps: Annotated[tuple[_Time, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def fits(self) -> Self:
        if self.steps is not None and len(self.steps) != len(self.levels):
            raise ValueError(f"steps of {len(self.levels)} stages")
        if self.steps is None and self.timesteps is not None:
            raise ValueError("steps beside timesteps")
        return self

    def made(self) -> Candidate:
        """The candidate."""
        return Candidate.of(self.levels, self.steps, self.timesteps or ())


class _Header(BaseModel):
    """The first line; ``sha256`` is that of the settings. Journals of earlier versions have none."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, object]
    sha256: Annotated[str, Strict()] | None = None


class _Line(BaseModel):
    """A score; ``check`` is a hash of it and of the settings. Journals of earlier versions have none."""

    model_config = ConfigDict(frozen=True)

    candidate: CandidateJson
    score: Annotated[float, Strict()]
    scale: Scale
    check: Annotated[str, Strict()] | None = None


@dataclass
class _Contents:
    """What a journal on disk holds."""

    header: _Header | None = None  # None: there is no journal
    lines: list[_Line] = field(default_factory=list)
    junk: int = 0  # lines that are none
    cut: bool = False  # whether the last line is incomplete


_HEADER, _BEGIN = TypeAdapter(_Header), b'{"settings"'
_REMEDY = "Choose another folder, or remove the file."


class Journal:
    """Scores by scale and candidate, kept in memory and, where a path is given, one JSON line each on disk.

    The first line holds the settings that the scores depend on; every other one has a check, of these settings and of
    what it says. A line cut short by a kill is left out when reading, and so is one that was damaged or edited: its
    candidate is evaluated again. Journals of earlier versions, which have no checks, get them when they are resumed.

    Who opens a journal on disk holds its file or its folder (``locks``), so that two searches never mix.

    Args:
        path: the file, or None to keep the scores in memory alone.
        settings: JSON values; a journal on disk with other settings is refused.
        resume: whether an existing file is read; otherwise it is an error if it holds scores.

    Attributes:
        dropped: how many damaged lines were left out when reading.

    Raises:
        DiffESError: the file belongs to other settings (the message names what changed), or exists without ``resume``.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, object], *, resume: bool) -> None:
        self.path, self.known, self.dropped = path, {scale: dict[Candidate, float]() for scale in Scale}, 0
        own: dict[str, object] = json.loads(json.dumps(settings))
        self._settings = digest(own)
        if path is None:
            return
        found = _read(path)
        earlier = None if found.header is None else found.header.sha256
        if (count := len(found.lines) + found.junk) and not resume:
            remedy = "Add --resume (resume=True) to go on, or choose another folder."
            raise DiffESError(
                str(path), expected="no earlier search", found=f"a journal of {count} evaluations", remedy=remedy
            )
        if count and found.header is not None:
            self._compare(found.header.settings, own)
        # settings that are equal may have been written otherwise, 4 or 4.0: lines were checked by those of their time
        whole = [line for line in found.lines if earlier is None or line.check == _check(earlier, line)]
        for line in whole:
            self.known[line.scale][line.candidate.made()] = line.score
        self.dropped = count - len(whole)
        if earlier != self._settings or self.dropped or found.cut:
            texts = [json.dumps({"settings": own, "sha256": self._settings}), *map(self._text, whole)]
            write_text(path, "".join(f"{text}\n" for text in texts))

    @classmethod
    def began_with(cls, path: Path) -> dict[str, object]:
        """The settings in a journal's first line; {} where there is none."""
        header = _read(path).header
        return {} if header is None else dict(header.settings)

    def _compare(self, before: dict[str, object], now: dict[str, object]) -> None:
        keys = before.keys() | now.keys()
        changed = sorted(key for key in keys if before.get(key) != now.get(key))
        if changed:
            found = ", ".join(f"{key} {before.get(key)!r} then and {now.get(key)!r} now" for key in changed)
            remedy = "Resume with the settings of the first run, or start anew in another folder."
            raise DiffESError(str(self.path), expected="the settings the search began with", found=found, remedy=remedy)

    def _text(self, line: _Line) -> str:
        candidate, check = line.candidate.made().to_json(), _check(self._settings, line)
        return json.dumps({"candidate": candidate, "score": line.score, "scale": line.scale, "check": check})

    def add(self, candidate: Candidate, score: float, scale: Scale = Scale.ALL) -> None:
        """Remember a score; on return it is on the disk.

        Raises:
            StorageError: the disk refused.
        """
        self.known[scale][candidate] = score
        if self.path is None:
            return
        text = self._text(_Line(candidate=CandidateJson.model_validate(candidate.to_json()), score=score, scale=scale))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            remedy = "Free some space and run again with --resume: what is in the journal is kept."
            raise StorageError(str(self.path), expected="room to write", found=str(error), remedy=remedy) from error


def _check(settings: str, line: _Line) -> str:
    """Of a score, under settings of this hash."""
    return digest([settings, line.candidate.made().to_json(), line.score, line.scale])[:16]


def _read(path: Path) -> _Contents:
    """What a journal holds; nothing where there is none."""
    try:
        check_size(path, _MOST_BYTES)
        with path.open("rb") as file:
            first = file.readline()  # with all prompts, which may be many
            if not first.endswith(b"\n") and _BEGIN.startswith(first[: len(_BEGIN)]):
                return _Contents()  # nothing, or cut short by a kill
            contents = _Contents(validated(_HEADER, json.loads(first), f"{path}: first line", _REMEDY, DiffESError))
            _read_lines(file, contents)
    except FileNotFoundError:
        return _Contents()
    except DiffESError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DiffESError(str(path), expected="a journal of Diff-ES", found=str(error), remedy=_REMEDY) from error
    assert contents.header is not None
    if contents.header.sha256 not in (None, digest(contents.header.settings)):
        remedy = "Put its first line back as it was, or choose another folder to start anew."
        expected = "the settings that the search began with"
        raise DiffESError(f"{path}: first line", expected=expected, found="others, edited since", remedy=remedy)
    return contents


def _read_lines(file: BinaryIO, contents: _Contents) -> None:
    """What follows the first line; a kill may have cut the last one short."""
    while text := file.readline(_LONGEST):
        long = False
        while len(text) == _LONGEST and not text.endswith(b"\n"):
            long, text = True, file.readline(_LONGEST)
        if not text.endswith(b"\n"):
            contents.cut = True
            return
        try:
            line = _Line.model_validate_json(b"" if long else text)
        except ValidationError:
            line = None
        if line is None or math.isnan(line.score):
            contents.junk += 1
        else:
            contents.lines.append(line)
