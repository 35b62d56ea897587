"""What can be pruned in a model, what cannot and why, and what each level costs; only timing runs any of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pydantic import SkipValidation
from torch import nn

from ..compression.own_settings import own_sampling
from ..layers import Anatomy, Kind, anatomy_of, named_parameters
from ..pipelines.denoiser import device_of, dtype_of
from ..pipelines.families import Sampling
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.sampling import AnyPipeline, denoiser_of
from ..pipelines.supported import check
from ..pipelines.tracing import trace
from ..pruning.costs import Costs
from ..pruning.granularity import Depth, Granularity, Unit, Width, never_thinned, undivided, units_of
from ..pruning.latency import LayerTime, hardware_multiple, slower_layers, time_calls, time_layers
from ..pruning.macs import MacCounter
from ..utils.arguments import checked
from ..utils.limits import Levels
from ..utils.progress import Reporter


@checked()
def inspect(
    pipe: SkipValidation[AnyPipeline],
    levels: Levels = 8,
    reporter: Reporter | None = None,
    sampling: Sampling | None = None,
    *,
    timed: bool = False,
) -> dict[str, Any]:
    """The findings as JSON values; MACs are those of one denoiser call.

    Those of ``units``, one for each block, are what its levels decide about: at level 0 they add up to the dense
    model's with ``macs_of_no_level``, which no level changes.

    Args:
        levels: of the width ladder.
        reporter: shows progress; default silent.
        sampling: what the pipeline is asked for; by default images of its own size.
        timed: whether every shape of layer is timed at every level, in calls of ``sampling.batch``, and the denoiser at
            every level for one sample. A level at which a layer runs slower than dense leaves it dense.

    Raises:
        UnsupportedModel: as for ``compress``, a pipeline that Diff-ES cannot drive, or no pipeline at all.
    """
    denoiser, reporter = denoiser_of(check(pipe)), reporter or Reporter(quiet=True)
    if isinstance(pipe, OwnSampler):
        sampling = own_sampling(pipe, sampling or Sampling())
    else:
        sampling = (sampling or Sampling(10)).of(pipe)
    anatomy, path = anatomy_of(denoiser), trace(pipe, sampling)
    multiple, times = hardware_multiple(device_of(denoiser), dtype_of(denoiser)), tuple[LayerTime, ...]()
    width = Width(levels, multiple, ())
    if timed:
        times = time_layers(pipe, anatomy, width, sampling, reporter)
        width = replace(width, dense=slower_layers(times))
    counter = MacCounter(denoiser, anatomy, path)
    dense = counter.dense()
    blocks, (thinned,) = (units_of(anatomy, width, kind) for kind in (Granularity.BLOCK, Granularity.WHOLE))
    costs = Costs.tabled(counter.table(blocks, reporter), (1,))
    taken = time_calls(pipe, anatomy, thinned, replace(sampling, batch=1), reporter) if timed else ()
    return {
        "denoiser": type(denoiser).__name__,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "macs": dense,
        "layers": _layers(anatomy, width),
        "units": [
            {"name": unit.name, "layers": [layer.name for layer in unit.layers], "macs_by_level": list(macs)}
            for unit, macs in zip(blocks, costs.options, strict=True)
        ],
        "macs_of_no_level": costs.fixed,
        "multiple": multiple,
        "timed": [asdict(shape) for shape in times],
        "width_macs_ratio": [costs.call([level] * len(blocks)) / dense for level in range(levels)],
        "width_weight_bytes": _weights(counter, thinned),
        "width_seconds": [nanoseconds / 1e9 for nanoseconds in taken],
        **_skipped(counter, reporter),
        "never_thinned": never_thinned(anatomy.layers, width),
        "refused": [{"name": refusal.name, "reason": refusal.reason} for refusal in anatomy.refusals],
        "left_dense": left_dense(denoiser, anatomy),
    }


def _skipped(counter: MacCounter, reporter: Reporter) -> dict[str, list[float]]:
    """MACs and weights by the number of blocks that are left out; those that differ are not skipped by their number."""
    anatomy = counter.anatomy
    (unit,) = units_of(anatomy, Depth(), Granularity.WHOLE) if anatomy.uniform else undivided(anatomy)
    ((dense, *rest),) = counter.table([unit], reporter)
    return {
        "depth_macs_ratio": [macs / dense for macs in (dense, *rest)],
        "depth_weight_bytes": [*_weights(counter, unit)],
    }


def _weights(counter: MacCounter, unit: Unit) -> list[int]:
    """Bytes of all weights that run at each level."""
    return [counter.weight_bytes(unit, level) for level in range(len(unit.options))]


def _layers(anatomy: Anatomy, width: Width) -> list[dict[str, Any]]:
    """The layers and blocks that can be pruned, with what stays of each at each level."""
    rows: list[dict[str, Any]] = [
        {
            "kind": layer.kind.value,
            "name": layer.name,
            "groups": layer.groups,
            "group_width": layer.width,
            "kept_by_level": [width.kept(layer, level) for level in range(width.levels)],
        }
        for layer in anatomy.layers
    ]
    return rows + [
        {"kind": Kind.BLOCK.value, "name": block.name, "groups": 1, "group_width": block.width, "kept_by_level": None}
        for block in anatomy.blocks
    ]


def left_dense(denoiser: nn.Module, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Parameters that belong to no group of heads or channels, summed by where they stand in a block or outside."""
    owned = {rows.module for layer in anatomy.layers for rows in layer.rows} | {part.output for part in anatomy.layers}
    sizes = dict[str, int]()
    for name, parameter in named_parameters(denoiser):
        module = name.rpartition(".")[0]
        if module not in owned:
            place = ".".join("*" if part.isdecimal() else part for part in module.split("."))
            sizes[place] = sizes.get(place, 0) + parameter.numel()
    reason = "serves all heads and channels alike; goes only where its whole block is skipped"
    return [{"name": name, "parameters": size, "reason": reason} for name, size in sorted(sizes.items())]
