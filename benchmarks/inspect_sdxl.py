"""What `inspect` finds in SDXL, and what it takes: the real configuration, random weights, no network.

    python benchmarks/inspect_sdxl.py

The text encoders have SDXL's widths and one layer, the autoencoder is tiny: neither is inspected. Prints how many
groups there are, whether the MACs of the units add up to the dense model's, and the most memory of the process.
"""

from __future__ import annotations

import resource
import string
import time
from dataclasses import dataclass
from typing import Annotated

from common import options
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from published_sizes import sdxl
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diff_es.evaluation.inspection import inspect
from diff_es.utils.progress import Reporter


@dataclass(frozen=True)
class Options:
    channels: Annotated[tuple[int, ...], "of the UNet's three resolutions, multiples of 64"] = (320, 640, 1280)


def main() -> None:
    unet = sdxl(options(Options, __doc__).channels)
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2)
    texts = CLIPTextModel(_text(768)), CLIPTextModelWithProjection(_text(1280))
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = StableDiffusionXLPipeline(vae, *texts, _tokenizer(), _tokenizer(), unet, scheduler)
    before, began = _peak(), time.perf_counter()
    found = inspect(pipe, 8, Reporter())
    seconds, layers, units = time.perf_counter() - began, found["layers"], found["units"]
    print(f"{len(layers)} layers and blocks in {len(units)} units, {seconds:.0f} s")
    total = found["macs_of_no_level"] + sum(unit["macs_by_level"][0] for unit in units)
    print(f"MACs of a call {found['macs']:,}, of the units and the rest {total:,}")
    sizes = [f"{size / 1e9:.2f} GB" for size in (weights, before, _peak())]
    print("weights {}, most memory before {}, with inspect {}".format(*sizes))


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_tokens()),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=len(_tokens()) - 2,
        eos_token_id=len(_tokens()) - 1,
    )


def _tokenizer() -> CLIPTokenizer:
    """Reads letter by letter."""
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(_tokens())}, merges=[], model_max_length=77)


def _tokens() -> list[str]:
    signs = string.ascii_lowercase + string.digits + string.punctuation
    return [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]


def _peak() -> int:
    """Bytes of the most memory that the process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
