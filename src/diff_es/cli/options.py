"""The options that commands share, and the names that stand for choices on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ..pipelines.families import Sampling
from ..pruning.importance import Activation, Magnitude, Obs, Ranking, Wanda
from ..routing.placements import Compact, Resident, Saved, Streamed
from ..scoring.distribution import Blend, Distribution
from ..scoring.fidelity import BandSNR, ImagePSNR, ImageSSIM, LatentSNR, Measure
from ..utils.arguments import checked
from ..utils.limits import Batch, Count, Guidance, Rounds, Seed, Steps


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
    ANCESTRAL = "EulerAncestralDiscreteScheduler"
    LCM = "LCMScheduler"
    PNDM = "PNDMScheduler"
    TCD = "TCDScheduler"
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
    BANDS = "bands"
    PSNR = "psnr"
    SSIM = "ssim"
    DISTRIBUTION = "distribution"
    BLEND = "blend"


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
    MeasureName.BANDS: BandSNR(),
    MeasureName.PSNR: ImagePSNR(),
    MeasureName.SSIM: ImageSSIM(),
    MeasureName.DISTRIBUTION: Distribution(),
    MeasureName.BLEND: Blend(),
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
    guidance_scale: Guidance | None

    def of(self, sampling: Sampling) -> Sampling:
        """The artefact's setting with what is asked for instead."""
        steps = sampling.steps if self.steps is None else self.steps
        guidance = sampling.guidance if self.guidance_scale is None else self.guidance_scale
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
        help="'bundled', 'bundled-turbo', 'bundled-unet', a folder in diffusers format, a .safetensors file of SD or "
        "SDXL, or a hub id"
    ),
]
Config = Annotated[str | None, typer.Option("--config", help="Folder with the configurations of a .safetensors file.")]
Moved = Annotated[str | None, typer.Option("--model", help="The base model, if it is no longer where it was.")]
Artefact = Annotated[Path, typer.Argument(help="what `diff-es compress --out` wrote")]
ArtefactOrNone = Annotated[Path | None, typer.Argument(metavar="DIR", help="what `diff-es compress --out` wrote")]
Point = Annotated[
    float | None,
    typer.Option(help="Of the results for several budgets, take the best that is so many times cheaper, such as 1.4."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
InDtype = Annotated[
    Dtype | None, typer.Option("--dtype", help="Arithmetic of the pipeline; default float32 on the CPU, else bfloat16.")
]
OnDevice = Annotated[
    str | None, typer.Option("--device", help="Device to run on; default CUDA, then MPS, then the CPU.")
]


@dataclass(frozen=True)
class SizeOptions:
    """What images or videos are sampled."""

    title: ClassVar = "What you sample with"

    height: Annotated[int | None, typer.Option(help="Height of the images in pixels; default the pipeline's own.")] = (
        None
    )
    width: Annotated[int | None, typer.Option(help="Width of the images in pixels; default the pipeline's own.")] = None
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", "--frames", help="Frames of a video; default the pipeline's own.")
    ] = None


@dataclass(frozen=True)
class SamplingOptions(SizeOptions):
    """The user's own setting."""

    title: ClassVar = "What you sample with"

    num_inference_steps: Annotated[
        int | None,
        typer.Option("--num-inference-steps", "--steps", help="Sampler steps; default the pipeline's own."),
    ] = None
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", "--guidance", help="Guidance; default the pipeline's own.")
    ] = None
    batch: Annotated[int, typer.Option(help="Samples per pipeline call.")] = 16
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file with one prompt a line; default the model's prompts.txt, or 64 of ours."),
    ] = None
    scheduler: Annotated[Scheduler | None, typer.Option(help="Sampler to use in place of the model's own.")] = None

    def setting(self) -> Sampling:
        """As the library takes it."""
        sizes = self.height, self.width, self.num_frames
        return Sampling(self.num_inference_steps, self.guidance_scale, self.batch, self.negative_prompt, *sizes)
