"""The options that commands share, and the names that stand for choices on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .arguments import checked
from .importance import Activation, Magnitude, Obs, Ranking, Wanda
from .limits import Batch, Count, Guidance, Rounds, Seed, Steps
from .measures import ImagePSNR, ImageSSIM, LatentSNR, Measure
from .pipeline import Sampling
from .placements import Compact, Resident, Saved, Streamed


class Dtype(StrEnum):
    """Arithmetic of the pipeline."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Scheduler(StrEnum):
    """Samplers that a model's own can be exchanged for."""

    DDIM = "DDIMScheduler"
    DPM = "DPMSolverMultistepScheduler"
    EULER = "EulerDiscreteScheduler"
    PNDM = "PNDMScheduler"
    UNIPC = "UniPCMultistepScheduler"


class RankingName(StrEnum):
    """How groups are ranked."""

    OBS = "obs"
    WANDA = "wanda"
    MAGNITUDE = "magnitude"
    ACTIVATION = "activation"


class MeasureName(StrEnum):
    """How close a result is to the dense one."""

    SNR = "snr"
    PSNR = "psnr"
    SSIM = "ssim"


class Prune(StrEnum):
    """What a level removes."""

    WIDTH = "width"
    DEPTH = "depth"
    BOTH = "width,depth"


class PlacementName(StrEnum):
    """Where the weights of the stages wait."""

    AUTO = "auto"
    RESIDENT = "resident"
    STREAMED = "streamed"
    COMPACT = "compact"


RANKINGS: dict[RankingName, Ranking] = {
    RankingName.OBS: Obs(),
    RankingName.WANDA: Wanda(),
    RankingName.MAGNITUDE: Magnitude(),
    RankingName.ACTIVATION: Activation(),
}

MEASURES: dict[MeasureName, Measure] = {
    MeasureName.SNR: LatentSNR(),
    MeasureName.PSNR: ImagePSNR(),
    MeasureName.SSIM: ImageSSIM(),
}

PLACEMENTS: dict[PlacementName, Saved | None] = {
    PlacementName.AUTO: None,
    PlacementName.RESIDENT: Resident(),
    PlacementName.STREAMED: Streamed(),
    PlacementName.COMPACT: Compact(),
}


@checked("")
@dataclass(frozen=True)
class Images:
    """What `diff-es sample` is asked for."""

    count: Count
    seed: Seed
    steps: Steps | None  # None: those of the artefact
    guidance: Guidance | None

    def of(self, sampling: Sampling) -> Sampling:
        """The artefact's setting with what is asked for instead."""
        steps = sampling.steps if self.steps is None else self.steps
        guidance = sampling.guidance if self.guidance is None else self.guidance
        return replace(sampling, num_inference_steps=steps, guidance_scale=guidance)


@checked("")
@dataclass(frozen=True)
class Trials:
    """What `diff-es bench` is asked for."""

    batch: tuple[Batch, ...]
    rounds: Rounds


Model = Annotated[
    str,
    typer.Argument(
        help="'bundled', 'bundled-unet', a folder in diffusers format, a .safetensors file of SD or SDXL, or a hub id"
    ),
]
Config = Annotated[
    str | None, typer.Option("--config", help="for a .safetensors file: a folder with its configurations")
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="text file, one prompt a line; default the model's prompts.txt or 64 of ours"),
]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="what guidance leads away from")]
NumInferenceSteps = Annotated[
    int | None,
    typer.Option("--num-inference-steps", "--steps", help="sampler steps, as you sample; default the pipeline's own"),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", "--guidance", help="as you sample; default the pipeline's own"),
]
Height = Annotated[int | None, typer.Option("--height", help="in pixels; default the pipeline's own")]
Width = Annotated[int | None, typer.Option("--width", help="in pixels; default the pipeline's own")]
Frames = Annotated[int | None, typer.Option("--num-frames", "--frames", help="of a video; default the pipeline's own")]
Moved = Annotated[str | None, typer.Option("--model", help="the base model, if it is no longer where it was")]
Artefact = Annotated[Path, typer.Argument(help="what `diff-es compress --out` wrote")]
Point = Annotated[
    float | None, typer.Option(help="of the results for several budgets the best that is so many times cheaper")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]
InDtype = Annotated[Dtype | None, typer.Option("--dtype", help="default float32 on the CPU, bfloat16 elsewhere")]
OnDevice = Annotated[str | None, typer.Option("--device", help="default CUDA, then MPS, then the CPU")]
WithScheduler = Annotated[Scheduler | None, typer.Option(help="default the model's own")]
