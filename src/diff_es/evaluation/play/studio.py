"""What the page plays with: a pipeline, the results of one search, and one generation at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import Any

from PIL import Image

from ...compression.result import Compressed
from ...pipelines.families import Condition, Pipeline, Sampling
from ...pipelines.probes import Probe, conditions_of, name_of
from ...pipelines.sampling import decode, denoiser_of, sample
from ...pipelines.tracing import trace
from ...utils.errors import DiffESError
from ...utils.seeds import derive_seed
from ..assemble import picture


@dataclass(frozen=True)
class Taken:
    """An image, and the seconds that sampling and decoding it took."""

    image: Image.Image
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Of one noise: by the dense model, and by a result."""

    dense: Taken
    fast: Taken


class _Ended(Exception):
    """Nobody waits for the images any more."""


class Studio:
    """A pipeline with the front of a result. Images are those of ``diff-es sample --count 1``.

    Raises:
        ArtefactError: the result was made for another base model.
    """

    def __init__(self, pipe: Pipeline, fast: Compressed) -> None:
        fast.check(pipe)
        self.points, self.asked = fast.front.points, fast.front.asked
        self.conditions = conditions_of(pipe)
        self.origin = "" if fast.origin is None else fast.origin.model
        self._pipe, self._turn, self._ended, self._warm = pipe, Lock(), Event(), False
        traced = trace(pipe, _single(fast.sampling))
        self._calls = len(traced.timesteps) * traced.calls  # of the denoiser, for a dense image

    def names(self) -> list[str]:
        """The points of the front: what each costs and how close it is."""
        told = list[str]()
        for point in self.points:
            report = point.report
            told.append(f"{report.macs_ratio:.2f} of the compute, {_steps(point)} steps")
        return told

    def asks(self) -> dict[Condition, str]:
        """What can be asked for, with its name; of prompts those that come with the model, as examples."""
        return {condition: name_of(self._pipe, condition) for condition in self.conditions}

    def generate(self, point: int, condition: Condition, seed: int, heard: Callable[[float], None]) -> Pair | None:
        """The same noise twice, one after the other; None where :meth:`end` came before their end.

        Args:
            heard: is told, from the thread that this runs in, which share of the work is done.

        Raises:
            DiffESError: another generation is running.
        """
        if not self._turn.acquire(blocking=False):
            remedy = "Wait for the other to end: two at once would disturb each other's time."
            raise DiffESError("generate", expected="one at a time", found="another one is running", remedy=remedy)
        try:
            result = self.points[point]
            sampling, probe = _single(result.sampling), Probe(derive_seed(seed, "sample", 0), condition)
            calls = self._calls * (1 + _steps(result) / sampling.steps)
            with suppress(_Ended), self._heard(calls, heard):
                if not self._warm:  # the first run of all is slower, and would be the dense one
                    sample(self._pipe, [probe], replace(sampling, num_inference_steps=1))
                    self._warm = True
                dense = self._taken(probe, sampling, nullcontext())
                fast = self._taken(probe, sampling, result.routed(self._pipe))
                return Pair(dense, fast)
            return None
        finally:
            self._turn.release()

    def end(self) -> None:
        """What runs is left off after the call of the denoiser that it is at; so is whatever begins later."""
        self._ended.set()

    def _taken(self, probe: Probe, sampling: Sampling, way: AbstractContextManager[object]) -> Taken:
        with way:
            began = time.perf_counter()
            (image,) = decode(self._pipe, sample(self._pipe, [probe], sampling))
            return Taken(picture(image), time.perf_counter() - began)

    @contextmanager
    def _heard(self, calls: float, heard: Callable[[float], None]) -> Iterator[None]:
        done = 0

        def count(*args: Any) -> None:
            nonlocal done
            done += 1
            if self._ended.is_set():
                raise _Ended
            heard(min(1.0, done / calls))

        handle = denoiser_of(self._pipe).register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()


def _single(sampling: Sampling) -> Sampling:
    return replace(sampling, batch=1)


def _steps(point: Compressed) -> int:
    return point.runner("", point.sampling).steps
