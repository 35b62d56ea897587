"""An attribute of an object, exchanged for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    """With another attribute of the object's own; its end restores what was there, be it that of the class."""
    own, missing = vars(owner), object()
    before = own.get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
