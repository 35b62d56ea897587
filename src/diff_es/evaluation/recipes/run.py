"""The run of a recipe, batch by batch, by this process or by workers: each is on the disk as soon as it is judged."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...execution import Executor, InProcess, Work
from ...execution.shipping import shipped
from ...pipelines.encodings import Encodings, encoded_once
from ...pipelines.finite import check_finite
from ...pipelines.sampling import decode, sample
from ...utils.files import make_folder, write_text
from ...utils.locks import held_folder
from ...utils.progress import Reporter
from ..assemble import picture
from .measures import Made, judge
from .opened import DENSE, Opened
from .shards import RESULT, Shards, begun

PICTURES = "images"


@dataclass(frozen=True)
class Measured:
    """A figure of a contender, beside what others have published of the dense model."""

    contender: str
    metric: str
    value: float
    error: float | None  # the standard error, of a mean over images
    published: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    title: str
    images: int
    rows: tuple[Measured, ...]

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        return {"title": self.title, "images": self.images, "rows": [asdict(row) for row in self.rows]}


class Piece(NamedTuple):
    """A batch, by the numbers of its images, and whether these are kept."""

    images: range
    keep: bool


class Answer(NamedTuple):
    """What all contenders come to on a batch."""

    scores: dict[str, Tensor]  # CONTENDER/METRIC by image: (N,), or features (N, F); on the CPU
    pictures: dict[str, list[bytes]]  # the PNG files of each contender's images, where they are kept


def run_recipe(
    ready: Opened, folder: Path, reporter: Reporter, executor: Executor | None = None, *, keep: bool = False
) -> Outcome:
    """Sample and judge all images, or those that are left, and write ``result.json``.

    A run that was stopped goes on to the identical result, whoever works. Memory is that of a batch, and what a metric
    needs of all images, such as a matrix of moments.

    Args:
        folder: where scores are kept; this process alone writes there, so no worker need see it.
        executor: who samples and judges; None: this process.
        keep: whether every image is kept there too, as ``images/CONTENDER/NUMBER.png``.

    Raises:
        DiffESError: another recipe's run is there, the dense model gives numbers that are none, or workers fail.
        StorageError: the disk refused, or another process works on the folder.
    """
    work = Work(partial(scores, ready), lambda: shipped(ready, ready.pipe), _there)
    with held_folder(folder):
        shards, batches = begun(folder, ready.identity), ready.batches()
        left = [Piece(batch, keep) for batch in batches if not _done(ready, shards, batch, keep)]
        if done := len(batches) - len(left):
            reporter.say(f"Going on: {done} of {len(batches)} batches are in {folder}.")
        workers = executor if executor and left else InProcess()  # nobody is called for nothing
        try:
            with workers.crew(reporter) as crew, reporter.task("evaluate", len(left)) as task:
                for piece, answer in crew.answers(work, left):
                    _write(shards, piece.images, answer)
                    task.advance()
        except KeyboardInterrupt as stop:
            stop.add_note(f"What was evaluated is in {folder}: run the same command again to go on.")
            raise
        found = Outcome(ready.recipe.title, ready.recipe.images.count, tuple(_rows(ready, shards)))
        write_text(folder / RESULT, json.dumps(found.to_json(), indent=2) + "\n")
    return found


def scores(ready: Opened, piece: Piece) -> Answer:
    """What all contenders come to on some images, and these where they are kept."""
    probes, sampling = [ready.probe(i) for i in piece.images], ready.recipe.sampling
    found, dense = Answer({}, {}), None
    with encoded_once(ready.pipe, Encodings()):
        for contender in ready.contenders:
            with contender.context(ready.pipe):
                latents = sample(ready.pipe, probes, sampling)
            made = Made(latents, decode(ready.pipe, latents), tuple(str(probe.condition) for probe in probes))
            if dense is None:
                check_finite(ready.pipe, probes, sampling, made.images)
            judged = judge(ready.measures, made, dense)
            found.scores.update({f"{contender.name}/{metric}": score.cpu() for metric, score in judged.items()})
            dense = dense or made
            if piece.keep:
                found.pictures[contender.name] = [_png(image) for image in made.images]
    return found


def _there(ready: Opened) -> partial[Answer]:
    """What a worker answers with."""
    return partial(scores, ready)


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    picture(image).save(file, "PNG")
    return file.getvalue()


def _write(shards: Shards, images: range, answer: Answer) -> None:
    """Keep a batch: its pictures first, as it is done when its scores are there."""
    for name, files in answer.pictures.items():
        make_folder(shards.folder / PICTURES / name)
        for i, file in zip(images, files, strict=True):
            _picture(shards.folder / PICTURES, name, i).write_bytes(file)
    shards.write(images, answer.scores)


def _picture(pictures: Path, contender: str, index: int) -> Path:
    return pictures / contender / f"{index:07d}.png"


def _done(ready: Opened, shards: Shards, batch: range, keep: bool) -> bool:
    """Whether a batch is on the disk whole, with its images where these are kept."""
    if shards.read(batch) is None:
        return False
    names = [contender.name for contender in ready.contenders if keep]
    return all(_picture(shards.folder / PICTURES, name, i).exists() for name in names for i in batch)


def _rows(ready: Opened, shards: Shards) -> Iterator[Measured]:
    """The figures of all contenders."""
    batches, measures = ready.batches(), ready.measures
    for contender in ready.contenders:
        name = contender.name
        paired = () if name == DENSE else (*measures.of_latents, *measures.of_images)
        for metric in (*paired, *measures.of_text):
            values = [value for part in shards.column(f"{name}/{metric}", batches) for value in part.tolist()]
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
            yield _row(ready, name, metric, statistics.fmean(values), error)
        for metric, of_set in measures.of_set.items():
            for figure, value in of_set.figures(shards.column(f"{name}/{metric}", batches)).items():
                yield _row(ready, name, figure, value, None)


def _row(ready: Opened, contender: str, metric: str, value: float, error: float | None) -> Measured:
    """With what was published, where something was."""
    for figure in ready.recipe.published:
        if figure.metric == metric and contender == DENSE:
            return Measured(contender, metric, value, error, figure.value, figure.source)
    return Measured(contender, metric, value, error)
