"""Slim layers by data: smaller tensors and a few integers put in place of the dense ones, and taken out again."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import DiffESError
from .compiled import submodule
from .contract import Weights
from .convolutions import Convolution, Transposed
from .offload import hook_of, leads_others, listed_by_groups
from .standin import picking, stand_in


class _Slot:
    """One place that a stage may change, its dense content, and how to put something there."""

    def __init__(self, put: Callable[[Any], None], dense: Any) -> None:
        self.put, self.dense = put, dense


class Switch:
    """Puts a denoiser's weights for one stage in place, and the dense ones back.

    Nothing is copied or gathered: a switch exchanges references. ``put({})`` and ``to(Weights())`` restore the dense
    state to the bit. The module keeps no trace of it afterwards. Of a module that is offloaded sequentially, what is
    exchanged is the map that its hook reads from, and the shapes of its parameters on the meta device; where group
    offloading lists parameters, they are exchanged in its lists too.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._slots = dict[str, _Slot]()
        self._listed = listed_by_groups(denoiser)
        self._active: Mapping[str, Any] = {}

    def to(self, weights: Weights) -> None:
        """Run with these weights from now on."""
        self.put(self.prepare(weights))

    def put(self, content: Mapping[str, Any]) -> None:
        """Run with what :meth:`prepare` made from now on; every other place is dense."""
        if content is self._active:
            return
        before, self._active = self._active, {**self._active, **content}  # what an interruption has to undo
        for key in before.keys() - content.keys():
            slot = self._slots[key]
            slot.put(slot.dense)
        for key, value in content.items():
            self._slots[key].put(value)
        self._active = content

    def prepare(self, weights: Weights) -> Mapping[str, Any]:
        """The content of every slot that the weights name, ready for :meth:`put`, any number of times."""
        content, waiting = dict[str, Any](), dict[str, dict[str, Tensor]]()
        for name, tensor in weights.tensors.items():
            path, _, leaf = name.rpartition(".")
            slot = self._parameter_slot(name)
            # as the dense one says, because compiled code asks: a copy of a dense weight then runs the dense code
            dense = self._slots[slot].dense  # None: a bias that the dense layer does not have
            trained = dense is not None and dense.requires_grad and not tensor.is_inference()
            if hook_of(submodule(self._denoiser, path)) is not None:
                waiting.setdefault(path, {})[leaf] = tensor
                tensor = tensor.to("meta")
            content[slot] = nn.Parameter(tensor, requires_grad=trained)
            content |= self._sizes(name, tensor, weights.counts)
        for path, tensors in waiting.items():
            slot = self._map_slot(path)
            content[slot] = ChainMap(tensors, self._slots[slot].dense)
        for name, value in weights.counts.items():
            content[self._attribute_slot(name)] = value
        for name, picks in weights.picks.items():
            path, _, argument = name.rpartition(".")
            slot = self._forward_slot(path)
            content[slot] = picking(submodule(self._denoiser, path), self._slots[slot].dense, argument, picks)
        for name, bypass in weights.bypasses.items():
            if leads_others(submodule(self._denoiser, name)):
                remedy = "Enable group offloading with num_blocks_per_group=1, or with leaf_level."
                found = "one that brings in or takes out a group of several"
                raise DiffESError(name, expected="a block that may be skipped", found=found, remedy=remedy)
            content[self._forward_slot(name)] = stand_in(self._denoiser, weights.blocks[name], bypass)
        return content

    def _parameter_slot(self, name: str) -> str:
        if name not in self._slots:
            path, _, leaf = name.rpartition(".")
            module = submodule(self._denoiser, path)
            owner, hook = module._parameters, hook_of(module)
            values = None if hook is None else hook.weights_map
            listed = self._listed.get(owner[leaf])

            def put(parameter: nn.Parameter | None) -> None:
                if parameter is not None and values is not None and hook_of(module) is not hook:
                    # the hook went away meanwhile, and with it what brings the dense values in
                    parameter = nn.Parameter(values[leaf], requires_grad=parameter.requires_grad)
                owner[leaf] = parameter
                if listed is not None:
                    entries, place = listed
                    entries[place] = parameter

            self._slots[name] = _Slot(put, owner[leaf])
        return name

    def _map_slot(self, path: str) -> str:
        name = f"{path}|weights_map"
        if name not in self._slots:
            own = vars(hook_of(submodule(self._denoiser, path)))
            self._slots[name] = _Slot(partial(own.__setitem__, "weights_map"), own["weights_map"])
        return name

    def _attribute_slot(self, name: str) -> str:
        if name not in self._slots:
            path, _, leaf = name.rpartition(".")
            own = vars(submodule(self._denoiser, path))  # an integer: nn.Module's own setattr would only be slower
            self._slots[name] = _Slot(partial(own.__setitem__, leaf), own[leaf])
        return name

    def _sizes(self, name: str, tensor: Tensor, counts: Mapping[str, int]) -> dict[str, Any]:
        """What a module says of its shape, where its weight has another."""
        path, _, leaf = name.rpartition(".")
        module, sizes = submodule(self._denoiser, path), dict[str, Any]()
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
        return {self._attribute_slot(f"{path}.{key}"): value for key, value in sizes.items()}

    def _forward_slot(self, name: str) -> str:
        key = f"{name}.forward"
        if key not in self._slots:
            module = submodule(self._denoiser, name)
            before = vars(module).get("forward")  # an earlier wrapper of the user's, if any

            def put(forward: Any) -> None:
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward

            self._slots[key] = _Slot(put, before)
        return key
