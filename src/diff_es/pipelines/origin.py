"""Where a pipeline came from and how it samples: what it takes to open it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue


@dataclass(frozen=True)
class Origin:
    """Of the pipeline that a result was made from."""

    model: str  # a name, a folder or a hub id; "" where it was made in memory
    dtype: str  # of the denoiser, such as "float32"
    scheduler: Mapping[str, JsonValue]  # its class as ``_class_name`` and its settings, as diffusers writes them
    config: str | None = None  # the folder of configurations, of a single file
