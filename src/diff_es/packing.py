"""Plans as named tensors and back: what an artefact writes to its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .layers import Bypass, Cut, Factor, Plan

FACTORS = "factors"
"""The file of the low-rank factors, which plans may share."""


def pack(plans: Sequence[Plan]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """({file stem: {name: tensor}}, the stem for each plan); plans that are one object are written once."""
    distinct = list({id(plan): plan for plan in plans}.values())
    stems = {id(plan): f"plan-{i:02d}" for i, plan in enumerate(distinct)}
    factors = list({id(f): f for plan in distinct for cut in plan.cuts.values() for f in cut.factors}.values())
    numbers = {id(factor): i for i, factor in enumerate(factors)}
    files = {stems[id(plan)]: _pack(plan, numbers) for plan in distinct}
    if factors:
        parts = ("left", "left_scale", "right", "right_scale")
        pairs = (
            (i, part, tensor) for i, f in enumerate(factors) for part, tensor in zip(parts, f.tensors(), strict=True)
        )
        files[FACTORS] = {f"{i}/{part}": tensor for i, part, tensor in pairs}
    return files, [stems[id(plan)] for plan in plans]


def left_out(plan: Plan) -> list[str]:
    """The blocks that a plan skips without anything in their place, which have no tensor to be written."""
    return sorted(name for name, bypass in plan.bypasses.items() if bypass is None)


def _pack(plan: Plan, numbers: Mapping[int, int]) -> dict[str, Tensor]:
    tensors = dict[str, Tensor]()
    for name, cut in plan.cuts.items():
        parts = {"kept": cut.kept.int(), "weight": cut.weight, "bias": cut.bias}
        if cut.factors:
            parts["factors"] = torch.tensor([numbers[id(factor)] for factor in cut.factors], dtype=torch.int32)
        tensors |= {f"cut/{name}/{part}": value for part, value in parts.items() if value is not None}
    for name, bypass in plan.bypasses.items():
        if bypass is not None:
            tensors |= {f"bypass/{name}/{part}": tensor for part, tensor in bypass.tensors().items()}
    return tensors


def unpack(
    files: Mapping[str, Mapping[str, Tensor]], stems: Sequence[str], skipped: Sequence[Sequence[str]]
) -> tuple[Plan, ...]:
    """The plans that :func:`pack` wrote: one for each stem, with the blocks that it leaves out.

    Raises:
        KeyError, TypeError, ValueError: the files hold something else.
    """
    parts = dict[int, dict[str, Tensor]]()
    for key, tensor in files.get(FACTORS, {}).items():
        number, part = key.split("/")
        parts.setdefault(int(number), {})[part] = tensor
    factors = {number: Factor(**tensors) for number, tensors in parts.items()}
    plans = {stem: _unpack(files[stem], gone, factors) for stem, gone in zip(stems, skipped, strict=True)}
    return tuple(plans[stem] for stem in stems)


def _unpack(tensors: Mapping[str, Tensor], gone: Sequence[str], factors: Mapping[int, Factor]) -> Plan:
    parts = dict[tuple[str, str], dict[str, Tensor]]()
    for key, tensor in tensors.items():
        kind, name, part = key.split("/")
        parts.setdefault((kind, name), {})[part] = tensor
    cuts = dict[str, Cut]()
    for (kind, name), part_of in parts.items():
        if kind == "cut":
            own = tuple(factors[i] for i in part_of["factors"].tolist()) if "factors" in part_of else ()
            cuts[name] = Cut(part_of["kept"].long(), part_of.get("weight"), part_of.get("bias"), own)
    bypasses: dict[str, Bypass | None] = dict.fromkeys(gone)
    bypasses |= {name: Bypass(**part) for (kind, name), part in parts.items() if kind == "bypass"}
    return Plan(cuts, bypasses)
