"""A finished result: a schedule and the pruning plans of its stages, saved without the base model's own weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import ArtefactError, DiffESError, several
from .layers import Anatomy, Plan, adapted, anatomy_of, base_parameters, check_plan
from .loading import check_denoiser
from .multistep import Correct, Corrections, fixed
from .packing import left_out, pack, unpack
from .pipeline import AnyPipeline, Sampling, family_of
from .placements import Placement, Store, choose
from .route import Routing, routing_of
from .route import routed as routed_denoiser
from .schedule import Schedule, Stages
from .settings import plain, value_of
from .stepping import Stepping, stepped, stepping_of
from .store import read_folder, write_folder

_SAMPLED = 512  # values of each parameter that the fingerprint reads


def fingerprint(denoiser: nn.Module) -> str:
    """A hash of a denoiser's parameter names, shapes and evenly sampled values, the same in float32 and bfloat16, and
    with adapters that are not fused."""
    digest = hashlib.sha256()
    for name, parameter in base_parameters(denoiser):
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
    placement: Placement | None = None  # where weights wait; None: by the memory that is free
    timesteps: tuple[float, ...] | None = None  # what the sampler takes in place of its own; None: its own
    corrections: Corrections = ()  # of the steps to these timesteps
    others: tuple[Compressed, ...] = field(default=(), repr=False)  # the same search's results for other budgets

    def __post_init__(self) -> None:
        if len(self.plans) != len(self.schedule.stages):
            expected, found = f"{len(self.schedule.stages)} plans, one for each stage", f"{len(self.plans)}"
            raise ArtefactError("artefact", expected=expected, found=found, remedy="Compress again.")
        if self.corrections and len(self.corrections) != len(self.timesteps or ()):
            expected = f"corrections of {len(self.timesteps or ())} steps"
            raise ArtefactError(
                "artefact", expected=expected, found=f"{len(self.corrections)}", remedy="Compress again."
            )

    @contextmanager
    def routed(self, pipe: AnyPipeline, placement: Placement | None = None) -> Iterator[AnyPipeline]:
        """Run ``pipe`` with this result inside a ``with`` block; afterwards it is dense again, to the bit.

        A denoiser that was declared (``diff_es.layers.declare``) may take the place of a pipeline.

        The pipeline is called as before, with the number of steps that the result was made for; where the search chose
        the steps, those are taken instead, and another number is refused.

        Args:
            placement: where the weights wait; default the result's own, or else by the memory that is free.

        Raises:
            ArtefactError: made for another base model, or for another placement.
            DiffESError: the pipeline is routed already, or its scheduler takes no chosen timesteps.
        """
        routing = self._routing(pipe, placement)
        chosen = nullcontext() if self.timesteps is None else stepped(pipe, *self._steps(self.timesteps))
        with chosen, routed_denoiser(*routing):
            yield pipe

    def apply(self, pipe: AnyPipeline, placement: Placement | None = None) -> None:
        """Run ``pipe`` with this result until :meth:`remove`; raises as :meth:`routed` does."""
        routing = Routing(*self._routing(pipe, placement))
        stepping = None if self.timesteps is None else Stepping(pipe, *self._steps(self.timesteps))
        routing.attach()
        if stepping is not None:
            stepping.attach()

    def remove(self, pipe: AnyPipeline) -> None:
        """Undo :meth:`apply`.

        Raises:
            DiffESError: nothing is applied to this pipeline.
        """
        routing, stepping = routing_of(check_denoiser(pipe)), stepping_of(pipe)
        if routing is None:
            remedy = "Call apply(pipe) first; a `with routed(pipe)` block needs no remove."
            raise DiffESError("pipe", expected="a pipeline with a result applied", found="a dense one", remedy=remedy)
        if stepping is not None:
            stepping.detach()
        routing.detach()

    def check(self, pipe: AnyPipeline) -> nn.Module:
        """The denoiser of a dense pipeline, or a declared one itself, that this was made for; raises as :meth:`routed`
        does."""
        denoiser: nn.Module = check_denoiser(pipe)
        if self.timesteps is not None and family_of(pipe) is None:  # such as image to image, by a strength
            remedy = "Search levels alone (`--levers prune`): they hold wherever a pipeline starts."
            found = type(pipe).__name__
            raise DiffESError(
                "pipe", expected="one that takes the chosen steps from noise on", found=found, remedy=remedy
            )
        if routing_of(denoiser) is not None or stepping_of(pipe) is not None:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
        if self.corrections:
            made, own = self.about["origin"]["scheduler"]["_class_name"], type(pipe.scheduler).__name__
            if own != made:
                expected = f"{made}, for which steps are corrected"
                remedy = "Give the pipeline the scheduler that it was compressed with, or compress it with this one."
                raise ArtefactError("scheduler", expected=expected, found=own, remedy=remedy)
        anatomy, plans = anatomy_of(denoiser), {id(plan): plan for plan in self.plans}.values()
        pruned = {name for plan in plans for name in plan.cuts}
        skipped = tuple({f"{block}." for plan in plans for block in plan.bypasses})
        refused = {refusal.name: refusal.reason for refusal in anatomy.refusals if refusal.name in pruned}
        inside = "an adapter in a block that is skipped"
        refused |= {name: inside for name in adapted(denoiser) if name.startswith(skipped)}
        if refused:  # which were none when it was compressed
            remedy = "Undo what changed them: unload adapters before routing, or fuse them and compress again."
            where, found = f"base model, {several(list(refused))}", next(iter(refused.values()))
            expected = "layers as they were when it was compressed"
            raise ArtefactError(where, expected=expected, found=found, remedy=remedy)
        for plan in plans:
            check_plan(denoiser, anatomy, plan)
        if (found := fingerprint(denoiser)) != self.base:
            remedy = "Load the pipeline that was compressed, in float32 or bfloat16 as it was, or compress this one."
            expected = f"{self.base[:12]}..., the one that was compressed"
            raise ArtefactError("hash of the base model", expected=expected, found=f"{found[:12]}...", remedy=remedy)
        return denoiser

    def _routing(
        self, pipe: AnyPipeline, placement: Placement | None
    ) -> tuple[nn.Module, Anatomy, Stages, Callable[[], Store]]:
        """What routing a matching pipeline takes; raises as :meth:`routed`."""
        denoiser = self.check(pipe)
        anatomy = anatomy_of(denoiser)
        placement = placement or self.placement or choose(denoiser, anatomy, self.plans)
        return denoiser, anatomy, self.schedule.stages, partial(placement.open, denoiser, anatomy, self.plans)

    def _steps(self, timesteps: tuple[float, ...]) -> tuple[tuple[float, ...], int, Correct | None]:
        """What stepping a matching pipeline takes."""
        return timesteps, self.sampling.steps, fixed(self.corrections)

    def save(self, folder: str | Path) -> None:
        """Write the artefact: one safetensors file per distinct plan and a JSON manifest, whole or not at all.

        Raises:
            StorageError: the disk refused, or the folder holds something else.
        """
        points = sorted((self, *self.others), key=lambda point: float(point.about.get("macs_ratio", 1.0)))
        files, stems = pack([plan for point in points for plan in point.plans])
        described, names = list[dict[str, Any]](), iter(stems)
        for point in points:
            stages = [{"file": next(names), "left_out": left_out(plan)} for plan in point.plans]
            described.append({**point._described(), "stages": stages})
        chosen = next(i for i, point in enumerate(points) if point is self)  # plans, made of tensors, have no equality
        write_folder(Path(folder), files, {"chosen": chosen, "points": described})

    def _described(self) -> dict[str, Any]:
        """All but the plans, as JSON values."""
        return {
            "schedule": self.schedule.to_json(),
            "sampling": asdict(self.sampling),
            "timesteps": None if self.timesteps is None else list(self.timesteps),
            "corrections": [list(weights) for weights in self.corrections],
            "base": self.base,
            "placement": None if self.placement is None else plain(self.placement),
            "about": dict(self.about),
        }


def load(folder: str | Path, point: float | None = None) -> Compressed:
    """A saved result; the base model is needed only to run it.

    Args:
        point: of the results for several budgets the best one that is at least so many times cheaper than dense, such
            as 1.4; None takes the one that was asked for. The others are in its ``others``.

    Raises:
        ArtefactError: no artefact, a damaged one, or one of another format; the message names the file.
        DiffESError: no result is so cheap.
    """
    tensors, manifest = read_folder(Path(folder))
    try:
        stages = [stage for entry in manifest["points"] for stage in entry["stages"]]
        plans = iter(unpack(tensors, [stage["file"] for stage in stages], [stage["left_out"] for stage in stages]))
        points = [_restored(entry, plans) for entry in manifest["points"]]
        asked = points[manifest["chosen"]]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        remedy = "The manifest was changed by hand or by another program: compress again."
        found = f"{type(error).__name__} {error}"
        raise ArtefactError(str(folder), expected="a complete manifest", found=found, remedy=remedy) from error
    chosen = asked if point is None else points[_cheap_enough(points, point)]
    return replace(chosen, others=tuple(other for other in points if other is not chosen))


def _restored(entry: Mapping[str, Any], plans: Iterator[Plan]) -> Compressed:
    return Compressed(
        schedule=Schedule.from_json(entry["schedule"]),
        plans=tuple(next(plans) for _ in entry["stages"]),
        sampling=Sampling(**entry["sampling"]),
        base=entry["base"],
        about=entry["about"],
        placement=None if entry["placement"] is None else value_of(entry["placement"]),
        timesteps=None if entry["timesteps"] is None else tuple(entry["timesteps"]),
        corrections=tuple(tuple(map(float, weights)) for weights in entry["corrections"]),
    )


def _cheap_enough(points: Sequence[Compressed], point: float) -> int:
    """The dearest of the points, which come cheapest first, that saves so much."""
    ratios = [float(result.about["macs_ratio"]) for result in points]
    fits = [i for i, ratio in enumerate(ratios) if ratio * point <= 1 + 1e-9]
    if not fits:
        shown = ", ".join(f"{1 / ratio:.2f}x" for ratio in reversed(ratios))
        remedy = "Ask for less, or compress again with a smaller budget."
        raise DiffESError("point", expected=f"one of {shown}, or less", found=f"{point:g}x", remedy=remedy)
    return fits[-1]
