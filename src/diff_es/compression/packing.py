"""Plans as named tensors and back: what an artefact writes to its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from ..layers import Bypass, Cut, Factor, Plan
from ..utils.errors import ArtefactError

FACTORS = "factors"
"""The file of the low-rank factors, which plans may share."""
_FACTOR_PARTS = tuple(part.name for part in fields(Factor))
_REALS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pack(plans: Sequence[Plan]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """({file stem: {name: tensor}}, the stem for each plan); plans that are one object are written once."""
    distinct = list({id(plan): plan for plan in plans}.values())
    stems = {id(plan): f"plan-{i:02d}" for i, plan in enumerate(distinct)}
    factors = list({id(f): f for plan in distinct for cut in plan.cuts.values() for f in cut.factors}.values())
    numbers = {id(factor): i for i, factor in enumerate(factors)}
    files = {stems[id(plan)]: _pack(plan, numbers) for plan in distinct}
    if factors:
        named = [zip(_FACTOR_PARTS, factor.tensors(), strict=True) for factor in factors]
        pairs = ((i, part, tensor) for i, parts in enumerate(named) for part, tensor in parts)
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
    files: Mapping[str, Mapping[str, Tensor]], stems: Sequence[str], skipped: Sequence[Sequence[str]], where: str
) -> tuple[Plan, ...]:
    """The plans that :func:`pack` wrote: one for each stem, with the blocks that it leaves out.

    Args:
        where: the files lie.

    Raises:
        ArtefactError: a tensor is none of a plan, or cannot be; the message names it.
    """
    plans, factors = list[Plan](), _factors(files.get(FACTORS, {}), f"{where}, {FACTORS}")
    known = dict[tuple[str, tuple[str, ...]], Plan]()
    for stem, gone in zip(stems, skipped, strict=True):
        key = (stem, tuple(gone))
        if key not in known:
            known[key] = _unpack(files[stem], gone, factors, f"{where}, {stem}")
        plans.append(known[key])
    return tuple(plans)


def _unpack(tensors: Mapping[str, Tensor], gone: Sequence[str], factors: Mapping[int, Factor], where: str) -> Plan:
    cuts, bypasses = dict[str, Cut](), dict[str, Bypass | None](dict.fromkeys(gone))
    for (kind, name), parts in _grouped(tensors, where).items():
        place = f"{where}, {kind}/{name}"
        if kind == "cut":
            cuts[name] = _cut(parts, factors, place)
        elif kind == "bypass":
            bypasses[name] = _bypass(parts, place)
        else:
            raise _unfit(place, "cut/LAYER/PART or bypass/BLOCK/PART", kind)
    return Plan(cuts, bypasses)


def _grouped(tensors: Mapping[str, Tensor], where: str) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Tensors named KIND/NAME/PART by kind and name, then by part."""
    grouped = dict[tuple[str, str], dict[str, Tensor]]()
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        name, _, part = rest.rpartition("/")  # names of modules may hold some, too
        if not name:
            raise _unfit(f"{where}, {key[:80]}", "a tensor named KIND/NAME/PART", "another name")
        grouped.setdefault((kind, name), {})[part] = tensor
    return grouped


def _cut(parts: Mapping[str, Tensor], factors: Mapping[int, Factor], where: str) -> Cut:
    _only(parts, ("kept", "weight", "bias", "factors"), ("kept",), where)
    kept = _whole(parts["kept"], f"{where}/kept").long()
    if not len(kept) or kept[0] < 0 or not (kept.diff() > 0).all():
        raise _unfit(f"{where}/kept", "ascending groups from 0 up", str(kept.tolist()[:8]))
    weight, bias, own = parts.get("weight"), parts.get("bias"), list[Factor]()
    if weight is not None:
        _real(weight, f"{where}/weight", (None,) * max(2, weight.dim()))
        _divided(weight, len(kept), f"{where}/weight")
    if bias is not None:
        _real(bias, f"{where}/bias", (None if weight is None else len(weight),))
    for number in _whole(parts.get("factors", torch.empty(0, dtype=torch.int32)), f"{where}/factors").tolist():
        if number not in factors:
            raise _unfit(f"{where}/factors", f"numbers of {len(factors)} factors", str(number))
        _divided(factors[number].right, len(kept), f"{where}/factors")
        own.append(factors[number])
    return Cut(kept, weight, bias, tuple(own))


def _bypass(parts: Mapping[str, Tensor], where: str) -> Bypass:
    both = ("context_weight", "context_bias") if "context_weight" in parts or "context_bias" in parts else ()
    _only(parts, ("weight", "bias", *both), ("weight", "bias", *both), where)
    for prefix in ("", "context_") if both else ("",):
        weight, bias = parts[f"{prefix}weight"], parts[f"{prefix}bias"]
        _real(weight, f"{where}/{prefix}weight", (None, None))
        _real(bias, f"{where}/{prefix}bias", (len(weight),))
    return Bypass(**parts)


def _factors(tensors: Mapping[str, Tensor], where: str) -> dict[int, Factor]:
    """The low-rank factors by number."""
    parts, factors = dict[str, dict[str, Tensor]](), dict[int, Factor]()
    for key, tensor in tensors.items():
        number, _, part = key.partition("/")
        parts.setdefault(number, {})[part] = tensor
    for number, own in parts.items():
        place = f"{where}, {number[:80]}"
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise _unfit(place, "a tensor named NUMBER/PART", "another name")
        _only(own, _FACTOR_PARTS, _FACTOR_PARTS, place)
        rank = own["left"].shape[-1] if own["left"].dim() else 0
        for part, shape in zip(_FACTOR_PARTS, ((None, rank), (rank,), (rank, None), (rank,)), strict=True):
            if part.endswith("scale"):
                _real(own[part], f"{place}/{part}", shape)
            else:
                _shaped(own[part], f"{place}/{part}", shape)
                _typed(own[part], own[part].dtype is torch.int8, f"{place}/{part}", "torch.int8")
        factors[int(number)] = Factor(**own)
    return factors


def _only(parts: Mapping[str, Tensor], known: Sequence[str], needed: Sequence[str], where: str) -> None:
    if not set(needed) <= parts.keys() <= set(known):
        raise _unfit(where, f"the parts {', '.join(known)}", ", ".join(parts)[:80])


def _shaped(tensor: Tensor, where: str, shape: Sequence[int | None]) -> None:
    pairs = zip(tensor.shape, shape, strict=False)
    if tensor.dim() != len(shape) or any(size is not None and size != own for own, size in pairs):
        shown = "x".join("any" if size is None else str(size) for size in shape)
        raise _unfit(where, f"a tensor of shape {shown}", "x".join(map(str, tensor.shape)) or "a single number")


def _typed(tensor: Tensor, fits: bool, where: str, expected: str) -> None:
    if not fits:
        raise _unfit(where, expected, str(tensor.dtype))


def _whole(tensor: Tensor, where: str) -> Tensor:
    """Indices, (K,)."""
    _shaped(tensor, where, (None,))
    _typed(tensor, tensor.dtype is torch.int32, where, "torch.int32")
    return tensor


def _real(tensor: Tensor, where: str, shape: Sequence[int | None]) -> None:
    """Finite numbers of this shape."""
    _shaped(tensor, where, shape)
    _typed(tensor, tensor.dtype in _REALS, where, "real numbers of 16 to 64 bits")
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):  # without a copy of it
        raise _unfit(where, "finite numbers", "others")


def _divided(tensor: Tensor, groups: int, where: str) -> None:
    """Whether the columns are those of so many groups."""
    if not tensor.shape[1] or tensor.shape[1] % groups:
        raise _unfit(where, f"columns of {groups} groups", str(tensor.shape[1]))


def _unfit(where: str, expected: str, found: str) -> ArtefactError:
    remedy = "The artefact was changed by another program: copy it again, or compress again."
    return ArtefactError(where, expected=expected, found=found, remedy=remedy)
