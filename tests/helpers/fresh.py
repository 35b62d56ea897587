"""Saved results run in another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
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
model, artefacts, target = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
pipe = DiTPipeline.from_pretrained(model)
pipe.set_progress_bar_config(disable=True)
shown = {"dense": images(pipe).contiguous()}
for artefact in artefacts:
    with load(artefact).routed(pipe):
        shown[artefact] = images(pipe).contiguous()
save_file(shown, target)
"""


def images_of(model: Path, artefacts: Sequence[str], target: Path) -> dict[str, Tensor]:
    """By folder, what a user of each result gets, and under "dense" what a user of the base model gets."""
    command = [sys.executable, "-c", _RUN, str(model), *artefacts, str(target)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=240)
    return load_file(target)
