"""A finished result: a schedule and the pruning plans of its stages, saved without the base model's own weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArtefactError, DiffESError
from .layers import Bypass, Cut, Plan, Weights, check_plan, discover
from .loading import check
from .pipeline import AnyPipeline, Sampling, denoiser_of
from .route import Routing, realise_all, routing_of
from .route import routed as routed_denoiser
from .schedule import Schedule
from .store import read_folder, write_folder

_SAMPLED = 512  # values of each parameter that the fingerprint reads


def fingerprint(denoiser: nn.Module) -> str:
    """A hash of a denoiser's parameter names, shapes and evenly sampled values, the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for name, parameter in denoiser.named_parameters():
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].bfloat16().cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Compressed:
    """A pipeline's faster version. The pipeline itself stays with the user; this only routes it.

    ``about`` holds what the search found, as JSON values: budget, realised MACs, scores, history, settings.
    """

    schedule: Schedule
    plans: tuple[Plan, ...] = field(repr=False)  # one for each stage
    sampling: Sampling
    base: str  # fingerprint of the dense denoiser
    about: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.plans) != len(self.schedule.stages):
            expected, found = f"{len(self.schedule.stages)} plans, one for each stage", f"{len(self.plans)}"
            raise ArtefactError("artefact", expected=expected, found=found, remedy="Compress again.")

    @contextmanager
    def routed(self, pipe: AnyPipeline) -> Iterator[AnyPipeline]:
        """Run ``pipe`` with this result inside a ``with`` block; afterwards it is dense again, to the bit.

        Raises:
            ArtefactError: made for another base model.
            DiffESError: the pipeline is routed already.
        """
        denoiser, weights = self.weights(pipe)
        with routed_denoiser(denoiser, self.schedule.stages, weights):
            yield pipe

    def apply(self, pipe: AnyPipeline) -> None:
        """Run ``pipe`` with this result until :meth:`remove`; raises as :meth:`routed` does."""
        denoiser, weights = self.weights(pipe)
        Routing(denoiser, self.schedule.stages, weights).attach()

    def remove(self, pipe: AnyPipeline) -> None:
        """Undo :meth:`apply`.

        Raises:
            DiffESError: nothing is applied to this pipeline.
        """
        routing = routing_of(denoiser_of(check(pipe)))
        if routing is None:
            remedy = "Call apply(pipe) first; a `with routed(pipe)` block needs no remove."
            raise DiffESError("pipe", expected="a pipeline with a result applied", found="a dense one", remedy=remedy)
        routing.detach()

    def check(self, pipe: AnyPipeline) -> nn.Module:
        """The denoiser of a dense pipeline that this was made for; raises as :meth:`routed` does."""
        denoiser: nn.Module = denoiser_of(check(pipe))
        if routing_of(denoiser) is not None:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
        anatomy = discover(denoiser)
        for plan in {id(plan): plan for plan in self.plans}.values():
            check_plan(denoiser, anatomy, plan)
        if (found := fingerprint(denoiser)) != self.base:
            remedy = "Load the pipeline that was compressed, in float32 or bfloat16 as it was, or compress this one."
            expected = f"{self.base[:12]}..., the one that was compressed"
            raise ArtefactError("hash of the base model", expected=expected, found=f"{found[:12]}...", remedy=remedy)
        return denoiser

    def weights(self, pipe: AnyPipeline) -> tuple[nn.Module, tuple[Weights, ...]]:
        """The denoiser of a matching dense pipeline, and what it runs with in each stage; raises as :meth:`routed`."""
        denoiser = self.check(pipe)
        return denoiser, realise_all(denoiser, discover(denoiser), self.plans)

    def save(self, folder: str | Path) -> None:
        """Write the artefact: one safetensors file per distinct plan and a JSON manifest, whole or not at all.

        Raises:
            StorageError: the disk refused, or the folder holds something else.
        """
        plans = list({id(plan): plan for plan in self.plans}.values())
        names = {id(plan): f"plan-{i:02d}" for i, plan in enumerate(plans)}
        contents = {
            "schedule": self.schedule.to_json(),
            "sampling": asdict(self.sampling),
            "base": self.base,
            "stages": [{"file": names[id(plan)], "left_out": _left_out(plan)} for plan in self.plans],
            "about": dict(self.about),
        }
        write_folder(Path(folder), {names[id(plan)]: _pack(plan) for plan in plans}, contents)


def load(folder: str | Path) -> Compressed:
    """A saved result; the base model is needed only to run it.

    Raises:
        ArtefactError: no artefact, a damaged one, or one of another format; the message names the file.
    """
    tensors, manifest = read_folder(Path(folder))
    try:
        plans = {stage["file"]: _unpack(tensors[stage["file"]], stage["left_out"]) for stage in manifest["stages"]}
        return Compressed(
            schedule=Schedule.from_json(manifest["schedule"]),
            plans=tuple(plans[stage["file"]] for stage in manifest["stages"]),
            sampling=Sampling(**manifest["sampling"]),
            base=manifest["base"],
            about=manifest["about"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        remedy = "The manifest was changed by hand or by another program: compress again."
        found = f"{type(error).__name__} {error}"
        raise ArtefactError(str(folder), expected="a complete manifest", found=found, remedy=remedy) from error


def _left_out(plan: Plan) -> list[str]:
    return sorted(name for name, bypass in plan.bypasses.items() if bypass is None)


def _pack(plan: Plan) -> dict[str, Tensor]:
    tensors = dict[str, Tensor]()
    for name, cut in plan.cuts.items():
        parts = {"kept": cut.kept.int(), "weight": cut.weight, "bias": cut.bias}
        tensors |= {f"cut/{name}/{part}": value for part, value in parts.items() if value is not None}
    for name, bypass in plan.bypasses.items():
        if bypass is not None:
            tensors |= {f"bypass/{name}/weight": bypass.weight, f"bypass/{name}/bias": bypass.bias}
    return tensors


def _unpack(tensors: Mapping[str, Tensor], left_out: list[str]) -> Plan:
    parts = dict[tuple[str, str], dict[str, Tensor]]()
    for key, tensor in tensors.items():
        kind, name, part = key.split("/")
        parts.setdefault((kind, name), {})[part] = tensor
    cuts = {
        name: Cut(part["kept"].long(), part.get("weight"), part.get("bias"))
        for (kind, name), part in parts.items()
        if kind == "cut"
    }
    bypasses: dict[str, Bypass | None] = dict.fromkeys(left_out)
    bypasses |= {name: Bypass(**part) for (kind, name), part in parts.items() if kind == "bypass"}
    return Plan(cuts, bypasses)
