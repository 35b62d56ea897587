"""Runs of a pipeline that go on from the last step that an earlier run knows, as if they had come to it, to the bit."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, UntypedStorage

from ..pipelines.families import Pipeline
from ..pipelines.sampling import denoiser_of, intercepted
from ..utils.patching import exchanged
from .samplers import STEPPABLE, is_deterministic

Key: TypeAlias = Hashable
Keys: TypeAlias = Callable[[tuple[float, ...], tuple[float, ...]], Key]


class Result(NamedTuple):
    """What pipelines take from a sampler's step, by name or as the first of several."""

    prev_sample: Tensor


class After(NamedTuple):
    """A step's result, and those of the scheduler's attributes that steps have changed so far."""

    result: Result
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """What is known of one step: what its denoiser calls gave and, by the timestep that it led to, what it left."""

    outputs: list[Any] = field(default_factory=list)
    after: dict[float | None, After] = field(default_factory=dict)
    held: list[UntypedStorage] = field(default_factory=list)


class PrefixCache:
    """Steps by a key of everything that their outputs depend on; the least recently used go first.

    Several may share one, each under a name of its own (``name``), so that one limit binds all of them.

    Args:
        limit: bytes of tensors to hold; memory that several steps share counts once, and whole where a part of it is
            held.
    """

    def __init__(self, limit: int) -> None:
        self._steps, self._limit = OrderedDict[Key, Known](), limit
        self._bytes, self._holders = 0, Counter[int]()
        self._names = 0
        self.hits = 0  # steps that were known when a run came to them

    @property
    def held_bytes(self) -> int:
        """Of the tensors that are held now."""
        return self._bytes

    def name(self) -> int:
        """One that nobody else has: a part of the keys of one of several that share it."""
        self._names += 1
        return self._names

    def find(self, key: Key) -> Known | None:
        """What is known of a step, if anything."""
        return self._steps.get(key)

    def touch(self, key: Key) -> None:
        """Keep a step longest from now on, if it is known."""
        if key in self._steps:
            self._steps.move_to_end(key)

    def enter(self, key: Key) -> Known:
        """What is known of a step, which is kept longest from now on."""
        known = self._steps.setdefault(key, Known())
        self._steps.move_to_end(key)
        return known

    def hold(self, key: Key, value: Any) -> None:
        """Count the tensors of a value that was added to a step, and drop other steps, at last this one, if they are
        too many."""
        if (known := self._steps.get(key)) is None:
            return
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            known.held.append(storage)
            self._holders[id(storage)] += 1
            self._bytes += storage.nbytes() if self._holders[id(storage)] == 1 else 0
        while self._bytes > self._limit:
            for storage in self._steps.popitem(last=False)[1].held:
                self._holders[id(storage)] -= 1
                if not self._holders[id(storage)]:
                    del self._holders[id(storage)]
                    self._bytes -= storage.nbytes()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Also of lists, tuples and mappings: what multistep samplers keep, and what corrections reach back to."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


class Replay:
    """One run of a pipeline; denoiser calls of steps that are known are not run.

    Under the deterministic samplers of ``STEPPABLE`` the pipeline is handed the timesteps from the last known step on,
    and that step returns what it returned before: the run goes on with the sampler's state of then. Under any other
    sampler all steps are run through it, from the outputs that are known.

    Args:
        pipe: with the scheduler that it runs with; left as it was.
        cache: where known steps are looked up and kept.
        key: the key of a step, for the run's timesteps up to its own and all of them.
    """

    def __init__(self, pipe: Pipeline, cache: PrefixCache, key: Keys) -> None:
        self._denoiser, self._scheduler, self._cache, self._key = denoiser_of(pipe), pipe.scheduler, cache, key
        self._resumes = type(pipe.scheduler) in STEPPABLE and is_deterministic(pipe.scheduler)
        self._all, self._before = pipe.scheduler.timesteps, dict[str, Any]()  # of this run, once it has begun
        self._timesteps, self._step, self._calls = tuple[float, ...](), 0, 0
        self._now: Key = ()  # of the step under way
        self._known = Known()
        self.runs = 0  # denoiser calls that were run
        self._from: tuple[Known, After] | None = None  # until the pipeline has come to where it goes on

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Take and leave what is known, inside a ``with`` block."""
        scheduler = self._scheduler
        set_timesteps, step = self._set_timesteps(scheduler.set_timesteps), self._stepped(scheduler.step)
        with (
            exchanged(scheduler, "set_timesteps", set_timesteps),
            exchanged(scheduler, "step", step),
            intercepted(self._denoiser, self._called),
        ):
            try:
                yield
            finally:  # it holds what stood in for the scheduler's methods, and those hold this: all would wait together
                self._before, self._known, self._from = {}, Known(), None  # for the garbage collector, tensors too

    def _set_timesteps(self, original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            scheduler = self._scheduler
            self._all = scheduler.timesteps.as_subclass(Tensor)  # of chosen ones a part is not refused here
            self._before = dict(vars(scheduler))
            self._timesteps, self._step, self._calls, self._from = tuple(self._all.tolist()), 0, 0, None
            if self._resumes:
                self._find()
            scheduler.timesteps = self._all[self._step :]

        return set_timesteps

    def _find(self) -> None:
        """The last step of which is known what it left."""
        keys = [self._key_of(step) for step in range(len(self._timesteps))]
        for step in reversed(range(len(keys))):
            known = self._cache.find(keys[step])
            if known is not None and (after := known.after.get(self._next(step))) is not None:
                self._cache.hits += step + 1
                for key in keys[: step + 1]:  # where others may branch off
                    self._cache.touch(key)
                self._step, self._from = step, (known, after)
                return

    def _called(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def known(*args: Any, **kwargs: Any) -> Any:
            if self._from is not None:  # any of the same shape does: what becomes of it is known
                return self._from[0].outputs[0]
            if self._calls == 0:
                self._now = self._key_of(self._step)
                self._known = self._cache.enter(self._now)
                self._cache.hits += bool(self._known.outputs)
            outputs, call = self._known.outputs, self._calls
            self._calls += 1
            if call == len(outputs):
                self.runs += 1
                outputs.append(forward(*args, **kwargs))
                self._cache.hold(self._now, outputs[-1])
            return outputs[call]

        return known

    def _stepped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._from is not None:
                result, self._scheduler.timesteps = self._restored(self._from[1]), self._all
                self._from = None
            else:
                result = original(*args, **kwargs)
                if self._resumes:
                    self._keep(result)
            self._step, self._calls = self._step + 1, 0
            return result

        return step

    def _keep(self, result: Any) -> None:
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        changed = {
            name: copy(value) if isinstance(value, list) else value  # which steps change in place
            for name, value in vars(self._scheduler).items()
            if isinstance(value, list) or value is not self._before.get(name)
        }
        self._known.after[self._next(self._step)] = after = After(Result(latents), changed)
        self._cache.hold(self._now, after)

    def _restored(self, after: After) -> Result:
        for name, value in after.state.items():
            setattr(self._scheduler, name, copy(value) if isinstance(value, list) else value)
        return after.result

    def _key_of(self, step: int) -> Key:
        return self._key(self._timesteps[: step + 1], self._timesteps)

    def _next(self, step: int) -> float | None:
        return self._timesteps[step + 1] if step + 1 < len(self._timesteps) else None
