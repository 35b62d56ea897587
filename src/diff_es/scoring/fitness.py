"""How close a candidate comes to the dense model, on fixed probes, without running any prefix twice."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial

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
from ..routing.placements import Resident, parameter_bytes
from ..routing.realise import realise
from ..routing.routing import Routing, attached, routed
from ..routing.stage_hook import stage_at
from ..routing.switch import Content, Entry, Switch
from ..search import Candidate
from ..solvers.custom_timesteps import Stepping, stepped
from ..solvers.prefix_cache import PrefixCache, Replay
from ..trajectory.corrections import Correct, Corrections, Recording, fitting, fixed
from ..trajectory.stages import Stages
from ..trajectory.timesteps import Timesteps, Trajectory, placed
from ..utils.malloc import Kept
from .fidelity import Measure
from .recall import Recall


class Bank:
    """The realised weights of every (stage, unit, level) that candidates use, as a store that routing runs from.

    Args:
        limit: bytes of them to keep.
    """

    def __init__(self, pipe: Pipeline, library: Library, limit: int = 1 << 33) -> None:
        self._denoiser, self._library, self._limit = denoiser_of(pipe), library, limit
        self._switch, self._held = Switch(self._denoiser), 0
        self._parts = OrderedDict[tuple[int, int, int], tuple[Content, int]]()
        self._contents = list[Content]()

    def choose(self, rows: Sequence[Sequence[int]]) -> None:
        """Have the weights of a candidate ready, for one row of levels a stage."""
        self._contents = []
        for stage, row in enumerate(rows):
            content = dict[str, Entry]()
            for unit, level in enumerate(row):
                if level:
                    content |= self._part(self._library.source(stage), unit, level)
            self._contents.append(content)
        while self._held > self._limit and len(self._parts) > 1:
            self._held -= self._parts.popitem(last=False)[1][1]

    def _part(self, source: int, unit: int, level: int) -> Content:
        key = (source, unit, level)
        if key not in self._parts:
            weights = realise(self._denoiser, self._library.anatomy, self._library.part(source, unit, level))
            self._parts[key] = (self._switch.prepare(weights), weights.bytes)
            self._held += weights.bytes
        self._parts.move_to_end(key)
        return self._parts[key][0]

    @property
    def weight_bytes(self) -> int:
        return parameter_bytes(self._denoiser) + self._held

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes

    def to(self, stage: int) -> None:
        self._switch.put(self._contents[stage])

    def rest(self) -> None:
        self._switch.put({})

    def settle(self) -> None:
        """They have never been elsewhere."""

    def close(self) -> None:
        self.rest()


class Fitness:
    """Scores schedules by closeness to the dense model on a fixed set of probes.

    Args:
        pipe: the dense pipeline; left as it was after every call.
        library: the plans of every (stage, levels).
        stages: the stages of a schedule.
        probes: fixed noises and classes.
        sampling: the user's own setting.
        measure: what closeness means.
        path: the user's own trajectory, where candidates choose their steps; None: the sampler takes its own.
        reference: timesteps of the dense run that results are compared with; None: the user's own.
        heat: probes of the first heat of a race, which are a part of their own; 0: no race.
        corrections: the most directions that a step is corrected along (``multistep``); 0: steps stay as they are.
        lessons: noises that corrections are fitted on; none: the first of the probes.
        taught: gives the corrections of a schedule, where they are fitted elsewhere.
        memory: bytes of known steps to keep for prefix reuse; 0 reuses nothing.
        bank: realised weights, where several share them; None: its own.
    """

    def __init__(
        self,
        pipe: Pipeline,
        library: Library,
        stages: Stages,
        probes: Sequence[Probe],
        sampling: Sampling,
        measure: Measure,
        *,
        path: Trajectory | None = None,
        reference: Sequence[float] | None = None,
        heat: int = 0,
        corrections: int = 0,
        lessons: Sequence[Probe] = (),
        taught: Callable[[Candidate], Corrections] | None = None,
        memory: int = 1 << 31,
        bank: Bank | None = None,
    ) -> None:
        self._pipe, self._library, self._stages, self._measure = pipe, library, stages, measure
        self._sampling, self._path = sampling, path
        self._bank = Bank(pipe, library) if bank is None else bank
        self._routing = Routing(denoiser_of(pipe), stages, lambda: self._bank)
        size = sampling.batch
        self._chunks = [probes[i : min(i + size, heat)] for i in range(0, heat, size)]
        self._first = len(self._chunks) or 1  # chunks of the first heat
        self._chunks += [probes[i : i + size] for i in range(heat, len(probes), size)]
        self._judged = len(self._chunks)
        self._chunks += [lessons[:size]] if lessons else []
        self._lesson, self._taught = self._judged if lessons else 0, taught
        self._count, self._fitted = corrections, dict[Candidate, Corrections]()
        self._goal: Recording | None = None  # what corrections are fitted to, where they are fitted here
        self.cache, self.calls = PrefixCache(memory), 0  # denoiser calls, weighed by their samples
        self._encodings, self._stage_of = Encodings(), cache(stage_at(denoiser_of(pipe), stages))
        self._settled, self._heap = settled(pipe), Kept(device_of(denoiser_of(pipe)))
        self._teacher = [self._learn(i, reference) for i in range(len(self._chunks))]

    def _learn(self, chunk: int, reference: Sequence[float] | None) -> Tensor:
        """What a chunk's results are compared with; on the way, what corrections are fitted to."""
        if self._path is None:
            dense = Candidate.of([(0,) * len(self._library.units)] * len(self._stages))
            return self._checked(chunk, self._run(chunk, dense, corrected=False))
        steps, path, kept = self._sampling.steps, self._path, None
        if reference is not None and chunk == self._lesson and self._count and self._taught is None:
            kept = self._goal = Recording(reference, path.end)
        with nullcontext() if reference is None else stepped(self._pipe, reference, steps, kept):
            return self._checked(chunk, self._sample(self._chunks[chunk]))

    def _checked(self, chunk: int, latents: Tensor) -> Tensor:
        """What is compared of a dense result, which has to be finite."""
        shown = self._measure.view(self._pipe, latents)
        check_finite(self._pipe, self._chunks[chunk], self._sampling, shown)
        return shown

    def __call__(self, candidate: Candidate) -> float:
        """Mean closeness over the probes; minus infinity where a result is not finite."""
        return self.second(candidate, self.first(candidate))

    def first(self, candidate: Candidate) -> float:
        """The score in the first heat; without a race, on the first part of the probes."""
        return _finite(float(torch.cat([self._scores(i, candidate) for i in range(self._first)]).mean()))

    def second(self, candidate: Candidate, first: float) -> float:
        """The score on all probes, for that of the first heat: none of it is run again."""
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
        if self._taught is not None:
            return self._taught(candidate)
        if candidate not in self._fitted:
            self._run(self._lesson, candidate)
        return self._fitted[candidate]

    def of_plans(self, plans: Sequence[Plan], candidate: Candidate, *, corrected: bool = True) -> float:
        """The score of plans that are not the library's own, such as factored ones, with the steps of ``candidate``."""
        denoiser = denoiser_of(self._pipe)
        opened, scores = partial(Resident().open, denoiser, self._library.anatomy, plans), list[Tensor]()
        correct = fixed(self.corrections(candidate)) if corrected else None
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

        Corrections are fitted on the lesson while it runs. Those of a step depend on what the step's own prefix holds
        and on the next timestep, as its result does, so they make no difference to what may be reused.
        """
        if not corrected or not self._count:
            return self._replayed(chunk, candidate, None)[0]
        if chunk != self._lesson or self._taught is not None:
            return self._replayed(chunk, candidate, fixed(self.corrections(candidate)))[0]
        assert self._path is not None
        assert self._goal is not None
        timesteps = timesteps_of(self._path, self._stages, candidate)
        fit = fitting(self._goal, timesteps, self._path.end, self._count)
        result, self._fitted[candidate] = self._replayed(chunk, candidate, fit)
        return result

    def _replayed(self, chunk: int, candidate: Candidate, correct: Correct | None) -> tuple[Tensor, Corrections]:
        """Final latents, and what steps were corrected by."""
        if isinstance(self._pipe, OwnSampler):
            return self._recalled(chunk, candidate, correct)
        rows = candidate.levels
        # samplers of third order lower it towards the end, so that the steps to come matter as well
        depends = int(self._pipe.scheduler.config.get("solver_order", 1)) > 2

        def key(past: Timesteps, whole: Timesteps) -> Hashable:
            reached = max(map(self._stage_of, past))
            return chunk, correct is not None, past, whole if depends else (), rows[: reached + 1]

        self._bank.choose(rows)
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
        self._bank.choose(rows)
        with self._stepped(candidate, correct) as stepping, attached(self._routing), recall.attached():
            result = self._sample(self._chunks[chunk])
            corrections = () if stepping is None else stepping.corrections
        self.calls += recall.runs * len(self._chunks[chunk])
        return result, corrections


def timesteps_of(path: Trajectory, stages: Stages, candidate: Candidate) -> tuple[float, ...]:
    """The timesteps of a schedule that chooses its steps: its own, or those where the numbers put them."""
    return candidate.timesteps or placed(path, stages, candidate.steps)


def _finite(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
