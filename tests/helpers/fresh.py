"""Saved results run in another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

_RUN = """
import sys
import torch
from diffusers import DiTPipeline
from safetensors.torch import save_file
torch.set_num_threads(1)
from diff_es import load
from tests.helpers.tiny import images
shown = {}
for model, artefact in zip(sys.argv[1:-1:2], sys.argv[2:-1:2]):
    pipe = DiTPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    shown[model] = images(pipe).contiguous()
    with load(artefact).routed(pipe):
        shown[artefact] = images(pipe).contiguous()
save_file(shown, sys.argv[-1])
"""


def images_of(results: Sequence[tuple[str, str]], target: Path) -> dict[str, Tensor]:
    """What a user gets, by folder: of each model, and of each result that goes with it."""
    command = [sys.executable, "-c", _RUN, *chain(*results), str(target)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=240)
    return load_file(target)
