"""Laws of the heap: freed memory stays with the process while it is held, and goes back when it no longer is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HELD = {"held twice", "closed twice, one of two", "held again", "routed"}
KIND, VERSION = platform.libc_ver()
pytestmark = pytest.mark.skipif(KIND != "glibc" or VERSION < "2.35", reason="a malloc that keeps less")


def stays(*what: str, **environment: str) -> dict[str, float]:
    """What :mod:`tests.helpers.heaps` prints in a process of its own: what others did to its heap matters."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-m", "tests.helpers.heaps", *what]
    here, chosen = Path(__file__).parents[2], {**own, **environment}
    run = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True, env=chosen, timeout=240)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def test_freed_memory_stays_while_anyone_holds_it_and_goes_when_nobody_does() -> None:
    found = stays("held", "routed")
    assert {name for name, megabytes in found.items() if megabytes > 80} == HELD
    assert {name for name, megabytes in found.items() if megabytes > 20} == HELD


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_malloc_that_the_user_adjusts_is_left_alone(name: str) -> None:
    value = "131072" if name.startswith("MALLOC_") else "glibc.malloc.trim_threshold=131072"
    assert max(stays("held", **{name: value}).values()) < 20
