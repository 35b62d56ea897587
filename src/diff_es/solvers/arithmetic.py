"""What the arithmetic of a scheduler depends on: its settings, and the attributes that no run changes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.calls import Kwargs
from .samplers import Scheduler, is_flow

PLACING = frozenset(
    {
        "base_image_seq_len",
        "base_shift",
        "flow_shift",
        "lambda_min_clipped",
        "max_image_seq_len",
        "max_shift",
        "shift",
        "shift_terminal",
        "sigma_max",
        "sigma_min",
        "steps_offset",
        "time_shift_type",
        "timestep_spacing",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    }
)
"""Settings that say where a scheduler's own timesteps stand. On chosen ones most make no difference, but some do: to
the noise of those that are its own, to DDIM's strides, to Euler's first noise."""


def differing(scheduler: Scheduler, other: Scheduler) -> set[str]:
    """What the arithmetic of two schedulers of one class differs in: names of settings and attributes."""
    settings, others = settings_of(scheduler), settings_of(other)
    found = {name for name, value in settings.items() if value != others[name]}
    return found | changed(scheduler, other)


def settings_of(scheduler: Scheduler) -> Kwargs:
    """The settings of a scheduler, as JSON values: of each what its configuration holds under its name, and as its
    attribute, since either may be read, and diffusers lets both be changed."""
    config = scheduler.config
    names = _taken(_kind(scheduler))
    found = {name: (_plain(config.get(name)), _plain(vars(config).get(name))) for name in names}
    if found.get("use_dynamic_shifting") == (True, True):
        found.pop("flow_shift", None)  # every call's own
    return found


def settings_that_differ(scheduler: Scheduler, made: Mapping[str, Any]) -> Kwargs:
    """The settings that differ from saved ones, with the saved values; where none was saved, the class's default."""
    found = Kwargs()
    for name, value in settings_of(scheduler).items():
        saved = made.get(name, _plain(_taken(_kind(scheduler))[name]))
        if value != (saved, saved):
            found[name] = saved
    return found


def changed(scheduler: Scheduler, other: Scheduler) -> set[str]:
    """The attributes that differ from those of another of the class, but for what runs change, and those of the
    scheduler's own that stand before what its class defines."""
    kind, own, others = _kind(scheduler), vars(scheduler), vars(other)
    fixed = others.keys() - _moving(kind)
    hidden = {name for name in own.keys() - others.keys() if name in dir(kind)}
    return {name for name in fixed if name not in own or not _same(own[name], others[name])} | hidden - REPLACED


REPLACED = frozenset({"set_timesteps", "step", "__deepcopy__", "__reduce_ex__"})
"""What a scheduler that runs chosen timesteps has of its own."""


def _kind(scheduler: Scheduler) -> Any:  # mypy takes no class for hashable
    return type(scheduler)


@cache
def _taken(kind: Any) -> Kwargs:
    """What the constructor of a scheduler takes, with the defaults."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=lambda array: np.asarray(array).tolist()))


@cache
def _moving(kind: Any) -> frozenset[str]:
    """The attributes of a scheduler that a run changes, and its configuration, which is compared by itself."""
    scheduler, names = kind(), {"_internal_dict", "_begin_index"}  # pipelines may set where a run begins
    before, sample = _held(scheduler), torch.zeros(1, 1, 2, 2)
    scheduler.set_timesteps(4)
    with torch.random.fork_rng([]):  # some draw noise
        for timestep in scheduler.timesteps:
            scheduler.step(denoiser_input(scheduler, sample, timestep), timestep, sample)
            now = _held(scheduler)
            names |= {name for name in now if not _unmoved(before.get(name, []), now[name])}
    return frozenset(names)


def _unmoved(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))


def _held(scheduler: Scheduler) -> dict[str, list[Any]]:
    """The attributes of a scheduler; what lists hold, since steps change them in place."""
    return {name: list(value) if isinstance(value, list) else [value] for name, value in vars(scheduler).items()}


def denoiser_input(scheduler: Scheduler, sample: Tensor, timestep: Any) -> Tensor:
    """What a pipeline hands to its denoiser; in flow matching the sample itself."""
    scaled: Tensor = sample if is_flow(scheduler) else scheduler.scale_model_input(sample, timestep)
    return scaled


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one.cpu(), other.cpu())
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)
