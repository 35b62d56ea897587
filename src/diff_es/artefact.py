"""A finished result: a schedule and the pruning plans of its stages, saved without the base model's own weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from pydantic import SkipValidation
from torch import nn

from .arguments import Place, checked
from .base import check_base
from .errors import ArtefactError, DiffESError
from .files import write_text
from .layers import Plan, anatomy_of
from .limits import Speedup
from .loading import check_denoiser
from .manifest import Point, tied
from .manifest import checked as checked_manifest
from .multistep import Corrections, fixed
from .origin import Origin
from .packing import left_out, pack, unpack
from .pipeline import AnyPipeline, OwnSampler, Sampling, family_of
from .placements import Placed, Placement, Resident, Store, choose
from .reported import SearchReport, report_to_json
from .route import Routing, routing_of
from .schedule import Schedule
from .settings import plain
from .sharing import HubClient, fetched_result, push
from .stepping import check_corrected, stepping, stepping_of
from .store import MANIFEST, read_folder, write_folder
from .summary import model_card, summary
from .timing import Runner

Piped = TypeVar("Piped", bound=AnyPipeline | nn.Module)


@dataclass(frozen=True)
class Compressed:
    """A pipeline's faster version. The pipeline itself stays with the user; this only routes it."""

    schedule: Schedule
    plans: tuple[Plan, ...] = field(repr=False)  # one for each stage
    sampling: Sampling
    base: str  # fingerprint of the dense denoiser
    origin: Origin | None = field(default=None, repr=False)  # of the pipeline; None: it was not said
    searched: SearchReport | None = field(default=None, repr=False)  # None: it was made by hand
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

    @property
    def report(self) -> SearchReport:
        """What the search found.

        Raises:
            ArtefactError: there was none.
        """
        if self.searched is None:
            found, remedy = "none: it was made by hand", "Use it from Python: diff_es.load(...).routed(...)."
            raise ArtefactError("result", expected="what a search said of it", found=found, remedy=remedy)
        return self.searched

    @property
    def front(self) -> Front:
        """The results of the same search for all budgets, this one among them."""
        points = sorted((self, *self.others), key=_macs_ratio)
        return Front(tuple(points), next(i for i, point in enumerate(points) if point is self))

    def summary(self) -> str:
        """What this is: model, budget, steps, levels by stage, fidelity, speed and memory."""
        return summary(self.schedule, self.plans, self.corrections, self.placement, self.origin, self.searched)

    def __str__(self) -> str:
        return self.summary()

    def runner(self, name: str, sampling: Sampling, placement: Placement | None = None) -> Runner:
        """This result as a contender in a comparison, in a placement; default resident."""
        placed = placement or Resident()
        return Runner(name, sampling, self.schedule.stages, self.plans, placed, self.timesteps, self.corrections)

    @checked()
    @contextmanager
    def routed(self, pipe: SkipValidation[Piped], placement: Placed | None = None) -> Iterator[Piped]:
        """Run ``pipe`` with this result inside a ``with`` block; afterwards it is dense again, to the bit.

        Every pipeline that holds the same denoiser runs with its weights meanwhile, and calls of several threads take
        turns. A loop of your own (:class:`OwnSampler`) takes the place of a pipeline, and so does, where no steps were
        chosen, a denoiser that was declared (``diff_es.layers.declare``).

        The pipeline is called as before, with the number of steps that the result was made for; where the search chose
        the steps, those are taken instead, and another number is refused.

        Args:
            placement: where the weights wait; default the result's own, or else by the memory that is free.

        Raises:
            ArtefactError: made for another base model, or for another placement.
            DiffESError: the pipeline is routed already, or its scheduler takes no chosen timesteps.
        """
        routing = self._begin(pipe, placement)
        try:
            yield pipe
        finally:
            routing.detach()

    @checked()
    def apply(self, pipe: SkipValidation[AnyPipeline], placement: Placed | None = None) -> None:
        """Run ``pipe`` with this result until :meth:`remove`; raises as :meth:`routed` does."""
        self._begin(pipe, placement)

    @checked()
    def remove(self, pipe: SkipValidation[AnyPipeline]) -> None:
        """Undo :meth:`apply`, whichever of the pipelines that share the denoiser it was told of.

        Raises:
            DiffESError: nothing is applied to this pipeline.
        """
        routing = routing_of(check_denoiser(pipe))
        if routing is None:
            remedy = "Call apply(pipe) first; a `with routed(pipe)` block needs no remove."
            raise DiffESError("pipe", expected="a pipeline with a result applied", found="a dense one", remedy=remedy)
        routing.detach()

    @checked()
    def check(self, pipe: SkipValidation[AnyPipeline]) -> nn.Module:
        """The denoiser of a dense pipeline, or a declared one itself, that this was made for; raises as :meth:`routed`
        does."""
        denoiser: nn.Module = check_denoiser(pipe)
        if routing_of(denoiser) is not None or stepping_of(pipe) is not None:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
        from_noise = isinstance(pipe, OwnSampler) or family_of(pipe) is not None  # not image to image, by a strength
        if self.timesteps is not None and not from_noise:
            remedy = (
                "Search levels alone (`--levers prune`): they hold wherever a pipeline starts. A denoiser by itself "
            )
            remedy += "takes no steps: give the OwnSampler with its loop."
            found = type(pipe).__name__
            raise DiffESError(
                "pipe", expected="one that takes the chosen steps from noise on", found=found, remedy=remedy
            )
        if self.timesteps is not None and self.corrections and not isinstance(pipe, OwnSampler):
            if self.origin is None:
                expected, remedy = "the origin, whose scheduler steps are corrected for", "Leave corrections out."
                raise ArtefactError("artefact", expected=expected, found="none", remedy=remedy)
            check_corrected(pipe.scheduler, self.origin.scheduler, self.timesteps, self.sampling.steps)
        check_base(denoiser, self.plans, self.base)
        return denoiser

    def _begin(self, pipe: AnyPipeline, placement: Placement | None) -> Routing:
        """Route a pipeline and choose its steps, both or nothing."""
        denoiser = self.check(pipe)
        anatomy, place, chosen = anatomy_of(denoiser), placement or self.placement, None
        if self.timesteps is not None:
            chosen = stepping(pipe, self.timesteps, self.sampling.steps, fixed(self.corrections))

        def opened() -> Store:
            return (place or choose(denoiser, anatomy, self.plans)).open(denoiser, anatomy, self.plans)

        check = partial(check_base, denoiser, self.plans, self.base)
        ending = None if chosen is None else chosen.detach
        routing = Routing(denoiser, self.schedule.stages, opened, check, ending)
        routing.attach()
        try:
            if chosen is not None:
                chosen.attach()
        except BaseException:
            routing.detach()
            raise
        return routing

    @checked()
    def save(self, folder: Place) -> None:
        """Write the artefact: one safetensors file per distinct plan and a JSON manifest, whole or not at all.

        Raises:
            StorageError: the disk refused, or the folder holds something else.
        """
        points = self.front.points
        files, stems = pack([plan for point in points for plan in point.plans])
        described, names = list[dict[str, Any]](), iter(stems)
        for point in points:
            stages = [{"file": next(names), "left_out": left_out(plan)} for plan in point.plans]
            described.append({**point._described(), "stages": stages})
        chosen, described = self.front.asked, json.loads(json.dumps(described))  # as they will be read

        def about(hashes: Mapping[str, str]) -> dict[str, Any]:
            return {"chosen": chosen, "points": [{**entry, "sha256": tied(entry, hashes)} for entry in described]}

        write_folder(Path(folder), files, about)

    def save_pretrained(self, folder: str | Path) -> None:
        """:meth:`save`, by the name that diffusers gives it."""
        self.save(folder)

    @classmethod
    def from_pretrained(cls, name: str | Path, point: float | None = None) -> Compressed:
        """:func:`load`, by the name that diffusers gives it; also of a repository of the hub (:meth:`push_to_hub`).

        Raises:
            ArtefactError: there is none; or as :func:`load` does.
        """
        return load(fetched_result(name), point)

    def push_to_hub(self, repository: str, *, private: bool | None = None, client: HubClient | None = None) -> None:
        """Upload this result, with a model card, to a repository of the hub, which is made where it is missing.

        Args:
            repository: such as ``"me/my-model-diff-es"``.
            private: whether one that is made is; None: as the account is set.
            client: of the hub; None: ``huggingface_hub.HfApi()``, with the login of this machine.

        Raises:
            StorageError: the hub refused, or is out of reach.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "result")
            self.save(folder)
            write_text(folder / "README.md", model_card(self.summary(), self.origin, repository))
            push(folder, repository, client or HfApi(), private=private)

    def _described(self) -> dict[str, Any]:
        """All but the plans, as JSON values."""
        return {
            "schedule": self.schedule.to_json(),
            "sampling": asdict(self.sampling),
            "timesteps": None if self.timesteps is None else list(self.timesteps),
            "corrections": [list(weights) for weights in self.corrections],
            "base": self.base,
            "placement": None if self.placement is None else plain(self.placement),
            "origin": None if self.origin is None else asdict(self.origin),
            "report": None if self.searched is None else report_to_json(self.searched),
        }


@dataclass(frozen=True)
class Front:
    """The results of one search for several budgets, the cheapest first."""

    points: tuple[Compressed, ...]
    asked: int  # which of them was asked for

    def saving(self, times: float) -> Compressed:
        """The best, which is the dearest, that is at least so many times cheaper than dense.

        Raises:
            DiffESError: none is so cheap.
        """
        fits = [point for point in self.points if _macs_ratio(point) * times <= 1 + 1e-9]
        if not fits:
            shown = ", ".join(f"{1 / _macs_ratio(point):.2f}x" for point in reversed(self.points))
            remedy = "Ask for less, or compress again with a smaller budget."
            raise DiffESError("point", expected=f"one of {shown}, or less", found=f"{times:g}x", remedy=remedy)
        return fits[-1]


def _macs_ratio(point: Compressed) -> float:
    """Relative to dense; of a result made by hand it is not known."""
    return 1.0 if point.searched is None else point.searched.macs_ratio


@checked()
def load(folder: Place, point: Speedup | None = None) -> Compressed:
    """A saved result; the base model is needed only to run it.

    Args:
        point: of the results for several budgets the best one that is at least so many times cheaper than dense, such
            as 1.4; None takes the one that was asked for. The others are in its ``others``.

    Raises:
        ArtefactError: no artefact, a damaged one, or one of another format; the message names the file.
        DiffESError: no result is so cheap.
    """
    tensors, manifest = read_folder(Path(folder))
    found = checked_manifest(manifest, str(Path(folder) / MANIFEST))
    stages = [stage for entry in found.points for stage in entry.stages]
    plans = iter(unpack(tensors, [stage.file for stage in stages], [stage.left_out for stage in stages], str(folder)))
    front = Front(tuple(_restored(entry, plans) for entry in found.points), found.chosen)
    chosen = front.points[front.asked] if point is None else front.saving(point)
    return replace(chosen, others=tuple(other for other in front.points if other is not chosen))


def _restored(entry: Point, plans: Iterator[Plan]) -> Compressed:
    return Compressed(
        schedule=entry.schedule.made(),
        plans=tuple(next(plans) for _ in entry.stages),
        sampling=entry.sampling,
        base=entry.base,
        origin=None if entry.origin is None else entry.origin.made(),
        searched=None if entry.report is None else entry.report.made(),
        placement=entry.placement,
        timesteps=entry.timesteps,
        corrections=entry.corrections,
    )
