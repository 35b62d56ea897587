"""A finished result: a schedule and the pruning plans of its stages, saved without the base model's own weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from huggingface_hub import HfApi

from ..layers import Plan
from ..utils.arguments import Place, checked
from ..utils.errors import ArtefactError, DiffESError
from ..utils.files import write_text
from ..utils.limits import Speedup
from .manifest import Point, tied
from .manifest import checked as checked_manifest
from .packing import left_out, pack, unpack
from .report import SearchReport, report_to_json
from .routable import Routable
from .settings import plain
from .sharing import HubClient, fetched_result, push
from .store import MANIFEST, read_folder, write_folder
from .summary import model_card, summary


@dataclass(frozen=True)
class Compressed(Routable):
    """A pipeline's faster version, and what is known of it."""

    searched: SearchReport | None = field(default=None, repr=False)  # None: it was made by hand
    others: tuple[Compressed, ...] = field(default=(), repr=False)  # the same search's results for other budgets

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

    @checked()
    def save(self, folder: Place) -> None:
        """Write the artefact: one safetensors file per distinct plan and a JSON manifest, whole or not at all.

        Raises:
            StorageError: the disk refused, or the folder holds something else.
        """
        points = self.front.points
        files, stems = pack([plan for point in points for plan in point.plans])
        described, names = list[dict[str, object]](), iter(stems)
        for point in points:
            stages = [{"file": next(names), "left_out": left_out(plan)} for plan in point.plans]
            described.append({**point._described(), "stages": stages})
        chosen, described = self.front.asked, json.loads(json.dumps(described))  # as they will be read

        def about(hashes: Mapping[str, str]) -> dict[str, object]:
            return {"chosen": chosen, "points": [{**entry, "sha256": tied(entry, hashes)} for entry in described]}

        write_folder(Path(folder), files, about)

    def save_pretrained(self, folder: Place) -> None:
        """:meth:`save`, by the name that diffusers gives it."""
        self.save(folder)

    @classmethod
    @checked()
    def from_pretrained(cls, name: Place, point: Speedup | None = None) -> Compressed:
        """:func:`load`, by the name that diffusers gives it; also of a repository of the hub (:meth:`push_to_hub`).

        Raises:
            ArtefactError: there is none; or as :func:`load` does.
        """
        return load(fetched_result(name), point)

    def push_to_hub(self, repository: str, *, private: bool | None = None, client: HubClient | None = None) -> None:
        """Upload this result, with a model card, to a repository of the hub, which is made where it is missing.

        Where on this machine the base model lies is not told.

        Args:
            repository: such as ``"me/my-model-diff-es"``.
            private: whether one that is made is; None: as the account is set.
            client: of the hub; None: ``huggingface_hub.HfApi()``, with the login of this machine.

        Raises:
            StorageError: the hub refused, or is out of reach.
        """
        with tempfile.TemporaryDirectory() as name:
            folder, told = Path(name, "result"), self._told()
            told.save(folder)
            write_text(folder / "README.md", model_card(told.summary(), told.origin, repository))
            push(folder, repository, client or HfApi(), private=private)

    def _told(self) -> Compressed:
        """As others may see it."""
        origin, others = self.origin, tuple(one._told() for one in self.others)
        return replace(self, origin=None if origin is None else origin.told(), others=others)

    def _described(self) -> dict[str, object]:
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
