"""What `inspect` finds in SDXL, and what it takes: the real configuration, random weights, no network.

    python benchmarks/inspect_sdxl.py

The text encoders have SDXL's widths and one layer, the autoencoder is tiny: neither is inspected. Prints how many
groups there are, whether the MACs of the units add up to the dense model's, and the most memory of the process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import torch
from common import options
from published_sizes import sdxl, sdxl_pipeline

from diff_es.evaluation.inspection import inspect
from diff_es.utils.memory import peak_memory
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    channels: Annotated[tuple[int, ...], "of the UNet's three resolutions, multiples of 64"] = (320, 640, 1280)
    blocks: Annotated[tuple[int, ...], "of its transformers at each of them; the first has none"] = (1, 2, 10)


def main() -> None:
    asked = options(Options, __doc__)
    unet = sdxl(asked.channels, asked.blocks)
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    pipe = sdxl_pipeline(unet)
    cpu, began = torch.device("cpu"), time.perf_counter()
    before = peak_memory(cpu)
    found = inspect(pipe, 8, Reporter())
    seconds, layers, units = time.perf_counter() - began, found["layers"], found["units"]
    print(f"{len(layers)} layers and blocks in {len(units)} units, {seconds:.0f} s")
    total = found["macs_of_no_level"] + sum(unit["macs_by_level"][0] for unit in units)
    print(f"MACs of a call {found['macs']:,}, of the units and the rest {total:,}")
    sizes = [f"{size / 1e9:.2f} GB" for size in (weights, before, peak_memory(cpu))]
    print("weights {}, most memory before {}, with inspect {}".format(*sizes))


if __name__ == "__main__":
    main()
