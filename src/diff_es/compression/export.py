"""Export: a result whose stages all run the same weights, as a diffusers folder that loads without Diff-ES."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import SkipValidation
from safetensors import SafetensorError
from torch import Tensor, nn

from ..layers import Kind, Plan, anatomy_of, state_dict
from ..pipelines.denoiser import meta_twin
from ..pipelines.families import Asked, Denoiser, Pipeline, family_of
from ..pipelines.quiet import hushed
from ..pipelines.sampling import AnyPipeline, denoiser_of, with_denoiser
from ..pipelines.supported import check
from ..pipelines.tracing import trace
from ..routing.realise import realise
from ..utils.arguments import Place, checked
from ..utils.calls import Kwargs
from ..utils.errors import DiffESError, StorageError, UnsupportedModel
from ..utils.files import check_outputs
from .pruned_transformer import PRUNED, Pruning
from .result import Compressed


@dataclass(frozen=True)
class Exported:
    """What was written. A denoiser of a ``stock`` class, one of diffusers' own, loads without trust in any code."""

    folder: Path
    pipeline: str  # class
    denoiser: str  # class
    stock: bool
    dtype: torch.dtype
    bytes: int  # of the denoiser's weights ...
    dense_bytes: int  # ... and of the base model's

    @property
    def call(self) -> str:
        """The Python expression that loads it."""
        precision = "" if self.dtype == torch.float32 else f", dtype={self.dtype}"
        kind, trust = (self.pipeline, "") if self.stock else ("DiffusionPipeline", ", trust_remote_code=True")
        return f"{kind}.from_pretrained({str(self.folder)!r}{precision}{trust})"


@checked()
def export(result: Compressed, pipe: SkipValidation[AnyPipeline], folder: Place) -> Exported:
    """Write a pipeline that, loaded and cast as ``pipe`` was, gives to the bit what that gives under ``result.routed``.

    Where blocks are merely left out, the denoiser is diffusers' own class with fewer of them. Where layers are thinner,
    or a linear map stands in for a block, its class comes in a Python file beside its weights, which diffusers runs if
    loaded with ``trust_remote_code=True``. The folder is written whole or not at all; ``pipe`` does not change.

    Args:
        result: its stages must all run the same weights.
        pipe: the base model, dense; parts, scheduler, labels and precision are taken from it.
        folder: new, or empty.

    Raises:
        DiffESError: the stages run different weights.
        ArtefactError: made for another base model.
        UnsupportedModel: another pipeline than ``DiTPipeline``, or a denoiser class that has no pruned form.
        StorageError: the disk refused, or the folder holds something.
    """
    target = Path(os.path.realpath(folder))  # a link keeps pointing there
    check_new(target)
    ready = _with_classes(pipe)
    plan = _one_plan(result)
    dense = result.check(pipe)
    with torch.no_grad(), hushed():
        kept = _read_from_outside(ready, result, plan)
        slim = _shallower(dense, plan, kept)
        stock = slim is not None
        if slim is None:
            slim = _pruned(dense, plan, kept)
        copy = with_denoiser(ready, slim)
        with _written_whole(target) as staging:
            copy.save_pretrained(staging)
            _forget_origin(staging)
    kinds = type(copy).__name__, type(slim).__name__
    return Exported(target, *kinds, stock, slim.dtype, _bytes(slim), _bytes(dense))


def _with_classes(pipe: AnyPipeline) -> Pipeline:
    family = family_of(check(pipe))
    if family is None or family.asked is not Asked.CLASSES:
        remedy = "Use the loader: `diff_es.load(...).routed(pipe)`."
        raise UnsupportedModel("pipe", expected="DiTPipeline", found=type(pipe).__name__, remedy=remedy)
    return pipe


def _one_plan(result: Compressed) -> Plan:
    if result.timesteps is not None:
        raise DiffESError(
            "export",
            expected="the sampler's own steps",
            found=f"{len(result.timesteps)} chosen steps, which no diffusers folder holds",
            remedy="Chosen steps need the loader: `diff_es.load(...).routed(pipe)`. One stage, levels alone "
            "(`--levers prune --stages 1`): that can be exported.",
        )
    first = result.plans[0]
    for stage, plan in enumerate(result.plans):
        if not _same(first, plan):
            levels = result.schedule.levels[0], result.schedule.levels[stage]
            which = "of one level, with weights of their own" if levels[0] == levels[1] else "at different levels"
            raise DiffESError(
                "export",
                expected="one set of weights for all stages",
                found=f"stages 0 and {stage} {which}",
                remedy="Weights that change between stages need the loader: `diff_es.load(...).routed(pipe)`. A result "
                "of one stage (`--stages 1`) can be exported.",
            )
    return first


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans hold equal values."""
    if one is other:
        return True
    if one.cuts.keys() != other.cuts.keys() or one.bypasses.keys() != other.bypasses.keys():
        return False
    if any(len(one.cuts[name].factors) != len(other.cuts[name].factors) for name in one.cuts):
        return False
    pairs: list[tuple[Any, Any]] = [(one.cuts[name], other.cuts[name]) for name in one.cuts]
    pairs += [pair for name in one.cuts for pair in zip(one.cuts[name].factors, other.cuts[name].factors, strict=True)]
    pairs += [(one.bypasses[name], other.bypasses[name]) for name in one.bypasses]
    return all(_equal(_tensors(a), _tensors(b)) for a, b in pairs)


def _tensors(holder: Any) -> dict[str, Tensor]:
    """The tensors of a cut, a bypass or a module's state; none of None."""
    values = {} if holder is None else holder.state_dict() if isinstance(holder, nn.Module) else vars(holder)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _equal(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def _read_from_outside(pipe: Pipeline, result: Compressed, plan: Plan) -> dict[str, list[str]]:
    """The parts of every skipped block that the denoiser's forward runs all the same, seen on its weightless twin.

    DiT conditions its output on the embedder of block 0.
    """
    if not plan.bypasses:
        return {}
    path, twin = trace(pipe, result.sampling), meta_twin(denoiser_of(pipe))
    ran: dict[str, set[str]] = {name: set() for name in plan.bypasses}
    for name, parts in ran.items():
        block = twin.get_submodule(name)
        block.forward = _unchanged
        for part, module in block.named_modules():
            if part:
                module.register_forward_pre_hook(partial(_note, parts, part))
    twin(*path.args, **path.kwargs)
    return {name: sorted(part for part in parts if not part.startswith(_below(parts))) for name, parts in ran.items()}


def _unchanged(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _note(parts: set[str], part: str, *_: Any) -> None:
    parts.add(part)


def _below(names: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of whatever lies inside these modules."""
    return tuple(f"{name}." for name in names)


def _shallower(dense: Denoiser, plan: Plan, kept: Mapping[str, list[str]]) -> Denoiser | None:
    """The same class with fewer blocks; None where its configuration cannot say what the plan does."""
    blocks, arguments = [block.name for block in anatomy_of(dense).blocks], _arguments(dense)
    stay = [name for name in blocks if name not in plan.bypasses]
    if not stay or _cuts(plan) or any(bypass is not None for bypass in plan.bypasses.values()):
        return None
    owners = {name.rpartition(".")[0] for name in blocks}
    if len(owners) != 1 or arguments.get("num_layers") != len(blocks):
        return None
    for name, parts in kept.items():  # whoever reads them finds the first block that stays in place of the first
        for part in parts:
            own, others = (dense.get_submodule(f"{block}.{part}") for block in (name, stay[0]))
            if name != blocks[0] or not _equal(_tensors(own), _tensors(others)):
                return None
    state = dict[str, Tensor]()
    places = dict(zip(stay, blocks, strict=False))
    for key, value in state_dict(dense).items():
        block = next((name for name in blocks if key.startswith(f"{name}.")), None)
        if block is None:
            state[key] = value
        elif block in places:
            state[places[block] + key.removeprefix(block)] = value
    return _assembled(type(dense), {**arguments, "num_layers": len(stay)}, state)


def _pruned(dense: Denoiser, plan: Plan, kept: Mapping[str, list[str]]) -> Denoiser:
    """The class that builds smaller layers, with the weights that the routed model runs."""
    if type(dense) not in PRUNED:
        names, found = " or ".join(kind.__name__ for kind in PRUNED), type(dense).__name__
        remedy = "Use the loader: `diff_es.load(...).routed(pipe)`."
        raise UnsupportedModel("pipe.transformer", expected=names, found=found, remedy=remedy)
    anatomy = anatomy_of(dense)
    cuts, weights = _cuts(plan), realise(dense, anatomy, plan)
    sizes = {
        kind: {
            layer.name: len(cuts[layer.name].kept)
            for layer in anatomy.layers
            if layer.kind is kind and layer.name in cuts
        }
        for kind in (Kind.ATTENTION, Kind.FEEDFORWARD)
    }
    state = {**state_dict(dense), **weights.tensors}
    outside = _below(f"{name}.{part}" for name, parts in kept.items() for part in parts)
    state = {key: value for key, value in state.items() if not key.startswith(_below(kept)) or key.startswith(outside)}
    pruning = Pruning(heads=sizes[Kind.ATTENTION], channels=sizes[Kind.FEEDFORWARD], skipped={})
    for name, bypass in weights.bypasses.items():
        pruning["skipped"][name] = {"bypass": None if bypass is None else len(bypass.bias), "keeps": kept[name]}
        state |= {f"{name}.bypass.{leaf}": value for leaf, value in _tensors(bypass).items()}
    return _assembled(PRUNED[type(dense)], {**_arguments(dense), "pruning": pruning}, state)


def _cuts(plan: Plan) -> Kwargs:
    """The cuts outside of skipped blocks."""
    return {name: cut for name, cut in plan.cuts.items() if not name.startswith(_below(plan.bypasses))}


def _arguments(denoiser: Denoiser) -> Kwargs:
    """What the denoiser's class was called with."""
    names = inspect.signature(type(denoiser)).parameters
    return {name: value for name, value in denoiser.config.items() if name in names}


def _assembled(kind: type[Denoiser], arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> Denoiser:
    with torch.device("meta"):
        model = kind(**arguments)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def check_new(target: Path) -> None:
    """Refuse, before any work is done, what :func:`export` does not write to.

    Raises:
        StorageError: a folder that holds something, or one that cannot be made or written to.
    """
    check_outputs(target)
    if target.exists() and any(target.iterdir()):
        expected, found = "a new or an empty folder", "a folder with files in it"
        raise StorageError(str(target), expected=expected, found=found, remedy="Name another one.")


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A folder whose files are those of ``target`` at the end of the block, or vanish."""
    staging, there, moved = None, target.exists(), list[Path]()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target if there else target.parent))
        staging.chmod(0o755)
        yield staging
        if not there:
            os.replace(staging, target)
        else:  # it may be where somebody stands, or where a disk is mounted; without its index nothing loads
            for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == "model_index.json"):
                moved.append(target / entry.name)
                os.replace(entry, moved[-1])
    except (OSError, SafetensorError) as error:
        for path in moved:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        remedy = "Choose another folder, or free some space and run the same command again."
        raise StorageError(str(target), expected="room to write", found=str(error), remedy=remedy) from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging)


def _forget_origin(folder: Path) -> None:
    """Take out of the configurations where on this machine the base model lay."""
    for path in folder.rglob("*.json"):
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")
