"""How long a search takes on an H100 for models that people run: counted work times published throughput.

    python benchmarks/hours.py

Denoisers of the published configurations on the meta device, without weights: the search is gone through with made-up
scores (``compression/simulation.py``, which is checked against real runs), and each call counted by its MACs. Seconds
an image (or clip) are public figures for one H100 at the user's own steps; encoders, decoders and linear algebra are
not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import torch
from common import header, options, row
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, WanTransformer3DModel
from published_sizes import dit_xl_2_256, sdxl
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from diff_es import Method, OwnSampler, Sampling, Settings, Width, with_effort
from diff_es.compression.simulation import simulate
from diff_es.compression.survey import surveyed
from diff_es.pruning.budget import Budget
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Published:
    """A model, and how it is used."""

    make: Callable[[], nn.Module]
    latents: tuple[int, ...]
    inputs: Callable[[Tensor], dict[str, Any]]  # of a call beside latents and timestep
    steps: int
    batch: int
    seconds: float  # an image on one H100
    guided: bool = True  # two samples in each call
    whole: bool = False  # timesteps are integers
    unit: float = 1.0  # of the timesteps that the denoiser receives


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


MODELS = {
    "DiT-XL/2 256": Published(
        dit_xl_2_256,
        (4, 32, 32),
        lambda x: {"class_labels": torch.zeros(len(x), dtype=torch.long, device="meta")},
        steps=50,
        batch=16,
        seconds=0.1,
        whole=True,
    ),
    "SDXL 1024": Published(
        sdxl,
        (4, 128, 128),
        lambda x: {
            "encoder_hidden_states": empty(len(x), 77, 2048),
            "added_cond_kwargs": {"text_embeds": empty(len(x), 1280), "time_ids": empty(len(x), 6)},
        },
        steps=30,
        batch=4,
        seconds=2.5,
        whole=True,
    ),
    "SD3.5-medium": Published(
        lambda: SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ),
        (16, 128, 128),
        lambda x: {"encoder_hidden_states": empty(len(x), 333, 4096), "pooled_projections": empty(len(x), 2048)},
        steps=28,
        batch=4,
        seconds=2.5,
    ),
    "FLUX.1-dev": Published(
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        (4096, 64),
        lambda x: {
            "encoder_hidden_states": empty(len(x), 512, 4096),
            "pooled_projections": empty(len(x), 768),
            "img_ids": empty(4096, 3),
            "txt_ids": empty(512, 3),
            "guidance": empty(len(x)),
        },
        steps=28,
        batch=4,
        seconds=7.0,
        guided=False,
        unit=0.001,
    ),
    "PixArt-Sigma": Published(
        lambda: PixArtTransformer2DModel(
            sample_size=128,
            num_layers=28,
            caption_channels=4096,
            cross_attention_dim=1152,
            out_channels=8,
            use_additional_conditions=False,
        ),
        (4, 128, 128),
        lambda x: {
            "encoder_hidden_states": empty(len(x), 300, 4096),
            "encoder_attention_mask": empty(len(x), 300),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        steps=20,
        batch=4,
        seconds=1.5,
        whole=True,
    ),
    "Wan2.1-1.3B": Published(
        lambda: WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, qk_norm="rms_norm_across_heads"
        ),
        (16, 21, 60, 104),
        lambda x: {"encoder_hidden_states": empty(len(x), 512, 4096)},
        steps=50,
        batch=1,
        seconds=75.0,
    ),
}


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], "which of them", tuple(MODELS)] = tuple(MODELS)
    effort: Annotated[float, "share of the thorough search's work; 0.1 is the default of the library"] = 0.1
    memory: Annotated[float, "GB for statistics, weights of levels and known steps"] = 35.0
    stages: Annotated[int, "that the trajectory is cut into"] = 10


def sampler(model: Published) -> OwnSampler:
    """The denoiser without weights, and a loop that calls it as its pipeline would."""
    with torch.device("meta"):
        denoiser = model.make().eval()
    denoiser.forward = on_meta(denoiser.forward)

    def loop(denoiser: nn.Module, noise: Tensor, times: Sequence[float], correct: Callable[..., Tensor]) -> Tensor:
        x = noise
        for time in times:
            given = torch.cat([x, x]) if model.guided else x
            denoiser(given, timestep=torch.full((len(given),), time * model.unit), **model.inputs(given))
            x = correct(x, x)
        return x

    times: list[Any] = [1000 * (1 - i / model.steps) for i in range(model.steps)]
    times = [round(time) - 1 for time in times] if model.whole else times
    return OwnSampler(denoiser, loop, model.latents, times, corrects=True)


def on_meta(forward: Callable[..., Any]) -> Callable[..., Any]:
    """With its arguments on the meta device; hooks before it have read the timestep."""

    @wraps(forward)
    def moved(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda one: one.to("meta"), (args, kwargs))
        return forward(*args, **kwargs)

    return moved


def main(asked: Options) -> None:
    header("model", "units", "calibration", "sensitivities", "search and final", "dense images in all", "H100 hours")
    for name in asked.models:
        model = MODELS[name]
        method = Method(Width(multiple=64, dense=()))
        settings = Settings(sampling=Sampling(batch=model.batch), stages=asked.stages, method=method)
        own, budget = with_effort(settings, asked.effort), Budget.of(None)
        known = surveyed(sampler(model), own, Reporter(quiet=True), budget)
        work, image = simulate(known, round(asked.memory * 1e9)), known.counter.dense() * len(known.trace.timesteps)
        parts = (work.calibration.macs, work.sensitivity.macs)
        rest = work.macs - sum(parts)
        total = work.macs / image
        cells = [f"{part / image:,.0f}" for part in (*parts, rest)]
        row(name, str(len(known.units)), *cells, f"{total:,.0f}", f"{total * model.seconds / 3600:.2f}")


if __name__ == "__main__":
    main(options(Options, __doc__))
