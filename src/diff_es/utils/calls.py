"""The arguments of a call that is not ours, whatever they are."""

from __future__ import annotations

from typing import Any, TypeAlias

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]
