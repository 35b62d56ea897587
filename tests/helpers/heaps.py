"""Run as a script: prints as JSON how many MB of those that a tensor had stay with this process when it is gone.

python -m tests.helpers.heaps held routed    # or one of the two
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from diff_es.utils.malloc import Kept

CPU = torch.device("cpu")


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def noting(found: dict[str, float]) -> Callable[..., None]:
    """Notes by a name what stays beyond what is there now.

    Of a tensor of 100 MB while memory is held, else of 500: more than was given back so far, in the place of which it
    would stay wherever anything small lies behind.
    """
    before = resident()

    def note(name: str, *, held: bool = True) -> None:
        torch.ones(25_000_000 if held else 125_000_000)
        found[name] = resident() - before

    return note


def held(found: dict[str, float]) -> None:
    note = noting(found)
    note("never held", held=False)
    first, second = Kept(CPU), Kept(CPU)
    note("held twice")
    first.close()
    first.close()
    note("closed twice, one of two")
    second.close()
    note("closed both", held=False)
    third = Kept(CPU)
    note("held again")
    del third
    gc.collect()
    note("forgotten", held=False)
    other = Kept(torch.device("meta"))
    note("for another device", held=False)
    other.close()


def routed(found: dict[str, float]) -> None:
    from tests.helpers.tiny import denoiser  # diffusers, with which a process takes three times as long to start

    from diff_es.layers import DENSE, discover
    from diff_es.routing import routing
    from diff_es.routing.placements import Resident
    from diff_es.trajectory.stages import Stages

    model, note = denoiser(), noting(found)
    with routing.routed(model, Stages(()), partial(Resident().open, model, discover(model), (DENSE,))):
        note("routed")
    note("routed no more", held=False)


def main() -> None:
    found = dict[str, float]()
    for part in sys.argv[1:]:
        {"held": held, "routed": routed}[part](found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
