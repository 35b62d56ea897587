"""The heap of the process: what a call of a denoiser on the CPU frees is kept for the next one.

PyTorch keeps freed memory of a GPU to itself; on the CPU it leaves it to malloc. That of glibc gives the end of the
heap back to the system, again and again, and every page of it is faulted in anew: up to a sixth of a call, and mostly
where calls differ in size, as those of a schedule do. Which runs pay for it is luck.
"""

from __future__ import annotations

import ctypes
import os
import platform
from threading import RLock
from weakref import finalize

import torch

_USUAL = ((-3, 32 << 20), (-1, 64 << 20))
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h, in bytes, as glibc sets them by itself in the end."""
_MOST = (1 << 31) - 1

_holders = 0
_lock = RLock()  # whoever holds it may collect garbage, and with it another holder


class Kept:
    """From now until all of these are closed, the process keeps freed memory of its heap, up to 2 GB.

    Without effect where the denoiser is not on the CPU, malloc is not glibc's, or the environment adjusts it already.
    """

    def __init__(self, device: torch.device) -> None:
        own = int(device.type == "cpu" and _adjustable())
        _add(own)
        self._end = finalize(self, _add, -own)
        self._end.atexit = False

    def close(self) -> None:
        """Let go; a second time, do nothing. What nobody refers to any more lets go by itself."""
        self._end()


def give_back() -> None:
    """Let the system have what is free between what is held: small things that stay, made among large ones that go,
    keep a heap from shrinking by itself. Without effect where malloc is not glibc's."""
    if _of_glibc():
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _of_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _adjustable() -> bool:
    adjusted = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    return _of_glibc() and not adjusted and not any(n.startswith("MALLOC_") for n in os.environ)


def _add(holders: int) -> None:
    global _holders
    with _lock:
        before, _holders = _holders, _holders + holders
        if bool(before) == bool(_holders):
            return
        libc = ctypes.CDLL(None)
        for which, usual in _USUAL:
            if not (_holders and libc.mallopt(which, _MOST)):  # before 2.35 the first has a limit, which is the usual
                libc.mallopt(which, usual)
        if not _holders:
            give_back()
