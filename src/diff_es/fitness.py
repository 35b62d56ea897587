"""How close a candidate comes to the dense model, on fixed probes, without running any prefix twice."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import metrics
from .errors import DiffESError
from .layers import Plan, Weights, realise
from .library import Library
from .pipeline import Pipeline, Probe, Sampling, decode, denoiser_of, intercepted, on_timestep, sample
from .placements import ResidentStore
from .route import routed
from .schedule import Stages
from .search import Levels


class Measure(Protocol):
    """A closeness of two sets of final latents; higher is better."""

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """What is compared: the latents themselves, or their images."""

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        """(N,) in the measure's own unit."""

    def error(self, closeness: float) -> float:
        """A closeness as an error that adds up over independent causes, 0 being exact."""


@dataclass(frozen=True)
class LatentSNR:
    """Signal-to-noise ratio of the final latent against the dense one, in dB."""

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return latents

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        return metrics.snr_db(reference, result)

    def error(self, closeness: float) -> float:
        return _power(closeness)


@dataclass(frozen=True)
class ImagePSNR:
    """Peak signal-to-noise ratio of the image, in dB."""

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return decode(pipe, latents)

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        return metrics.psnr_db(reference, result)

    def error(self, closeness: float) -> float:
        return _power(closeness)


@dataclass(frozen=True)
class ImageSSIM:
    """Structural similarity of the image, at most 1."""

    def view(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return decode(pipe, latents)

    def closeness(self, reference: Tensor, result: Tensor) -> Tensor:
        return metrics.ssim(reference, result)

    def error(self, closeness: float) -> float:
        return 1 - closeness


def _power(decibel: float) -> float:
    """Noise power relative to the signal's."""
    return float(10 ** (-decibel / 10))


class PrefixCache:
    """Denoiser outputs by (chunk of probes, step, levels up to the step's stage), least recently used out first.

    Two candidates that agree on stages 0 to s receive the same latents in stage s, so the same outputs: reusing them
    is exact to the bit.
    """

    def __init__(self, limit: int) -> None:
        self._outputs = OrderedDict[tuple[int, int, Levels], Any]()
        self._limit, self._held = limit, 0
        self.hits = self.misses = 0

    def fetch(self, key: tuple[int, int, Levels], run: Callable[[], Any]) -> Any:
        """The output under ``key``, from ``run()`` if it is not held."""
        if key in self._outputs:
            self.hits += 1
            self._outputs.move_to_end(key)
            return self._outputs[key]
        self.misses += 1
        self._outputs[key] = output = run()
        self._held += _bytes(output)
        while self._held > self._limit:
            self._held -= _bytes(self._outputs.popitem(last=False)[1])
        return output


def _bytes(output: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(output) if isinstance(t, Tensor))


def _mean(scores: Sequence[Tensor]) -> float:
    mean = float(torch.cat(list(scores)).mean())
    return mean if math.isfinite(mean) else -math.inf


class Fitness:
    """Scores schedules by closeness to the dense model on a fixed set of probes.

    Args:
        pipe: the dense pipeline; left as it was after every call.
        library: the plans of every (stage, level).
        stages: the intervals that a schedule's rows stand for.
        probes: fixed noises and classes.
        sampling: the user's own setting.
        measure: what closeness means.
        memory: bytes of denoiser outputs to keep for prefix reuse; 0 reuses nothing.
    """

    def __init__(
        self,
        pipe: Pipeline,
        library: Library,
        stages: Stages,
        probes: Sequence[Probe],
        sampling: Sampling,
        measure: Measure,
        memory: int = 1 << 30,
    ) -> None:
        self._pipe, self._library, self._stages, self._measure = pipe, library, stages, measure
        self._sampling = sampling
        self._chunks = [probes[i : i + sampling.batch] for i in range(0, len(probes), sampling.batch)]
        self.cache, self._realised = PrefixCache(memory), dict[tuple[int, int], Weights]()
        dense: Levels = tuple((0,) for _ in range(len(stages)))
        self._teacher = [measure.view(pipe, self._run(i, dense)) for i in range(len(self._chunks))]
        if not all(bool(torch.isfinite(teacher).all()) for teacher in self._teacher):
            remedy = "Use float32 or bfloat16 arithmetic, or another sampler."
            raise DiffESError("the dense model's result", expected="numbers", found="NaN or infinity", remedy=remedy)

    def __call__(self, levels: Levels) -> float:
        """Mean closeness over the probes; minus infinity where a result is not finite."""
        scores = []
        for i, teacher in enumerate(self._teacher):
            result = self._measure.view(self._pipe, self._run(i, levels))
            scores.append(self._measure.closeness(teacher, result))
        return _mean(scores)

    def of_plans(self, plans: Sequence[Plan]) -> float:
        """The score of plans that are not the library's own, such as factored ones; nothing of it is kept."""
        denoiser = denoiser_of(self._pipe)
        weights = {id(plan): realise(denoiser, self._library.anatomy, plan) for plan in plans}
        store, scores = partial(ResidentStore, denoiser, [weights[id(plan)] for plan in plans]), list[Tensor]()
        with routed(denoiser, self._stages, store):
            for chunk, teacher in zip(self._chunks, self._teacher, strict=True):
                result = self._measure.view(self._pipe, sample(self._pipe, chunk, self._sampling))
                scores.append(self._measure.closeness(teacher, result))
        return _mean(scores)

    def _weights(self, stage: int, level: int) -> Weights:
        if (stage, level) not in self._realised:
            plan = self._library.plan(stage, level)
            self._realised[stage, level] = realise(denoiser_of(self._pipe), self._library.anatomy, plan)
        return self._realised[stage, level]

    def _run(self, chunk: int, levels: Levels) -> Tensor:
        """Final latents of one chunk of probes; steps whose prefix is known are replayed, not run."""
        denoiser, step = denoiser_of(self._pipe), [-1, 0]

        def count(timestep: float) -> None:
            step[:] = step[0] + 1, self._stages.index(timestep)

        def reuse(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                key = (chunk, step[0], levels[: step[1] + 1])
                return self.cache.fetch(key, lambda: forward(*args, **kwargs))

            return run

        weights = [self._weights(stage, row[0]) for stage, row in enumerate(levels)]
        store = partial(ResidentStore, denoiser, weights)
        handle = on_timestep(denoiser, count)
        try:
            with routed(denoiser, self._stages, store), intercepted(denoiser, reuse):
                return sample(self._pipe, self._chunks[chunk], self._sampling)
        finally:
            handle.remove()
