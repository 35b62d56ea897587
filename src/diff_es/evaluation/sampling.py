"""What all contenders make of the same noises, batch by batch: by this process, or by workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..compression.study import Study
from ..execution import Alone, Crew, Work
from ..execution.shipping import shipped
from ..pipelines.encodings import Encodings, encoded_once
from ..pipelines.probes import Probe, make_probes
from ..pipelines.sampling import AnyPipeline, decode, sample
from ..scoring.timing import Way
from ..utils.progress import Reporter
from .rivals import Contender


class Sampled(NamedTuple):
    """Of some noises."""

    latents: Tensor  # final ones, (N, ...), on the CPU
    images: Tensor  # (N, 3, H, W) in [0, 1]; of a loop without a decoder the latents


class Batch(NamedTuple):
    """A piece of the work: some of the noises, in the way of one contender."""

    way: int
    noises: range


@dataclass(frozen=True)
class Ways:
    """What batches are sampled from, and how."""

    pipe: AnyPipeline
    ways: tuple[Way, ...]
    probes: tuple[Probe, ...]


class Sampler:
    """Samples batches. A way stays set up for as long as it is asked for: that takes its time.

    Whoever samples decodes too, so that many do.
    """

    def __init__(self, own: Ways) -> None:
        self._own, self._encodings = own, Encodings()
        self._way: int | None = None
        self._set_up = ExitStack()

    def __call__(self, batch: Batch) -> Sampled:
        pipe, way = self._own.pipe, self._own.ways[batch.way]
        if batch.way != self._way:
            self.close()
            self._set_up.enter_context(way.context(pipe))
            self._way = batch.way
        with encoded_once(pipe, self._encodings):
            latents = sample(pipe, [self._own.probes[i] for i in batch.noises], way.sampling)
        return Sampled(latents.cpu(), decode(pipe, latents, way.sampling.batch))

    def close(self) -> None:
        """Leave the pipeline as it was."""
        self._way = None
        self._set_up.close()


def probes_of(study: Study, count: int) -> tuple[Probe, ...]:
    """The first of the noises that contenders are compared on."""
    return make_probes(study.pipe, count, study.settings.seed, "evaluation", study.settings.prompts)


def sampled_all(
    study: Study, asked: Sequence[tuple[Contender, int]], reporter: Reporter, crew: Crew | None = None
) -> list[Sampled]:
    """What each contender makes of so many of the first evaluation probes.

    Args:
        crew: who samples; None: this process.

    Raises:
        DiffESError: workers cannot do it; as the crew says.
    """
    probes = probes_of(study, max(count for _, count in asked))
    ways = Ways(study.pipe, tuple(one.runner for one, _ in asked), probes)
    batches, found = list[Batch](), dict[Batch, Sampled]()
    for way, (contender, count) in enumerate(asked):
        size = contender.runner.sampling.batch
        batches += [Batch(way, range(first, min(first + size, count))) for first in range(0, count, size)]
    with closing(Sampler(ways)) as own, reporter.task("sample contenders", len(batches)) as task:
        work = Work(own, lambda: shipped(ways, study.pipe), Sampler)
        for batch, answer in (crew or Alone()).answers(work, batches):
            found[batch] = answer
            task.advance(asked[batch.way][0].name)
    return [_joined([found.pop(batch) for batch in batches if batch.way == way]) for way in range(len(asked))]


def _joined(parts: Sequence[Sampled]) -> Sampled:
    return Sampled(*map(torch.cat, zip(*parts, strict=True)))


def sampled(study: Study, contender: Contender, count: int, reporter: Reporter) -> Sampled:
    """What one makes of them, by this process."""
    return sampled_all(study, [(contender, count)], reporter)[0]
