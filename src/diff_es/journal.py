"""An append-only journal of evaluations: what lets a search be stopped at any moment and go on to the same result."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from .errors import DiffESError, StorageError
from .store import write_text

Levels = tuple[tuple[int, ...], ...]


class Scale(StrEnum):
    """What a score was measured on; scores of different scales never meet."""

    ALL = "all"  # all probes of a search
    HEAT = "heat"  # those of its first heat
    ALONE = "alone"  # single changes of one schedule, against that schedule


class Journal:
    """Scores by scale and candidate, kept in memory and, where a path is given, one JSON line each on disk.

    The first line holds the settings that the scores depend on. A line cut short by a kill is dropped when reading.

    Args:
        path: the file, or None to keep the scores in memory alone.
        settings: JSON values; a journal on disk with other settings is refused.
        resume: whether an existing file is read; otherwise it is an error if it holds scores.

    Raises:
        DiffESError: the file belongs to other settings (the message names what changed), or exists without ``resume``.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], *, resume: bool) -> None:
        self.path, self.known = path, {scale: dict[Levels, float]() for scale in Scale}
        if path is None:
            return
        lines = self._read(path)
        if len(lines) > 1 and not resume:
            remedy = "Add --resume (resume=True) to go on, or choose another folder."
            found = f"a journal of {len(lines) - 1} evaluations"
            raise DiffESError(str(path), expected="no earlier search", found=found, remedy=remedy)
        settings = json.loads(json.dumps(settings))
        if len(lines) > 1:
            self._check(lines[0]["settings"], settings)
            for line in lines[1:]:
                self.known[Scale(line["scale"])][tuple(tuple(row) for row in line["levels"])] = line["score"]
        text = "".join(json.dumps(line) + "\n" for line in [{"settings": settings}, *lines[1:]])
        write_text(path, text)

    @classmethod
    def began_with(cls, path: Path) -> dict[str, Any]:
        """The settings in a journal's first line; {} where there is none."""
        lines = cls._read(path)
        return dict(lines[0]["settings"]) if lines else {}

    def _refused(self, error: OSError) -> StorageError:
        remedy = "Free some space and run again with --resume: what is in the journal is kept."
        return StorageError(str(self.path), expected="room to write", found=str(error), remedy=remedy)

    def _check(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        keys = before.keys() | now.keys()
        changed = sorted(key for key in keys if before.get(key) != now.get(key))
        if changed:
            found = ", ".join(f"{key} {before.get(key)!r} then and {now.get(key)!r} now" for key in changed)
            remedy = "Resume with the settings of the first run, or start anew in another folder."
            raise DiffESError(str(self.path), expected="the settings the search began with", found=found, remedy=remedy)

    @staticmethod
    def _read(path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        try:
            # a kill may have cut the last line short: that evaluation is run again
            whole = [raw for raw in path.read_text(encoding="utf-8").splitlines(keepends=True) if raw.endswith("\n")]
            lines = [json.loads(raw) for raw in whole]
            if lines:
                lines[0]["settings"].keys()
            for line in lines[1:]:
                line["levels"], line["score"], Scale(line["scale"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "Choose another folder, or remove the file."
            raise DiffESError(str(path), expected="a journal of Diff-ES", found=str(error), remedy=remedy) from error
        return lines

    def add(self, levels: Levels, score: float, scale: Scale = Scale.ALL) -> None:
        """Remember a score; on return it is on the disk.

        Raises:
            StorageError: the disk refused.
        """
        self.known[scale][levels] = score
        if self.path is None:
            return
        line = {"levels": levels, "score": score, "scale": scale}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from error
