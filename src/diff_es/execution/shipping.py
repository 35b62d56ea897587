"""What workers are given: an object whose pipeline each of them opens itself, and whose tensors lie once on a machine.

Modules, parameters and other parts of the pipeline travel as their names. Where a pipeline was made in memory, or its
loop is the user's own, there is nowhere to open it from, so its weights travel with the object, once to each machine.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..layers import declared, fingerprint, remember
from ..pipelines.denoiser import device_of
from ..pipelines.loading import origin_of, reopen
from ..pipelines.origin import Origin
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.sampling import AnyPipeline, denoiser_of
from ..utils.errors import DiffESError

_PIPE = "pipe"


@dataclass(frozen=True)
class Shipped:
    """An object for other processes.

    Args:
        origin: where its pipeline is opened from; None: it is in the object.
        marks: of every part of the pipeline that has weights, a hash of their names and values.
        channels_last: the parts whose weights lie so in memory.
        content: the object but its tensors and its pipeline, and what was declared of the denoiser, pickled.
        arrays: the tensors, as they lie in memory.
        accelerated: whether its pipeline was on a GPU.
    """

    origin: Origin | None
    marks: Mapping[str, str]
    channels_last: tuple[str, ...]
    content: bytes
    arrays: tuple[NDArray[Any], ...]
    accelerated: bool

    @property
    def bytes(self) -> int:
        """That travel to each machine."""
        return len(self.content) + sum(array.nbytes for array in self.arrays)

    def opened(self, device: str) -> Any:
        """The object, with a pipeline on a device; its tensors are read, never written.

        Raises:
            DiffESError: where the pipeline came from, there is another one.
        """
        pipe = None if self.origin is None else reopen(self.origin, device=device)
        if pipe is not None:
            _check(pipe, self.marks)
            for name in self.channels_last:
                pipe.components[name].to(memory_format=torch.channels_last)
        value, pipe, known = _Opener(self, pipe, device).load()
        if known is not None:
            remember(denoiser_of(pipe), known)
        return value


def shipped(value: Any, pipe: AnyPipeline) -> Shipped:
    """An object, and the pipeline that it uses, for other processes.

    Raises:
        DiffESError: something in it cannot be pickled, or workers have no device of the pipeline's kind.
    """
    origin = None if isinstance(pipe, OwnSampler) else origin_of(pipe)
    if origin is not None and not origin.model:
        origin = None
    file, accelerated = io.BytesIO(), _accelerated(pipe)
    packer = _packer(file, {} if origin is None else _names(pipe))
    try:
        packer.dump((value, pipe, declared(denoiser_of(pipe))))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        expected, remedy = "what other processes can have a copy of", "Define classes and functions in a module."
        raise DiffESError("workers", expected=expected, found=str(error), remedy=remedy) from error
    marks, last = ({}, ()) if origin is None else (marks_of(pipe), _channels_last(pipe))
    return Shipped(origin, marks, last, file.getvalue(), tuple(packer.arrays), accelerated)


def _accelerated(pipe: AnyPipeline) -> bool:
    kind = device_of(denoiser_of(pipe)).type
    if kind not in ("cpu", "cuda"):
        expected, remedy = "a pipeline on the CPU or on a GPU of CUDA", "Take --device cpu, or this process alone."
        raise DiffESError("workers", expected=expected, found=f"one on {kind}", remedy=remedy)
    return kind == "cuda"


def _packer(file: io.BytesIO, names: Mapping[int, tuple[str, ...]]) -> Any:
    """A pickler that also takes what was defined in the script that was started, as Ray's does."""
    from ray import cloudpickle

    class Packer(cloudpickle.Pickler):
        def __init__(self) -> None:
            super().__init__(file, protocol=5)  # type: ignore[no-untyped-call]
            self.arrays, self._known = list[NDArray[Any]](), dict[int, tuple[object, ...]]()
            self._kept = list[Tensor]()  # so that no other takes its place in memory

        def persistent_id(self, value: object) -> object:
            if (named := names.get(id(value))) is not None:
                return named
            if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter) or value.is_meta:
                return None
            if id(value) not in self._known:
                self._known[id(value)] = ("tensor", len(self.arrays), *_about(value))
                self._kept.append(value)
                self.arrays.append(_array(value))
            return self._known[id(value)]

    return Packer()


def _about(value: Tensor) -> tuple[object, ...]:
    parameter = isinstance(value, nn.Parameter)
    return value.dtype, tuple(value.shape), _order(value), value.device.type != "cpu", parameter, value.requires_grad


def _order(value: Tensor) -> tuple[int, ...]:
    """Its dimensions, those farthest apart in memory first: results depend on the order in their last bits."""
    strides = value.stride()
    return tuple(sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis)))


def _array(value: Tensor) -> NDArray[Any]:
    """A tensor's bytes, as they lie in memory."""
    flat = value.detach().permute(_order(value)).cpu().contiguous().flatten()
    return np.asarray(flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8))


class _Opener(pickle.Unpickler):
    def __init__(self, shipped: Shipped, pipe: AnyPipeline | None, device: str) -> None:
        super().__init__(io.BytesIO(shipped.content))
        self._arrays, self._pipe, self._device, self._known = shipped.arrays, pipe, device, dict[int, Tensor]()

    def persistent_load(self, named: Any) -> Any:
        kind, *rest = named
        if kind == "tensor":
            index = rest[0]
            if index not in self._known:
                self._known[index] = self._tensor(*rest)
            return self._known[index]
        pipe: Any = self._pipe
        if kind == _PIPE:
            return pipe
        part = pipe.components[kind]
        if not rest:
            return part
        name, whole = rest
        if whole == "module":
            return part.get_submodule(name)
        return part.get_parameter(name) if whole == "parameter" else part.get_buffer(name)

    def _tensor(
        self,
        index: int,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        order: tuple[int, ...],
        moved: bool,
        parameter: bool,
        grad: bool,
    ) -> Tensor:
        array, laid = self._arrays[index], [shape[axis] for axis in order]
        with warnings.catch_warnings(action="ignore"):  # it lies where all processes of the machine read it
            found = torch.from_numpy(array).view(dtype).view(laid) if array.nbytes else torch.empty(laid, dtype=dtype)
        found = found.permute([order.index(axis) for axis in range(len(order))])
        found = found.to(self._device) if moved else found
        return nn.Parameter(found.clone(), requires_grad=grad) if parameter else found


def _names(pipe: Any) -> dict[int, tuple[str, ...]]:
    """The pipeline and its parts, by their identity."""
    found: dict[int, tuple[str, ...]] = {id(pipe): (_PIPE,)}
    for name, part in pipe.components.items():
        if part is not None and not isinstance(part, bool | int | float | str):
            found[id(part)] = (name,)
        if isinstance(part, nn.Module):
            found |= {id(one): (name, own, "module") for own, one in part.named_modules()}
            found |= {id(one): (name, own, "parameter") for own, one in part.named_parameters()}
            found |= {id(one): (name, own, "buffer") for own, one in part.named_buffers()}
    return found


def _parts(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def marks_of(pipe: Any) -> dict[str, str]:
    """Of every part of a pipeline that has weights, their hash; one with adapters is told from one without."""
    return {name: f"{fingerprint(part)}, {sum(1 for _ in part.parameters())}" for name, part in _parts(pipe).items()}


def _channels_last(pipe: Any) -> tuple[str, ...]:
    """The parts of which a kernel of a convolution lies so."""
    return tuple(name for name, part in _parts(pipe).items() if any(map(_lies_last, part.parameters())))


def _lies_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def _check(pipe: AnyPipeline, marks: Mapping[str, str]) -> None:
    own = marks_of(pipe)
    if changed := sorted(name for name in own.keys() | marks.keys() if own.get(name) != marks.get(name)):
        remedy = (
            "Save it with `save_pretrained`, adapters fused, and load it from there, in a folder that all machines see."
        )
        expected, found = "the same weights as in the process that asks", f"another {', '.join(changed)}"
        raise DiffESError(f"worker, {origin_of(pipe).model}", expected=expected, found=found, remedy=remedy)
