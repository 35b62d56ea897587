"""diffusers' own caches: FirstBlockCache, TaylorSeer, MagCache, FasterCache and Pyramid Attention Broadcast.

Their hooks reach any denoiser whose modules they know by class or name, but those that were not made for them, such as
:class:`DiTTransformer2DModel` and the U-Nets, lack :class:`CacheMixin`: here it is mixed into their class for a while.
"""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from diffusers import CacheMixin
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor, nn

from ....pipelines.families import Asked, Denoiser, Pipeline, Sampling, family_of
from ....pipelines.probes import Probe
from ....pipelines.sampling import denoiser_of, intercepted, of_class, sample
from ....pipelines.timestep_hook import on_timestep
from ....utils.errors import DiffESError
from ....utils.patching import untouched

Config: TypeAlias = (
    FirstBlockCacheConfig | TaylorSeerCacheConfig | MagCacheConfig | FasterCacheConfig | PyramidAttentionBroadcastConfig
)


@dataclass(frozen=True)
class Native:
    """A cache of diffusers, by the library's own configuration.

    What a configuration leaves to whoever uses it is filled in: which timestep it is, and of FasterCache how the
    denoiser is called.
    """

    config: Config

    @contextmanager
    def enabled(self, pipe: Pipeline, sampling: Sampling) -> Iterator[None]:
        """As :meth:`Cache.enabled`.

        Raises:
            DiffESError: FirstBlockCache or MagCache of a denoiser without a list of transformer blocks, FasterCache
                without guidance, or a configuration that names no module of this denoiser.
        """
        denoiser, config, arrange = denoiser_of(pipe), self.config, isinstance(self.config, FasterCacheConfig)
        if isinstance(config, FirstBlockCacheConfig | MagCacheConfig):
            _check_blocks(denoiser)
        if isinstance(config, FasterCacheConfig):
            _check_guided(sampling)
            config = replace(config, tensor_format="BCHW", _unconditional_conditional_input_kwargs_identifiers=_HALVED)
        if isinstance(config, FasterCacheConfig | PyramidAttentionBroadcastConfig):
            now = _Now()
            on_timestep(denoiser, now.set)
            config = replace(config, current_timestep_callback=now.get)
        with ExitStack() as stack:
            stack.enter_context(of_class(denoiser, _cacheable(type(denoiser))))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "torch.meshgrid")  # of FasterCache, in each call
            denoiser.enable_cache(config)
            _check_reached(denoiser)
            stack.enter_context(intercepted(denoiser, partial(_in_context, denoiser)))
            if arrange:
                family = family_of(pipe)
                conditional_first = family is not None and family.asked is Asked.CLASSES
                stack.enter_context(intercepted(denoiser, partial(_arranged, denoiser, conditional_first)))
            yield


_HALVED = ("hidden_states", "sample", "timestep", "class_labels", "encoder_hidden_states")
"""Arguments of denoisers of which guidance makes two halves."""


class _Now:
    """The timestep that the denoiser runs at."""

    def __init__(self) -> None:
        self._timestep = 0.0

    def set(self, timestep: float) -> None:
        self._timestep = timestep

    def get(self) -> float:
        return self._timestep


def _cacheable(kind: type[Denoiser]) -> type[Denoiser]:
    """The class of a denoiser with :class:`CacheMixin`; pipelines reset its caches at the end of each call."""
    if issubclass(kind, CacheMixin):
        return kind
    return type(kind.__name__, (CacheMixin, kind), {"__module__": kind.__module__})


def _in_context(denoiser: Denoiser, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Some caches keep a state for each kind of call; guidance makes one call of both its halves here."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with denoiser.cache_context("guided"):
            return forward(*args, **kwargs)

    return run


def _arranged(denoiser: Denoiser, conditional_first: bool, forward: Callable[..., Any]) -> Callable[..., Any]:
    """As FasterCache wants to be called: by keyword, a timestep for each sample, and the unconditional half first."""
    signature = inspect.signature(type(denoiser).forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(denoiser, *args, **kwargs).arguments
        _, batch = given.pop("self"), len(next(iter(given.values())))
        for name in given.keys() & _HALVED:
            value = given[name].expand(batch) if given[name].dim() == 0 else given[name]
            given[name] = _swapped(value) if conditional_first else value
        output = forward(**given)
        if conditional_first:
            output.sample = _swapped(output.sample)
        return output

    return run


def _swapped(value: Tensor) -> Tensor:
    """The halves of a batch, the second one first."""
    return value.roll(len(value) // 2, 0)


def calibrated(pipe: Pipeline, sampling: Sampling, probes: Sequence[Probe]) -> list[float]:
    """Ratios that MagCache needs of a model, one for each step, by its own calibration on a batch of probes: what it
    prints for the user to copy."""
    denoiser, printed = denoiser_of(pipe), io.StringIO()
    _check_blocks(denoiser)
    config = MagCacheConfig(calibrate=True, num_inference_steps=sampling.steps)
    with untouched(pipe, *denoiser.modules()), Native(config).enabled(pipe, sampling), redirect_stdout(printed):
        sample(pipe, probes[: sampling.batch], sampling)
    listed = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]"))
    ratios: list[float] = json.loads(listed)
    return ratios


def _check_blocks(denoiser: Denoiser) -> None:
    """That there is a list of blocks in which a first and a last one tell how all between them change."""
    lists = [name for name, part in denoiser.named_children() if isinstance(part, nn.ModuleList)]
    if "transformer_blocks" not in lists:
        raise DiffESError(
            type(denoiser).__name__,
            expected="a list of transformer blocks, of which the first one tells how much the others change",
            found=", ".join(lists) or "no list",
            remedy="Use a cache for U-Nets, such as DeepCache.",
        )


def _check_reached(denoiser: Denoiser) -> None:
    """That any module has a hook: the library passes over names that it does not find."""
    registries = [vars(part).get("_diffusers_hook") for part in denoiser.modules()]
    if not any(one.hooks for one in registries if one is not None):
        raise DiffESError(
            type(denoiser).__name__,
            expected="modules that the cache knows by class or name",
            found="none",
            remedy="Name them in its configuration.",
        )


def _check_guided(sampling: Sampling) -> None:
    if sampling.guidance <= 1:
        raise DiffESError(
            "guidance_scale",
            expected="more than 1 for FasterCache, which foretells the unconditional half of a batch",
            found=f"{sampling.guidance:g}",
            remedy="Use another cache.",
        )
