"""Run as a script: prints as JSON how many MB of the 100 that a tensor had stay with this process when it is gone."""

from __future__ import annotations

import gc
import json
import os
from functools import partial
from pathlib import Path

import torch
from tests.helpers.tiny import denoiser

from diff_es.layers import DENSE, discover
from diff_es.routing.placements import Resident
from diff_es.routing.routing import routed
from diff_es.trajectory.stages import Stages
from diff_es.utils.malloc import Kept

CPU = torch.device("cpu")


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    model, found = denoiser(), dict[str, float]()
    route = partial(Resident().open, model, discover(model), (DENSE,))
    before = resident()

    def note(name: str) -> None:
        torch.ones(25_000_000)
        found[name] = resident() - before

    note("never held")
    first, second = Kept(CPU), Kept(CPU)
    note("held twice")
    first.close()
    first.close()
    note("closed twice, one of two")
    second.close()
    note("closed both")
    held = Kept(CPU)
    note("held again")
    del held
    gc.collect()
    note("forgotten")
    other = Kept(torch.device("meta"))
    note("for another device")
    other.close()
    with routed(model, Stages(()), route):
        note("routed")
    note("routed no more")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
