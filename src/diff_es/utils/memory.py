"""How much memory is free, how much is held, and how much was."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")
_LINUX, _OWN, _PEAK = Path("/proc/meminfo"), Path("/proc/self/statm"), Path("/proc/self/status")


def free_memory(device: torch.device) -> int:
    """Bytes of a device's memory that nothing uses yet; of the machine's own, what the system would give without
    swapping and a container's limit leaves, or half of all where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if _LINUX.exists():
        values = dict(line.split(":") for line in _LINUX.read_text().splitlines())
        return min(int(values["MemAvailable"].split()[0]) * 1024, _left_of_limit())
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_of_limit() -> int:
    """What a container may still take, where it has a limit: a control group of Linux, version 2, as seen from within.
    Pages of files that were read once go before anything else does."""
    try:
        most, used, pages = ((_GROUP / name).read_text() for name in ("memory.max", "memory.current", "memory.stat"))
    except FileNotFoundError:
        return sys.maxsize
    once = dict(line.split() for line in pages.splitlines())["inactive_file"]
    return sys.maxsize if most.strip() == "max" else max(0, int(most) - int(used) + int(once))


def held_memory(device: torch.device) -> int:
    """Bytes of a device's memory that this process holds; of the machine's own nothing, where the system does not
    say."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(_OWN.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if _OWN.exists() else 0


def peak_memory(device: torch.device) -> int:
    """Bytes of a device's memory that this process has held at the most; of the machine's own 0, where the system does
    not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    lines = _PEAK.read_text().splitlines() if _PEAK.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
