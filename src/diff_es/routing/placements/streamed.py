"""Weights in host memory: each stage's are copied to the device while the stage before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import Anatomy, Bypass, Plan, Weights, named_parameters, sequentially
from ...utils.arguments import checked
from ...utils.limits import Room
from ...utils.scratch import scratch
from ..realise import owned_by, realise
from ..switch import Content, Switch
from .contract import Store, distinct, parameter_bytes
from .resident import Resident

_ALIGNMENT = 64  # bytes


@checked()
@dataclass(frozen=True)
class Streamed:
    """The library waits in host memory (pinned; for a CPU, in a memory-mapped file), the dense weights that it replaces
    too; the device holds what runs, and as much of the next stage as ``limit`` allows.

    Args:
        limit: the most bytes of weights on the device, relative to the dense model's. Two stages are never exceeded;
            what does not fit beside the current stage is copied at the switch.
    """

    limit: Room = 1.15

    def open(self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> Store:
        if sequentially(denoiser):  # its hooks stream already
            return Resident().open(denoiser, anatomy, plans)
        return StreamedStore(denoiser, anatomy, plans, self.limit)


@dataclass(frozen=True)
class _Chunk:
    """Tensors of one block, in one stretch of host memory, so that one copy moves them all."""

    flat: Tensor  # uint8
    entries: Mapping[str, tuple[int, torch.dtype, torch.Size]]  # name: (offset, type, shape)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors inside a copy of ``flat``."""
        found = dict[str, Tensor]()
        for name, (offset, dtype, shape) in self.entries.items():
            size = shape.numel() * dtype.itemsize
            found[name] = flat[offset : offset + size].view(dtype).view(shape)
        return found


@dataclass(frozen=True)
class _Shelf:
    """What waits for one plan: its tensors in chunks, in the order of the forward, and its integers."""

    chunks: tuple[_Chunk, ...]
    counts: Mapping[str, int]
    picks: Mapping[str, Tensor]
    bypasses: Mapping[str, Mapping[str, str] | None]  # block: the names of its linear map's tensors, by their part


class StreamedStore:
    """Holds the current stage on the device, and the first chunks of the next one.

    While it is open, the dense parameters that any stage replaces lie in host memory themselves.

    Args:
        ahead: copy the next stage while the current one runs; by default where the device has streams of its own.

    Raises:
        StorageError: the temporary folder has no room for what waits; nothing has changed then.
    """

    def __init__(
        self, denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan], limit: float, *, ahead: bool | None = None
    ) -> None:
        parameters = dict(named_parameters(denoiser))
        self._device = next(iter(parameters.values())).device
        self._ahead = self._device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._limit = int(limit * parameter_bytes(denoiser))
        layers = {layer.name: layer for layer in anatomy.layers}
        gone = tuple({f"{block}." for plan in plans for block in plan.bypasses})
        touched = {key for plan in plans for key in plan.cuts} | {key for key in layers if key.startswith(gone)}
        replaced = {name for key in touched for name in owned_by(denoiser, layers[key])}
        self._dense = {name: parameters[name] for name in sorted(replaced)}
        dense = sum(parameter.nbytes + _ALIGNMENT for parameter in self._dense.values())
        self._room = dense * (len(distinct(plans)) + 1)  # bytes of host memory that are still needed, at most
        self._shelves = {id(plan): self._shelve(denoiser, anatomy, plan) for plan in distinct(plans)}
        self._keys, self._kept_alive = [id(plan) for plan in plans], tuple(plans)
        home = self._lay({name: parameter.data for name, parameter in self._dense.items()})
        self._switch, self._blocks = Switch(denoiser), {block.name: block for block in anatomy.blocks}
        self._base = parameter_bytes(denoiser) - sum(parameter.nbytes for parameter in self._dense.values())
        self._held, self._peak = dict[int, list[Tensor]](), self._base  # shelf: copies of its chunks on the device
        self._free = list[Tensor]()  # of the stage before, at a switch
        self._stage, self._start, self._active = -1, 0, 0  # now; where the trajectory began; the shelf in use
        self._content: Content = {}  # what the shelf in use puts in place
        self._waiting, self._away = home.views(home.flat), False  # dense values; whether parameters have them there
        self._send()

    @property
    def weight_bytes(self) -> int:
        return self._base + sum(copy.nbytes for copies in (*self._held.values(), self._free) for copy in copies)

    @property
    def peak_bytes(self) -> int:
        return self._peak

    def to(self, stage: int) -> None:
        self._send()
        if stage == self._stage:
            self._switch.put(self._content)
            return
        if stage < self._stage:  # a new trajectory, which begins here
            self._start = stage
        key, self._stage = self._keys[stage], -1
        if key == self._active:
            self._switch.put(self._content)
        else:
            self._switch.put({})  # lets go of the stage before
            self._active, self._content = 0, {}
            self._free = [copy for shelf, copies in self._held.items() if shelf != key for copy in copies]
            self._held = {shelf: copies for shelf, copies in self._held.items() if shelf == key}
            self._fetch(key, len(self._shelves[key].chunks))
            self._join()
            self._content = self._switch.prepare(self._weights(key))
            self._switch.put(self._content)
            self._active = key
        self._stage = stage
        if self._ahead:
            self._look_ahead(self._keys[stage + 1 if stage + 1 < len(self._keys) else self._start])

    def rest(self) -> None:
        self._switch.put({})

    def settle(self) -> None:
        if self._device.type != "cpu":  # whose own memory is the host's
            self._bring_back()

    def close(self) -> None:
        self._switch.put({})
        self._content = {}
        self._held.clear()
        self._bring_back()

    def _send(self) -> None:
        """Have the dense parameters wait in host memory."""
        if not self._away:
            self._away = True
            for name, view in self._waiting.items():
                self._dense[name].data = view

    def _bring_back(self) -> None:
        """Have them on the device again."""
        if self._away:
            for parameter in self._dense.values():
                parameter.data = parameter.data.to(self._device, copy=True)
            self._away = False

    def _shelve(self, denoiser: nn.Module, anatomy: Anatomy, plan: Plan) -> _Shelf:
        """Lay a plan's weights out in host memory, with the dense ones of whatever it leaves dense."""
        weights = realise(denoiser, anatomy, plan)
        tensors, bypasses = dict(weights.tensors), dict[str, Mapping[str, str] | None]()
        for block, bypass in weights.bypasses.items():
            parts = {} if bypass is None else bypass.tensors()
            bypasses[block] = None if bypass is None else {part: f"{block}|{part}" for part in parts}
            tensors |= {f"{block}|{part}": tensor for part, tensor in parts.items()}
        skipped = tuple(f"{block}." for block in bypasses)
        for name, parameter in self._dense.items():
            if not name.startswith(skipped):
                tensors.setdefault(name, parameter.data)
        groups = dict[str, dict[str, Tensor]]()
        for name in sorted(tensors, key=_natural):
            groups.setdefault(".".join(name.split(".")[:2]), {})[name] = tensors[name]
        chunks = tuple(self._lay(group) for group in groups.values())
        return _Shelf(chunks, weights.counts, weights.picks, bypasses)

    def _lay(self, tensors: Mapping[str, Tensor]) -> _Chunk:
        """Tensors laid out in one stretch of host memory."""
        entries, offset = dict[str, tuple[int, torch.dtype, torch.Size]](), 0
        for name, tensor in tensors.items():
            entries[name] = (offset, tensor.dtype, tensor.shape)
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        chunk = _Chunk(_host_memory(offset, self._device, self._room), entries)
        self._room -= offset
        for name, view in chunk.views(chunk.flat).items():
            view.copy_(tensors[name])
        return chunk

    def _fetch(self, key: int, count: int) -> None:
        """Have the first ``count`` chunks of a shelf on the device, copied on the side stream where there is one, into
        the memory of the stage before where it fits."""
        copies = self._held.setdefault(key, [])
        wanted = [chunk.flat for chunk in self._shelves[key].chunks[len(copies) : count]]
        sizes = {flat.nbytes for flat in wanted}
        self._free = [copy for copy in self._free if copy.nbytes in sizes]  # the rest goes before anything new comes
        if self._stream is not None:  # memory that was let go may still be read by the stage before
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for flat in wanted:
                reused = next((i for i, copy in enumerate(self._free) if copy.nbytes == flat.nbytes), None)
                copy = torch.empty_like(flat, device=self._device) if reused is None else self._free.pop(reused)
                copies.append(copy.copy_(flat, non_blocking=True))
                self._peak = max(self._peak, self.weight_bytes)
        self._free.clear()

    def _join(self) -> None:
        """Let the computation wait for what the side stream copied; the host does not wait."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _look_ahead(self, key: int) -> None:
        """Copy as much of a shelf as there is room for."""
        held = len(self._held.get(key, ()))
        room, count = self._limit - self.weight_bytes, held
        for chunk in self._shelves[key].chunks[held:]:
            room -= chunk.flat.nbytes
            if room < 0:
                break
            count += 1
        if count > held:
            self._fetch(key, count)

    def _weights(self, key: int) -> Weights:
        shelf, tensors, bypasses = self._shelves[key], dict[str, Tensor](), dict[str, Bypass | None]()
        for chunk, copy in zip(shelf.chunks, self._held[key], strict=True):
            tensors |= chunk.views(copy)
        for block, names in shelf.bypasses.items():
            parts = None if names is None else {part: tensors.pop(name) for part, name in names.items()}
            bypasses[block] = None if parts is None else Bypass(**parts)
        return Weights(tensors, shelf.counts, bypasses, self._blocks, shelf.picks)


def _natural(name: str) -> list[Any]:
    """Sorts block 2 before block 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.replace("|", ".").split(".")]


def _host_memory(size: int, device: torch.device, needed: int) -> Tensor:
    """uint8 (size,), one of several of ``needed`` bytes in all: pinned for a GPU; for a CPU, whose own memory is the
    device's, a file without a name."""
    if device.type == "cuda":
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    with scratch(size, needed) as file:
        return torch.from_file(f"/dev/fd/{file.fileno()}", shared=True, size=size, dtype=torch.uint8)
