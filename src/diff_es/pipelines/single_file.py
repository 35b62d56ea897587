"""Checkpoints in the format of their authors: which pipeline's they are, by the names of their tensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..utils.errors import UnsupportedModel
from .hub import PLACES


def kind_of_file(source: str) -> str:
    """The pipeline class of a checkpoint in the format of its authors, by the names of its tensors."""
    expected = "a checkpoint of Stable Diffusion or SDXL"
    if Path(source).exists() and not Path(source).is_file():
        raise UnsupportedModel(source, expected=expected, found="no regular file", remedy=PLACES)
    try:
        with safe_open(source, "pt") as file:
            names, inputs = set(file.keys()), 4
            if _FIRST in names:
                inputs = file.get_slice(_FIRST).get_shape()[1]
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(source, expected=expected, found=str(error), remedy=PLACES) from error
    starts = {".".join(name.split(".")[:3]) for name in names}
    remedy = "Convert it with diffusers and give the folder."
    if _FIRST not in names:
        found = f"no {_FIRST} among its {len(names)} tensors"
        raise UnsupportedModel(source, expected=expected, found=found, remedy=remedy)
    if inputs != 4:
        found = f"a denoiser of {inputs} input channels, as for inpainting"
        raise UnsupportedModel(source, expected=expected, found=found, remedy="Give the text-to-image checkpoint.")
    if "conditioner.embedders.1" in starts:
        return "StableDiffusionXLPipeline"
    if starts & {"cond_stage_model.transformer.text_model", "cond_stage_model.model.transformer"}:
        return "StableDiffusionPipeline"
    found = "a denoiser, but the text encoders of neither"
    raise UnsupportedModel(source, expected=expected, found=found, remedy=remedy)


_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
