"""Slim layers by data: smaller tensors and a few integers put in place of the dense ones, and taken out again."""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import setitem
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..layers.compiled import submodule
from ..layers.convolutions import Convolution, Transposed
from ..layers.offload import hook_of, leads_others, listed_by_groups, other_hooks
from ..layers.plan import Weights
from ..utils.calls import Kwargs
from ..utils.errors import DiffESError
from .bypass import picking, stand_in


class Entry(NamedTuple):
    """What a stage puts into one place: a dictionary of a module, or a list of parameters."""

    place: Any
    key: Any
    value: Any


_NOTHING = object()
Content = Mapping[str, Entry]
"""Everything that a stage puts in place, by the name of the place."""


class Switch:
    """Puts a denoiser's weights for one stage in place, and gives back what was there.

    Nothing is copied or gathered: a switch exchanges references, and ``put({})`` puts back what the switch before it
    found, to the bit, whoever had put it there. The module keeps no trace. Of a module that is offloaded sequentially,
    what is exchanged is the map that its hook reads from, and the shapes of its parameters on the meta device; where
    group offloading lists parameters, they are exchanged in its lists too.

    References change inside of one call of the interpreter's own code, so that no signal and no other thread finds
    half of them.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._listed = listed_by_groups(denoiser)
        self._active: Content = {}
        self._before: Sequence[Entry] = ()  # what was in the places that are changed now

    def to(self, weights: Weights) -> None:
        """Run with these weights from now on."""
        self.put({})
        self.put(self.prepare(weights))

    def put(self, content: Content) -> None:
        """Run with what :meth:`prepare` made from now on; every other place is as it was."""
        if content is self._active:
            return
        _restore(self._before)
        self._active, self._before = {}, ()
        if not content:
            return
        places, keys, values = zip(*content.values(), strict=True)
        self._before = list(map(Entry, places, keys, map(_found, places, keys)))
        _exchange(places, keys, values)
        self._active = content

    def prepare(self, weights: Weights) -> Content:
        """What these weights put where, ready for :meth:`put`, any number of times; made while all is dense."""
        content, waiting = dict[str, Entry](), dict[str, dict[str, Tensor]]()
        for name, tensor in weights.tensors.items():
            path, _, leaf = name.rpartition(".")
            module = submodule(self._denoiser, path)
            dense = module._parameters[leaf]  # None: a bias that the dense layer does not have
            # as the dense one says, because compiled code asks: a copy of a dense weight then runs the dense code
            trained = dense is not None and dense.requires_grad and not tensor.is_inference()
            if hook_of(module) is not None:
                waiting.setdefault(path, {})[leaf] = tensor
                tensor = tensor.to("meta")
            parameter = nn.Parameter(tensor, requires_grad=trained)
            content[name] = Entry(module._parameters, leaf, parameter)
            if (listed := self._listed.get(dense)) is not None:
                content[f"{name}|group"] = Entry(*listed, parameter)
            content |= self._sizes(name, tensor, weights.counts)
        for path, tensors in waiting.items():
            own = vars(hook_of(submodule(self._denoiser, path)))
            content[f"{path}|weights_map"] = Entry(own, "weights_map", ChainMap(tensors, own["weights_map"]))
        for name, value in weights.counts.items():
            content[name] = self._attribute(name, value)
        for name, picks in weights.picks.items():
            path, _, argument = name.rpartition(".")
            module = submodule(self._denoiser, path)
            forward = picking(module, vars(module).get("forward"), argument, picks)
            content[f"{path}.forward"] = self._attribute(f"{path}.forward", forward)
        for name, bypass in weights.bypasses.items():
            _check_skipped(name, submodule(self._denoiser, name))
            forward = stand_in(self._denoiser, weights.blocks[name], bypass)
            content[f"{name}.forward"] = self._attribute(f"{name}.forward", forward)
        return content

    def _attribute(self, name: str, value: Any) -> Entry:
        """By the dictionary of the module: its own way of setting attributes would only be slower."""
        path, _, leaf = name.rpartition(".")
        return Entry(vars(submodule(self._denoiser, path)), leaf, value)

    def _sizes(self, name: str, tensor: Tensor, counts: Mapping[str, int]) -> dict[str, Entry]:
        """What a module says of its shape, where its weight has another."""
        path, _, leaf = name.rpartition(".")
        module, sizes = submodule(self._denoiser, path), Kwargs()
        if leaf == "weight":
            if isinstance(module, nn.Linear):
                sizes = {"out_features": tensor.shape[0], "in_features": tensor.shape[1]}
            elif isinstance(module, Convolution):
                groups, names = counts.get(f"{path}.groups", module.groups), ("out_channels", "in_channels")
                names = names[::-1] if isinstance(module, Transposed) else names
                sizes = dict(zip(names, (tensor.shape[0], tensor.shape[1] * groups), strict=True))
            elif isinstance(module, nn.GroupNorm):
                sizes = {"num_channels": tensor.shape[0]}
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                sizes = {"normalized_shape": tuple(tensor.shape)}
        return {f"{path}.{key}": self._attribute(f"{path}.{key}", value) for key, value in sizes.items()}


def _found(place: Any, key: Any) -> Any:
    return place[key] if isinstance(place, list) else place.get(key, _NOTHING)


def _exchange(places: Sequence[Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
    deque(map(setitem, places, keys, values), maxlen=0)


def _restore(before: Sequence[Entry]) -> None:
    if there := [one for one in before if one.value is not _NOTHING]:
        _exchange(*zip(*there, strict=True))
    gone = [one for one in before if one.value is _NOTHING]
    deque(map(dict.pop, [one.place for one in gone], [one.key for one in gone], repeat(None)), maxlen=0)


def _check_skipped(name: str, block: nn.Module) -> None:
    """Whether a block can be skipped although something hangs on it."""
    expected = "a block that may be skipped"
    if leads_others(block):
        remedy = "Enable group offloading with num_blocks_per_group=1, or with leaf_level."
        found = "one that brings in or takes out a group of several"
        raise DiffESError(name, expected=expected, found=found, remedy=remedy)
    if others := other_hooks(block):
        remedy = "Take the hooks off (a cache: disable_cache()), or run a result that skips no blocks."
        found = f"one with hooks of diffusers on it, {', '.join(others)}"
        raise DiffESError(name, expected=expected, found=found, remedy=remedy)
