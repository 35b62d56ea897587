"""How close a candidate comes to the dense model, on fixed probes, without running any prefix twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor

from ..layers import Plan
from ..pipelines.denoiser import device_of
from ..pipelines.encodings import Encodings, encoded_once
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.finite import check_finite
from ..pipelines.own_sampler import OwnSampler, OwnStepping
from ..pipelines.probes import Probe
from ..pipelines.sampling import denoiser_of, of_class, sample, settled
from ..pruning.library import Library
from ..routing.placements import Placement
from ..routing.routing import Routing, attached, routed
from ..routing.stage_hook import stage_at
from ..search import Candidate
from ..solvers.custom_timesteps import Stepping, stepped
from ..solvers.flow_time import flow_time
from ..solvers.prefix_cache import PrefixCache, Replay
from ..trajectory.corrections import Correct, Corrections, Recording, fitting, fixed
from ..trajectory.shortest import Bends
from ..trajectory.stages import Stages
from ..trajectory.timesteps import Timesteps, Trajectory, placed
from ..utils.malloc import Kept
from .fidelity import Measure
from .recall import Recall
from .weight_cache import WeightCache


@dataclass(frozen=True)
class Comparison:
    """What candidates are compared with, and how.

    Args:
        path: the user's own trajectory, where candidates choose or correct its steps; None: the sampler runs by itself.
        reference: timesteps of the dense run that results are compared with; None: the user's own.
        rung: noises of the first rung of a race, which are a part of their own; 0: no race.
        corrections: the most directions that a step is corrected along (``trajectory.corrections``); 0: none.
        fitting: noises that corrections are fitted on; none: the first of those that are compared.
        fitted: gives the corrections of a candidate, where they are fitted elsewhere.
        known: steps that need not be run again, where several share what these may take; None: its own, of 2 GB.
    """

    path: Trajectory | None = None
    reference: Sequence[float] | None = None
    rung: int = 0
    corrections: int = 0
    fitting: Sequence[Probe] = ()
    fitted: Callable[[Candidate], Corrections] | None = None
    known: PrefixCache | None = None


class Fitness:
    """Scores candidates by closeness to the dense model on a fixed set of noises.

    Args:
        pipe: the dense pipeline; left as it was after every call.
        library: the plans of every (stage, levels).
        stages: the stages of a schedule.
        probes: fixed noises and classes.
        sampling: the user's own setting.
        measure: what closeness means.
        comparison: what candidates are compared with.
        weights: of levels, where several share them; None: its own.
    """

    def __init__(
        self,
        pipe: Pipeline,
        library: Library,
        stages: Stages,
        probes: Sequence[Probe],
        sampling: Sampling,
        measure: Measure,
        comparison: Comparison | None = None,
        weights: WeightCache | None = None,
    ) -> None:
        terms = comparison or Comparison()
        self._pipe, self._library, self._stages, self._measure = pipe, library, stages, measure
        self._sampling, self._path = sampling, terms.path
        self._weights = WeightCache(pipe, library) if weights is None else weights
        self._routing = Routing(denoiser_of(pipe), stages, lambda: self._weights)
        self._chunks = _parts(probes[: terms.rung], sampling.batch, measure.least)
        self._first = len(self._chunks) or 1  # chunks of the first rung
        self._chunks += _parts(probes[terms.rung :], sampling.batch, measure.least)
        self._judged = len(self._chunks)
        self._chunks += [terms.fitting[: sampling.batch]] if terms.fitting else []
        self._fitting, self._elsewhere = self._judged if terms.fitting else 0, terms.fitted
        self._count, self._fitted = terms.corrections, dict[Candidate, Corrections]()
        self._goal: Recording | None = None  # what corrections are fitted to, where they are fitted here
        self.cache, self.calls = terms.known or PrefixCache(1 << 31), 0  # denoiser calls, weighed by their samples
        self._name = self.cache.name()
        self._encodings, self._stage_of = Encodings(), cache(stage_at(denoiser_of(pipe), stages))
        self._settled, self._heap = settled(pipe), Kept(device_of(denoiser_of(pipe)))
        self._teacher = [self._learn(i, terms.reference) for i in range(len(self._chunks))]

    def _learn(self, chunk: int, reference: Sequence[float] | None) -> Tensor:
        """What a chunk's results are compared with; on the way, what corrections are fitted to."""
        if self._path is None:
            dense = Candidate.of([(0,) * len(self._library.units)] * len(self._stages))
            return self._checked(chunk, self._run(chunk, dense, corrected=False))
        steps, path, kept = self._sampling.steps, self._path, None
        if reference is not None and chunk == self._fitting and self._count and self._elsewhere is None:
            kept = self._goal = Recording(reference, path.end)
        with nullcontext() if reference is None else stepped(self._pipe, reference, steps, kept):
            return self._checked(chunk, self._sample(self._chunks[chunk]))

    @cached_property
    def bends(self) -> Bends | None:
        """What places of steps are chosen from, of the dense run; None where that run was not written down, or its
        noise is not known."""
        if self._goal is None or isinstance(self._pipe, OwnSampler):
            return None
        time = flow_time(self._pipe.scheduler, self._goal.timesteps)
        pairs = zip(self._goal.states, time.scale.tolist(), strict=True)
        return Bends.of(time.tau.tolist(), [state.float() / scale for state, scale in pairs])

    def _checked(self, chunk: int, latents: Tensor) -> Tensor:
        """What is compared of a dense result, which has to be finite."""
        shown = self._measure.view(self._pipe, latents)
        check_finite(self._pipe, self._chunks[chunk], self._sampling, shown)
        return shown

    def __call__(self, candidate: Candidate) -> float:
        """Mean closeness over the probes; minus infinity where a result is not finite."""
        return self.second(candidate, self.first(candidate))

    def first(self, candidate: Candidate) -> float:
        """The score on the first rung; without a race, on the first part of the probes."""
        return _finite(float(torch.cat([self._scores(i, candidate) for i in range(self._first)]).mean()))

    def second(self, candidate: Candidate, first: float) -> float:
        """The score on all probes, for that of the first rung: none of it is run again."""
        count = sum(len(chunk) for chunk in self._chunks[: self._first])
        total = first * count
        for i in range(self._first, self._judged):
            scores = self._scores(i, candidate)
            total, count = total + float(scores.sum()), count + len(scores)
        return _finite(total / count)

    def each(self, candidate: Candidate, *, corrected: bool = True) -> list[float]:
        """The closeness on each probe, minus infinity where a result is not finite; whether steps are corrected."""
        chunks = [self._scores(i, candidate, corrected=corrected) for i in range(self._judged)]
        return [_finite(score) for score in torch.cat(chunks).tolist()]

    def plain(self, candidate: Candidate) -> float:
        """The score on all probes of a schedule whose steps are not corrected."""
        return _finite(
            float(torch.cat([self._scores(i, candidate, corrected=False) for i in range(self._judged)]).mean())
        )

    def corrections(self, candidate: Candidate) -> Corrections:
        """What the steps of a schedule are corrected by; empty where they are not."""
        if not self._count:
            return ()
        if self._elsewhere is not None:
            return self._elsewhere(candidate)
        if candidate not in self._fitted:
            self._run(self._fitting, candidate)
        return self._fitted[candidate]

    def of_plans(
        self, plans: Sequence[Plan], placement: Placement, candidate: Candidate, *, corrected: bool = True
    ) -> float:
        """The score of plans that are not the library's own, such as factored ones, with the steps of ``candidate``."""
        denoiser = denoiser_of(self._pipe)
        opened, scores = partial(placement.open, denoiser, self._library.anatomy, plans), list[Tensor]()
        correct = fixed(self.corrections(candidate)) if corrected else None
        self._weights.forget()
        with routed(denoiser, self._stages, opened), self._stepped(candidate, correct):
            for i in range(self._judged):
                result = self._measure.view(self._pipe, self._sample(self._chunks[i]))
                scores.append(self._measure.closeness(self._teacher[i], result))
        return _finite(float(torch.cat(scores).mean()))

    def _scores(self, chunk: int, candidate: Candidate, *, corrected: bool = True) -> Tensor:
        """(N,): the closeness of each probe of a chunk."""
        result = self._measure.view(self._pipe, self._run(chunk, candidate, corrected=corrected))
        return self._measure.closeness(self._teacher[chunk], result)

    @contextmanager
    def _stepped(self, candidate: Candidate, correct: Correct | None) -> Iterator[Stepping | OwnStepping | None]:
        """With the sampler steps of a schedule, where they are a choice."""
        if self._path is None:
            yield None
            return
        timesteps = timesteps_of(self._path, self._stages, candidate)
        with stepped(self._pipe, timesteps, self._sampling.steps, correct) as stepping:
            yield stepping

    def _sample(self, probes: Sequence[Probe]) -> Tensor:
        with encoded_once(self._pipe, self._encodings), of_class(self._pipe, self._settled):
            return sample(self._pipe, probes, self._sampling)

    def _run(self, chunk: int, candidate: Candidate, *, corrected: bool = True) -> Tensor:
        """Final latents of one chunk of probes; steps whose prefix is known are not run.

        Corrections are fitted on the noises for that while these run. Those of a step depend on what the step's own
        prefix holds and on the next timestep, as its result does, so they make no difference to what may be reused.
        """
        if not corrected or not self._count:
            return self._replayed(chunk, candidate, None)[0]
        if chunk != self._fitting or self._elsewhere is not None:
            return self._replayed(chunk, candidate, fixed(self.corrections(candidate)))[0]
        assert self._path is not None
        assert self._goal is not None
        timesteps = timesteps_of(self._path, self._stages, candidate)
        fit = fitting(self._goal, timesteps, self._path.end, self._count)
        result, self._fitted[candidate] = self._replayed(chunk, candidate, fit)
        return result

    @cached_property
    def _looks_ahead(self) -> bool:
        """Whether the steps to come matter to a step: samplers of third order lower it towards the end."""
        sampler = None if isinstance(self._pipe, OwnSampler) else self._pipe.scheduler
        return sampler is not None and int(sampler.config.get("solver_order", 1)) > 2

    def _replayed(self, chunk: int, candidate: Candidate, correct: Correct | None) -> tuple[Tensor, Corrections]:
        """Final latents, and what steps were corrected by."""
        if isinstance(self._pipe, OwnSampler):
            return self._recalled(chunk, candidate, correct)
        rows, ahead = candidate.levels, self._looks_ahead

        def key(past: Timesteps, whole: Timesteps) -> Hashable:
            reached = max(map(self._stage_of, past))
            return self._name, chunk, correct is not None, past, whole if ahead else (), rows[: reached + 1]

        self._weights.choose(rows)
        with self._stepped(candidate, correct) as stepping:
            replay = Replay(self._pipe, self.cache, key)
            with attached(self._routing), replay.attached():
                result = self._sample(self._chunks[chunk])
            corrections = () if stepping is None else stepping.corrections
        self.calls += replay.runs * len(self._chunks[chunk])
        return result, corrections

    def _recalled(self, chunk: int, candidate: Candidate, correct: Correct | None) -> tuple[Tensor, Corrections]:
        """The same of a loop of the user's own, whose single calls are known."""
        rows = candidate.levels

        def weights(stage: int) -> Hashable:
            return (self._library.source(stage), rows[stage]) if any(rows[stage]) else None

        recall = Recall(denoiser_of(self._pipe), self._stages, self.cache, weights)
        self._weights.choose(rows)
        with self._stepped(candidate, correct) as stepping, attached(self._routing), recall.attached():
            result = self._sample(self._chunks[chunk])
            corrections = () if stepping is None else stepping.corrections
        self.calls += recall.runs * len(self._chunks[chunk])
        return result, corrections


def timesteps_of(path: Trajectory, stages: Stages, candidate: Candidate) -> tuple[float, ...]:
    """The timesteps of a schedule: its own, or those where the numbers put them; the user's where it chooses none."""
    if not candidate.chooses_steps:
        return path.timesteps
    return candidate.timesteps or placed(path, stages, candidate.steps)


def _parts(probes: Sequence[Probe], size: int, least: int) -> list[Sequence[Probe]]:
    """So many at once, and no fewer than ``least`` where there are as many."""
    starts = list(range(0, len(probes), size))
    if len(starts) > 1:
        starts[-1] = min(starts[-1], len(probes) - least)
    return [probes[start:end] for start, end in pairwise([*starts, len(probes)])]


def _finite(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
