"""Which units of a denoiser are alike, so that what is counted or timed of one holds for all."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..pipelines.tracing import Trace
from ..utils.calls import Args, Kwargs
from .granularity import Thin, Unit


def alike(twin: nn.Module, trace: Trace, units: Sequence[Unit]) -> tuple[int, ...]:
    """For each unit the first one with the same options, of the same modules, weights and inputs of the same shapes.

    Args:
        twin: the denoiser on the meta device, of which one call is run.
        trace: the shapes of that call.
    """
    modules = dict(twin.named_modules())
    parts = [[name for name in _parts(unit) if name in modules] for unit in units]
    seen = dict[str, tuple[torch.Size, ...]]()
    handles = []
    for name in {name for names in parts for name in names}:

        def keep(module: nn.Module, args: Args, kwargs: Kwargs, name: str = name) -> None:
            seen[name] = tuple(leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))

        handles.append(modules[name].register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            twin(*trace.args, **trace.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    first, found = dict[Hashable, int](), list[int]()
    for index, (unit, names) in enumerate(zip(units, parts, strict=True)):
        likeness = tuple(
            (repr(modules[name]), seen.get(name), *(p.shape for p in modules[name].parameters())) for name in names
        )
        layers = tuple((layer.kind, layer.groups, layer.width, layer.start) for layer in unit.layers)
        options = tuple(option.kept if isinstance(option, Thin) else len(names) for option in unit.options)
        found.append(first.setdefault((likeness, layers, options), index))
    return tuple(found)


def _parts(unit: Unit) -> list[str]:
    """The modules that a unit changes, itself first where it is one."""
    names = [unit.name]
    for layer in unit.layers:
        names += [rows.module for rows in layer.rows] + [layer.output]
    return names
