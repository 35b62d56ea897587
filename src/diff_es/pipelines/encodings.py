"""Prompts that are encoded once, however often they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..utils.calls import Args, Kwargs
from ..utils.patching import exchanged
from .families import Asked, Pipeline, family_of


class Encodings:
    """Encoded prompts by what was asked for, held on the CPU."""

    def __init__(self) -> None:
        self._held = dict[Any, Any]()

    def fetch(self, encode: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """What ``encode(*args, **kwargs)`` gives, run the first time only."""
        key = _key((args, kwargs))
        if key not in self._held:
            output = encode(*args, **kwargs)
            self._held[key] = tree_map_only(Tensor, lambda t: (t.device, t.cpu()), output)
            return output
        return _returned(self._held[key])


def _key(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_key(entry) for entry in value)
    if isinstance(value, dict):
        return tuple((name, _key(entry)) for name, entry in sorted(value.items()))
    return value


def _returned(held: Any) -> Any:
    if isinstance(held, tuple) and len(held) == 2 and isinstance(held[0], torch.device):
        return held[1].to(held[0])
    return type(held)(_returned(entry) for entry in held) if isinstance(held, list | tuple) else held


@contextmanager
def encoded_once(pipe: Pipeline, encodings: Encodings) -> Iterator[None]:
    """Let a text pipeline take prompts that it encoded before from ``encodings``; it must not change meanwhile."""
    family = family_of(pipe)
    if family is None or family.asked is not Asked.PROMPTS:
        yield
        return
    encode = pipe.encode_prompt
    with exchanged(pipe, "encode_prompt", lambda *args, **kwargs: encodings.fetch(encode, args, kwargs)):
        yield
