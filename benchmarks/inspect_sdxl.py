"""What `inspect` finds in SDXL, and what it takes: the real configuration, random weights, no network.

    python benchmarks/inspect_sdxl.py

The text encoders have SDXL's widths and one layer, the autoencoder is tiny: neither is inspected. Prints how many
groups there are, whether the MACs of the units add up to the dense model's, and the most memory of the process.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Annotated

from common import options
from published_sizes import sdxl, sdxl_pipeline

from diff_es.evaluation.inspection import inspect
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
    before, began = _peak(), time.perf_counter()
    found = inspect(pipe, 8, Reporter())
    seconds, layers, units = time.perf_counter() - began, found["layers"], found["units"]
    print(f"{len(layers)} layers and blocks in {len(units)} units, {seconds:.0f} s")
    total = found["macs_of_no_level"] + sum(unit["macs_by_level"][0] for unit in units)
    print(f"MACs of a call {found['macs']:,}, of the units and the rest {total:,}")
    sizes = [f"{size / 1e9:.2f} GB" for size in (weights, before, _peak())]
    print("weights {}, most memory before {}, with inspect {}".format(*sizes))


def _peak() -> int:
    """Bytes of the most memory that the process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
