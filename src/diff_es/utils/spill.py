"""What does not fit into memory waits in a file without a name, and is read back when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import NamedTuple
from weakref import finalize

import torch
from torch import Tensor

from .scratch import extended, scratch


class _Place(NamedTuple):
    start: int
    bytes: int
    shape: torch.Size
    dtype: torch.dtype


class Spill:
    """Tensors by key, on the disk of the temporary folder; nothing of it stays, however the process ends."""

    def __init__(self) -> None:
        self._file = scratch(0)
        finalize(self, self._file.close)
        self._places, self._end = dict[Hashable, _Place](), 0

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a copy; one that was kept under this key is no longer found.

        Raises:
            StorageError: the temporary folder has no room for it.
        """
        data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
        extended(self._file, self._end, data.nbytes)
        written = 0
        while written < data.nbytes:
            written += os.pwrite(self._file.fileno(), data[written : written + _PART], self._end + written)
        self._places[key] = _Place(self._end, data.nbytes, tensor.shape, tensor.dtype)
        self._end += data.nbytes

    def get(self, key: Hashable) -> Tensor:
        """On the CPU, in memory of its own.

        Raises:
            KeyError: there is none.
        """
        start, size, shape, dtype = self._places[key]
        found, read = torch.empty(shape, dtype=dtype), 0
        data = found.flatten().view(torch.uint8).numpy().data
        while read < size:
            read += os.preadv(self._file.fileno(), [data[read : read + _PART]], start + read)
        return found


_PART = 1 << 28
"""Bytes of one call of the system, which takes no more than two gigabytes."""
