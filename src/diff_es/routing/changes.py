"""Whether a denoiser is still what slim weights were made ready for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.compiled import submodule
from ..layers.contract import Anatomy
from ..layers.offload import hook_of, other_hooks
from .realise import owned_by

_SAMPLED = 16  # values of each parameter
_version = attrgetter("_version")


class Likeness:
    """What slim weights rely on in a denoiser, as it is now: which modules stand where, what hangs on them and on the
    blocks, which adapters are loaded, and the dense parameters that are exchanged.

    Args:
        denoiser: with its dense weights in place.
        anatomy: what may be exchanged or skipped in it.
    """

    def __init__(self, denoiser: nn.Module, anatomy: Anatomy) -> None:
        self._denoiser = denoiser
        names = sorted({name for layer in anatomy.layers for name in owned_by(denoiser, layer)})
        self.owners = {path: submodule(denoiser, path) for path in dict.fromkeys(map(_above, names))}
        self._owned = [vars(owner) for owner in self.owners.values()]
        blocks = [block.name for block in anatomy.blocks]
        homes = dict.fromkeys([*map(_above, self.owners), *(layer.home for layer in anatomy.layers), *blocks])
        self._homes = {path: submodule(denoiser, path) for path in homes}
        self._hooked = [denoiser, *(self._homes[name] for name in blocks)]
        self._edges = _edges(denoiser, [*self.owners, *self._homes])
        self._below = [below for below, _ in self._edges.values()]
        self._leaves = [leaf for _, leaf in self._edges.values()]
        self._children = list(map(dict.get, self._below, self._leaves))
        self._attributes = [vars(home) for home in self._homes.values()]
        self._places = [(self.owners[_above(name)], name.rpartition(".")[2]) for name in names]
        self._parameters = [owner._parameters[leaf] for owner, leaf in self._places]
        self._counted = [p for p in self._parameters if p is not None and not p.is_inference()]
        self._versions, self._hanging = self._versions_now(), self._hanging_now()
        self._names = [tuple(map(id, attributes.values())) for attributes in self._attributes]
        self._facts, self._values = self._facts_now(), _sampled(self._parameters)

    def changed(self) -> str | None:
        """What is other than it was, without a look at values; to be asked with the parameters' own dictionaries in
        place."""
        children = list(map(dict.get, self._below, self._leaves))
        if children != self._children:
            found = zip(self._edges, children, self._children, strict=True)
            return f"another module at {next(path for path, now, before in found if now is not before)}"
        if self._hanging != self._hanging_now():
            here = zip(self._homes, self._attributes, self._names, strict=True)
            paths = (path for path, attributes, names in here if names != tuple(map(id, attributes.values())))
            return f"something else on {next(paths, 'the denoiser')}"
        return None if self._versions == self._versions_now() else "weights that were written to"

    def rewritten(self, *, moves: bool) -> str | None:
        """What is other than it was in the dense parameters: their identity, type, device, or a sample of their values.

        Args:
            moves: whether they may lie elsewhere, as they do under offloading.
        """
        now = [owner._parameters.get(leaf) for owner, leaf in self._places]
        for (owner, leaf), before, after in zip(self._places, self._parameters, now, strict=True):
            if before is not after and hook_of(owner) is None:  # hooks put new ones there in every call
                return f"another {leaf} of a {type(owner).__name__}"
        told = 1 if moves else 2
        if [fact[:told] for fact in self._facts] != [fact[:told] for fact in self._facts_now()]:
            return "weights of another type or on another device"
        return None if torch.equal(self._values, _sampled(self._parameters)) else "weights of other values"

    def _hanging_now(self) -> list[Any]:
        """By identity: attributes of the modules that hold layers, the adapters, hooks of diffusers and accelerate."""
        own = vars(self._denoiser)
        loaded = tuple((name, id(config)) for name, config in own.get("peft_config", {}).items())
        here = list(map(id, chain.from_iterable(map(dict.values, self._attributes))))
        lengths = list(map(len, self._owned))
        return [here, lengths, loaded, id(own.get("_hf_hook")), list(map(other_hooks, self._hooked))]

    def _versions_now(self) -> list[int]:
        return list(map(_version, self._counted))

    def _facts_now(self) -> list[tuple[Any, ...]]:
        return [() if p is None or p.is_meta else (p.dtype, p.device) for p in self._parameters]


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def _edges(denoiser: nn.Module, paths: Iterable[str]) -> dict[str, tuple[dict[str, nn.Module | None], str]]:
    """Every step on the way from the denoiser to these modules: where the child is listed, and under which name."""
    edges = dict[str, tuple[dict[str, nn.Module | None], str]]()
    for path in paths:
        while path and path not in edges:
            above, _, leaf = path.rpartition(".")
            edges[path] = (submodule(denoiser, above)._modules, leaf)
            path = above
    return edges


def _sampled(parameters: Sequence[nn.Parameter | None]) -> Tensor:
    """A few values of each parameter, as the bits of float32, on the CPU; of one on the meta device, none."""
    rows = list[Tensor]()
    for parameter in parameters:
        if parameter is not None and not parameter.is_meta:
            flat = parameter.detach().flatten()
            rows.append(flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float())
    by_device = dict[torch.device, list[Tensor]]()
    for row in rows:
        by_device.setdefault(row.device, []).append(row)
    moved = {id(row): part for same in by_device.values() for row, part in zip(same, _moved(same), strict=True)}
    # as bits: what is not a number equals itself
    return torch.cat([moved[id(row)] for row in rows]).view(torch.int32) if rows else torch.empty(0)


def _moved(rows: Sequence[Tensor]) -> Sequence[Tensor]:
    """To the CPU, in one copy."""
    return torch.split(torch.cat(list(rows)).cpu(), [len(row) for row in rows])
