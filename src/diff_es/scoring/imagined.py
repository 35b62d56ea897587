"""Scores that are made up, of runs that are only counted: what a search would run, without running it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pipelines.families import Pipeline
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.tracing import Trace
from ..pruning.library import Library
from ..routing.switch import Content
from ..search import Candidate
from ..solvers.prefix_cache import After, Result
from ..trajectory.corrections import Correct, Corrections, Recording
from ..trajectory.shortest import Bends
from ..trajectory.timesteps import Timesteps
from .fitness import Fitness, timesteps_of
from .weight_cache import WeightCache

_STEPS, _LEVELS, _NOISE = 0.02, 0.01, 0.5
"""Of made-up scores: the error of a stage's steps and of a unit's level relative to the signal, and dB by chance."""


@dataclass
class Tally:
    """What was run, or would have been.

    ``batches`` are denoiser calls, of ``calls`` samples in all, which compute ``macs`` at their levels, with weights of
    so many ``units`` laid out for it, of which ``laid_out`` bytes had to be copied; what is re-solved runs as the
    library holds it, which ``read`` so many bytes from disk. ``compared`` are results that were looked at as the
    measure does.
    """

    calls: int = 0
    batches: int = 0
    macs: int = 0
    units: int = 0
    laid_out: int = 0
    read: int = 0
    compared: int = 0

    def __add__(self, other: Tally) -> Tally:
        own, others = vars(self), vars(other)
        return Tally(**{name: own[name] + others[name] for name in own})

    def __sub__(self, other: Tally) -> Tally:
        own, others = vars(self), vars(other)
        return Tally(**{name: own[name] - others[name] for name in own})


class _Near:
    """Which re-solved weights a cut store holds in memory, where all the others wait on disk: those asked for last."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._sizes = limit, 0, OrderedDict[Hashable, int]()

    def read(self, key: Hashable, size: int) -> int:
        """The bytes of its ``size`` that come from disk."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return 0
        self._sizes[key] = size
        self._held += size
        while self._held > self._limit:
            self._held -= self._sizes.popitem(last=False)[1]
        return size


class ImaginedWeights(WeightCache):
    """Counts the bytes that would be copied, and read from disk, of so many stages; ``sizes`` tells those of a unit's
    level, in all and copied."""

    def __init__(
        self,
        pipe: Pipeline,
        library: Library,
        limit: int,
        tally: Tally,
        sizes: Callable[[int, int], tuple[int, int]],
        stages: int,
    ) -> None:
        super().__init__(pipe, library, limit)
        self._tally, self._sizes, self._near = tally, sizes, _Near(limit)
        levels = [(unit, level) for unit, one in enumerate(library.units) for level in range(1, len(one.options))]
        for source, (unit, level) in product(dict.fromkeys(map(library.source, range(stages))), levels):
            size, copied = sizes(unit, level)
            self._near.read((source, unit, level), size - copied)  # they were solved in this order

    def _made(self, source: int, unit: int, level: int) -> tuple[Content, int]:
        size, copied = self._sizes(unit, level)
        self._tally.units += 1
        self._tally.laid_out += copied
        self._tally.read += self._near.read((source, unit, level), size - copied)
        return {}, size


class Imagined(Fitness):
    """Counts the calls that scoring would make, without those whose prefix is known, and makes scores up.

    These are of errors that add up over stages and units, and of some chance, so that a search goes as on a model.

    Args (the others are those of :class:`Fitness`):
        tally: what is counted is added to it.
        trace: of the user's own setting.
        macs: of a denoiser call at a row of levels.
        own: the steps of each stage in the user's own setting.
    """

    def __init__(
        self, *others: Any, tally: Tally, trace: Trace, macs: Callable[[Sequence[int]], int], own: Sequence[int]
    ) -> None:
        self._tally, self._trace, self._macs, self._own = tally, trace, cache(macs), own
        super().__init__(*others)
        self._heap.close()  # nothing is computed

    def _learn(self, chunk: int, reference: Sequence[float] | None) -> Tensor:
        """Of the reference, its calls and the look at it."""
        self._tally.compared += len(self._chunks[chunk])
        if self._path is None:
            self._run(chunk, Candidate.of([(0,) * len(self._library.units)] * len(self._stages)), corrected=False)
        else:
            calls = len(reference or self._path.timesteps) * self._trace.calls
            self._count_calls(chunk, calls, calls * self._macs((0,) * len(self._library.units)))
            if reference is not None:
                self._goal = Recording(reference, self._path.end)
        return torch.empty(0)

    @cached_property
    def bends(self) -> Bends | None:
        """Of a run that is made up."""
        if self._goal is None or isinstance(self._pipe, OwnSampler):
            return None
        return _bends(len(self._goal.timesteps))

    def _count_calls(self, chunk: int, calls: int, macs: int) -> None:
        samples = len(self._chunks[chunk])
        self.calls += calls * samples
        self._tally.calls += calls * samples
        self._tally.batches += calls
        self._tally.macs += macs * samples

    def _scores(self, chunk: int, candidate: Candidate, *, corrected: bool = True) -> Tensor:
        self._run(chunk, candidate, corrected=corrected)
        self._tally.compared += len(self._chunks[chunk])
        steps = candidate.steps if candidate.chooses_steps else self._own
        error = 1e-6
        for stage, (count, levels) in enumerate(zip(steps, candidate.levels, strict=True)):
            error += self._of_steps(stage, count) + count * sum(
                self._of_level(stage, *one) for one in enumerate(levels)
            )
        shown = -10 * math.log10(error) - (not corrected)
        seeds = [probe.seed for probe in self._chunks[chunk]]
        chance = [Random(seed).gauss(0, 4 * _NOISE) for seed in seeds]  # of a noise, for whichever candidate
        own = [Random(repr((candidate, corrected, seed))).gauss(0, _NOISE) for seed in seeds]
        return torch.tensor([shown + sum(pair) for pair in zip(chance, own, strict=True)])

    def _of_steps(self, stage: int, count: int) -> float:
        missing, own = max(0, self._own[stage] - count), max(1, self._own[stage])
        return float(_STEPS * Random(f"steps {stage}").lognormvariate(0, 1) * (missing / own) ** 2)

    def _of_level(self, stage: int, unit: int, level: int) -> float:
        if not level:
            return 0.0
        part = _LEVELS * Random(f"levels {stage} {unit}").lognormvariate(0, 1) / len(self._library.units)
        return float(part * (level / 4) ** 1.5 / max(1, sum(self._own)))

    def _replayed(self, chunk: int, candidate: Candidate, correct: Correct | None) -> tuple[Tensor, Corrections]:
        """Goes along the steps as ``solvers.prefix_cache.Replay`` does; made-up corrections are not none."""
        rows, each, times = candidate.levels, 1, self._trace.timesteps
        if self._path is not None:
            each, times = self._trace.calls, timesteps_of(self._path, self._stages, candidate)
        keys, reached, calls, macs = list[Hashable](), 0, 0, 0
        whole = times if self._looks_ahead else ()
        for step, timestep in enumerate(times):
            reached = max(reached, self._stages.index(timestep))
            keys.append((self._name, chunk, correct is not None, times[: step + 1], whole, rows[: reached + 1]))
        self._weights.choose(rows)
        for step in range(self._resumed(keys, times), len(times)):
            stage = self._stages.index(times[step])
            self._weights.to(stage)
            known, levels = self.cache.enter(keys[step]), rows[stage]
            if not known.outputs:
                calls, macs = calls + each, macs + each * self._macs(levels)
                known.outputs.append(self._like(chunk, each * self._trace.output_bytes))
                self.cache.hold(keys[step], known.outputs[-1])
            left = self._trace.left_bytes + self._trace.start_bytes * (correct is not None)  # which reach back to it
            after = After(Result(self._like(chunk, left)), {})
            known.after[_next(times, step)] = after
            self.cache.hold(keys[step], after)
        self._count_calls(chunk, calls, macs)
        return torch.empty(0), ((0.0,),)

    def _resumed(self, keys: Sequence[Hashable], times: Timesteps) -> int:
        """The first step that is not known with what it left."""
        for step in reversed(range(len(keys))):
            known = self.cache.find(keys[step])
            if known is not None and _next(times, step) in known.after:
                for key in keys[: step + 1]:
                    self.cache.touch(key)
                return step + 1
        return 0

    def _like(self, chunk: int, size: int) -> Tensor:
        """So many bytes for each sample, without any memory."""
        return torch.empty(len(self._chunks[chunk]) * size, dtype=torch.uint8, device="meta")


def _next(times: Timesteps, step: int) -> float | None:
    return times[step + 1] if step + 1 < len(times) else None


@cache
def _bends(steps: int) -> Bends:
    """Of a run that bends alike everywhere, and more than corrections make up for."""
    tau = np.linspace(1, 0, steps + 1).tolist()
    return Bends.of(tau, [torch.tensor([[t**power for power in range(1, 6)]]) for t in tau])
