"""Attributes of objects, exchanged for a while."""

from __future__ import annotations

from collections import OrderedDict
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


@contextmanager
def untouched(*owners: object) -> Iterator[None]:
    """Objects whose attributes a library sets as it likes; the end restores them all, and what those that are plain
    dictionaries hold: of a module its parts and hooks, too."""
    kept = list[tuple[dict[str, Any], dict[str, Any]]]()
    for owner in owners:
        own = vars(owner)
        kept += [(held, dict(held)) for held in (own, *own.values()) if type(held) in (dict, OrderedDict)]
    try:
        yield
    finally:
        for now, before in kept:
            now.clear()
            now.update(before)
