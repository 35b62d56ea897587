"""Where a pipeline came from and how it samples: what it takes to open it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath

from pydantic import JsonValue


@dataclass(frozen=True)
class Origin:
    """Of the pipeline that a result was made from."""

    model: str  # a name, a folder or a hub id; "" where it was made in memory, or is told to others
    dtype: str  # of the denoiser, such as "float32"
    scheduler: Mapping[str, JsonValue]  # its class as ``_class_name`` and its settings, as diffusers writes them
    config: str | None = None  # the folder of configurations, of a single file

    def told(self) -> Origin:
        """For others: without the folders of this machine, which are nobody's business and nowhere else."""
        config = None if self.config is None or PurePath(self.config).is_absolute() else self.config
        return replace(self, model="" if PurePath(self.model).is_absolute() else self.model, config=config)
