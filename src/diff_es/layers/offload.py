"""Offloading that knows parameters one by one: accelerate's sequential one, which keeps them in host memory and brings
them in for each module's call, and diffusers' group offloading."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..utils.errors import DiffESError

_OFFLOADING = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


def hook_of(module: nn.Module) -> Any | None:
    """accelerate's hook that brings a module's own parameters in and takes them out again; None where they stay.

    Between calls such parameters are on the meta device. Their values are in the hook's ``weights_map``, by their names
    below the module.
    """
    hook = vars(module).get("_hf_hook")
    if hook is None:
        return None
    from accelerate.hooks import AlignDevicesHook, SequentialHook  # not a requirement; here it has put the hook there

    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return next((one for one in hooks if isinstance(one, AlignDevicesHook) and one.offload), None)


def valued(module: nn.Module, leaf: str) -> nn.Parameter:
    """A parameter of a module's own, with its values also where they wait elsewhere."""
    parameter = module.get_parameter(leaf)
    hook = hook_of(module) if parameter.is_meta else None
    return parameter if hook is None else nn.Parameter(hook.weights_map[leaf], requires_grad=False)


def device_of(module: nn.Module, leaf: str) -> torch.device:
    """Where a module computes with a parameter of its own."""
    hook = hook_of(module)
    return module.get_parameter(leaf).device if hook is None else torch.device(hook.execution_device)


def sequentially(denoiser: nn.Module) -> bool:
    """Whether any parameter waits in a map in host memory."""
    return any(hook_of(module) is not None for module in denoiser.modules())


def group_of(module: nn.Module) -> Any | None:
    """diffusers' group of modules and parameters that this module's call brings in, where it leads one."""
    registry = vars(module).get("_diffusers_hook")
    hook = None if registry is None else registry.hooks.get("group_offloading")
    return None if hook is None else hook.group


def other_hooks(module: nn.Module) -> tuple[str, ...]:
    """The names of diffusers' hooks on a module but for those of offloading, such as those of caches."""
    registry = vars(module).get("_diffusers_hook")
    return () if registry is None else tuple(name for name in registry.hooks if name not in _OFFLOADING)


def leads_others(module: nn.Module) -> bool:
    """Whether the call of a module brings in a group of several, or takes it out."""
    group = group_of(module)
    return group is not None and len(group.modules) > 1 and module in (group.onload_leader, group.offload_leader)


def check_groups(denoiser: nn.Module) -> None:
    """Whether group offloading moves the parameters themselves.

    Raises:
        DiffESError: it brings in copies instead, made when it was enabled: host memory's, with streams, or a folder's.
    """
    for group in map(group_of, denoiser.modules()):
        if group is None or (group.stream is None and group.offload_to_disk_path is None):
            continue
        if group.stream is None:
            found, remedy = "group offloading to a folder", "Enable it without offload_to_disk_path."
        else:
            found = "group offloading with streams"
            remedy = "Enable it without use_stream; or leave it out and take `Streamed()`, which copies ahead as well."
        found += ", which brings in copies of them"
        raise DiffESError("denoiser", expected="parameters that may be exchanged", found=found, remedy=remedy)


def listed_by_groups(denoiser: nn.Module) -> dict[nn.Parameter | None, tuple[list[nn.Parameter | None], int]]:
    """Where groups list parameters by themselves, as they do those of norms between layers that are modules of a group:
    the list and the place in it."""
    found = dict[nn.Parameter | None, tuple[list[nn.Parameter | None], int]]()
    for group in map(group_of, denoiser.modules()):
        if group is not None:
            found |= {parameter: (group.parameters, place) for place, parameter in enumerate(group.parameters)}
    return found


def lost(denoiser: nn.Module) -> list[str]:
    """The parameters on the meta device that no hook brings in."""
    return [
        f"{name}.{leaf}" if name else leaf
        for name, module in denoiser.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta and hook_of(module) is None
    ]


def stored_otherwise(denoiser: nn.Module) -> str | None:
    """How weights are stored, where that is not how the denoiser computes with them: quantized, or cast for each call
    (diffusers' layerwise casting); None where it is."""
    for name, module in denoiser.named_modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None and "layerwise_casting" in registry.hooks:
            return f"layerwise casting of {name or 'the whole'}"
    for name, parameter in denoiser.named_parameters():
        if not parameter.is_floating_point() or parameter.itemsize < 2 or type(parameter.data) is not torch.Tensor:
            return f"{name} in {str(parameter.dtype).removeprefix('torch.')}, as a {type(parameter.data).__name__}"
    return None
