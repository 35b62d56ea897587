"""Each cache that a pipeline takes at three settings: mild, middle and strong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from ....pipelines.families import Pipeline, Sampling
from ....pipelines.probes import Probe
from ....pipelines.sampling import denoiser_name
from .cached import Cache, Cached
from .deep import Deep
from .dual_block import DualBlock
from .native import Native, calibrated


def offered(pipe: Pipeline, sampling: Sampling, probes: Sequence[Probe]) -> tuple[Cached, ...]:
    """Ways to sample by each cache at each setting, by names that say what of the library was set.

    ``probes`` are what MagCache calibrates on.
    """
    caches = _of_unets() if denoiser_name(pipe) == "unet" else _of_transformers(pipe, sampling, probes)
    return tuple(Cached(name, sampling, cache) for name, cache in caches.items())


def _of_transformers(pipe: Pipeline, sampling: Sampling, probes: Sequence[Probe]) -> dict[str, Cache]:
    found: dict[str, Cache] = {}
    for threshold in (0.1, 0.2, 0.4):
        found[f"FirstBlockCache, threshold={threshold}"] = Native(FirstBlockCacheConfig(threshold))
    for interval in (2, 3, 5):
        found[f"TaylorSeer, cache_interval={interval}"] = taylor(interval, "proj_out_2", r"transformer_blocks\.\d+")
    ratios = calibrated(pipe, sampling, probes)
    for threshold in (0.12, 0.24, 0.48):
        config = MagCacheConfig(threshold=threshold, num_inference_steps=sampling.steps, mag_ratios=ratios)
        found[f"MagCache, threshold={threshold}"] = Native(config)
    for threshold in (0.12, 0.2, 0.4):
        name = f"DBCache + TaylorSeer, residual_diff_threshold={threshold}, max_continuous_cached_steps=2"
        found[name] = DualBlock(threshold, taylorseer_order=2, max_continuous_cached_steps=2)
    return found | _of_attention()


def _of_unets() -> dict[str, Cache]:
    found: dict[str, Cache] = {}
    for interval in (2, 3, 5):
        found[f"DeepCache, cache_interval={interval}"] = Deep(interval)
    for interval in (2, 3, 5):
        parts = r".*\.(resnets|transformer_blocks|downsamplers|upsamplers)\.\d+"
        found[f"TaylorSeer, cache_interval={interval}"] = taylor(interval, "conv_out", parts)
    return found | _of_attention()


def _of_attention() -> dict[str, Cache]:
    """Those that skip attention, and guidance."""
    found: dict[str, Cache] = {}
    for spatial, cross, within in ((2, 3, (100, 800)), (3, 5, (100, 800)), (5, 6, (-1, 1000))):
        name = f"PyramidAttentionBroadcast, spatial_attention_block_skip_range={spatial}, timesteps {within}"
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=spatial,
            cross_attention_block_skip_range=cross,
            spatial_attention_timestep_skip_range=within,
            cross_attention_timestep_skip_range=within,
        )
        found[name] = Native(config)
    for skip, within in ((2, (-1, 641)), (5, (-1, 641)), (5, (-1, 901))):
        name = f"FasterCache, unconditional_batch_skip_range={skip}, timesteps {within}"
        found[name] = faster(skip, within)
    return found


def taylor(interval: int, last: str, parts: str) -> Native:
    """What the denoiser gives, foretold along a Taylor series of second order (2503.06923); ``parts`` are skipped.

    It is the library's ``use_lite_mode`` by the names that modules have here. Of each attention and feed-forward layer
    by itself, as is its default, the series comes less close at the same share of MACs, and saves less time.
    """
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=2,
        max_order=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[last],
        skip_predict_identifiers=[parts],
    )
    return Native(config)


def faster(skip: int, within: tuple[int, int]) -> Native:
    """FasterCache with the weight that the library takes where it is told none."""
    config = FasterCacheConfig(
        unconditional_batch_skip_range=skip,
        unconditional_batch_timestep_skip_range=within,
        attention_weight_callback=lambda _: 0.5,
    )
    return Native(config)
