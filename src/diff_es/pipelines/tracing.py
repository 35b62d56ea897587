"""A trajectory without its arithmetic: the timesteps that are heard, and the shapes of a denoiser call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves, tree_map_only

from ..utils.calls import Args, Kwargs
from ..utils.errors import FOREIGN, DiffESError, said
from ..utils.patching import exchanged
from .denoiser import meta_twin
from .families import Pipeline, Sampling
from .own_sampler import OwnSampler
from .probes import make_probes
from .sampling import denoiser_of, intercepted, sample
from .timestep_hook import on_timestep


@dataclass(frozen=True)
class Trace:
    """One trajectory without its arithmetic.

    ``timesteps`` are the scheduler's, one for every denoiser call. ``args`` and ``kwargs`` are those of the first call,
    on the meta device, unless ``real``, where the denoiser may need its weights. ``calls`` is how often each of the
    scheduler's timesteps calls the denoiser: twice where guidance runs in calls of its own. ``output_bytes`` are those
    of what a call of one sample gives; ``left_bytes`` of what a step of the scheduler leaves, in its result and for the
    steps to come; ``start_bytes`` of what it begins with, where that is not the result of the step before.
    """

    timesteps: tuple[float, ...]
    args: Args
    kwargs: Kwargs
    calls: int = 1
    real: bool = False
    output_bytes: int = 0
    left_bytes: int = 0
    start_bytes: int = 0


class _Caught(Exception):
    """Carries the arguments of a call out of the pipeline that makes it."""

    def __init__(self, args: Args, kwargs: Kwargs) -> None:
        self.call = (args, kwargs)


def first_call(pipe: Pipeline, sampling: Sampling) -> tuple[Args, Kwargs]:
    """The arguments of the first denoiser call of a batch, without running the denoiser; raises as :func:`trace`."""

    def catch(forward: Callable[..., Any]) -> Callable[..., Any]:
        def raise_it(*args: Any, **kwargs: Any) -> Any:
            raise _Caught(args, kwargs)

        return raise_it

    try:
        with _refusing(pipe, sampling), intercepted(denoiser_of(pipe), catch):
            sample(pipe, make_probes(pipe, sampling.batch, 0, "trace"), sampling)
    except _Caught as caught:
        return caught.call
    raise AssertionError("the pipeline ended without calling its denoiser")


def _no_trajectory(pipe: Pipeline, sampling: Sampling, found: str) -> DiffESError:
    where = f"{sampling.steps} steps with {type(pipe.scheduler).__name__}"
    remedy = "Take another size or number of steps, another scheduler, or a pipeline whose parts belong together."
    return DiffESError(where, expected="a trajectory", found=found, remedy=remedy)


@contextmanager
def _refusing(pipe: Pipeline, sampling: Sampling) -> Iterator[None]:
    """What a pipeline of diffusers raises inside is its refusal of the sampling; what a user's own loop does stays."""
    try:
        yield
    except FOREIGN as error:
        if isinstance(pipe, OwnSampler) or isinstance(error, DiffESError | torch.OutOfMemoryError):
            raise
        raise _no_trajectory(pipe, sampling, said(error)) from error


def trace(pipe: Pipeline, sampling: Sampling) -> Trace:
    """The timesteps of a trajectory and the shapes of a denoiser call, without running the denoiser; one that is the
    user's own, or in a loop of the user's own, runs once, since it may need its weights.

    Raises:
        DiffESError: the pipeline or its scheduler refuses this sampling.
    """
    denoiser, heard, calls = denoiser_of(pipe), list[float](), list[tuple[Args, Kwargs]]()
    outputs, real = list[Any](), not isinstance(denoiser, ModelMixin) or isinstance(pipe, OwnSampler)

    def shapes_only(forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            device = next(leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            if not outputs:
                if not real:
                    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
                calls.append((args, kwargs))
                outputs.append((forward if real else meta_twin(denoiser))(*args, **kwargs))
            return tree_map_only(Tensor, lambda t: torch.zeros_like(t, device=device), outputs[0])

        return stand_in

    handle, steps = on_timestep(denoiser, heard.append), _Steps()
    try:
        with _refusing(pipe, sampling), intercepted(denoiser, shapes_only), steps.of(pipe):
            sample(pipe, make_probes(pipe, 1, 0, "trace"), sampling)
    finally:
        handle.remove()
    if isinstance(pipe, OwnSampler):
        return _own_trace(pipe, sampling, heard, calls, outputs)
    own = [float(t) for t in pipe.scheduler.timesteps.tolist()]  # what is heard may be rounded
    if not own or not heard:
        raise _no_trajectory(pipe, sampling, "no call of the denoiser")
    each = len(heard) // len(own)
    timesteps = tuple(t for t in own for _ in range(each))
    return Trace(timesteps, *calls[0], each, real, _bytes(outputs), *steps.each())


class _Steps:
    """Bytes that the steps of a scheduler leave; of memory that several share, once."""

    def __init__(self) -> None:
        self._seen, self._count, self._left, self._starts = dict[int, UntypedStorage](), 0, 0, 0

    @contextmanager
    def of(self, pipe: Pipeline) -> Iterator[None]:
        """Those that run inside a ``with`` block; a loop of the user's own has none."""
        if isinstance(pipe, OwnSampler):
            yield
            return
        scheduler, original = pipe.scheduler, pipe.scheduler.step

        @wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            start = signature(original).bind(*args, **kwargs).arguments.get("sample")
            if not self._count:
                self._new((start, vars(scheduler)))
            self._starts += self._new(start)
            result = original(*args, **kwargs)
            latents = result[0] if isinstance(result, tuple) else result.prev_sample
            self._left += self._new((latents, vars(scheduler)))
            self._count += 1
            return result

        with exchanged(scheduler, "step", step):
            yield

    def _new(self, value: Any) -> int:
        """Bytes that were not seen before."""
        found = {id(one): one for one in (leaf.untyped_storage() for leaf in _tensors(value))}
        fresh = [one for key, one in found.items() if key not in self._seen]
        self._seen |= found
        return sum(one.nbytes() for one in fresh)

    def each(self) -> tuple[int, int]:
        """Of a step, in the mean: what it left, and what it began with."""
        count = max(1, self._count)
        return self._left // count, self._starts // count


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _bytes(value: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(value))


def _own_trace(
    own: OwnSampler,
    sampling: Sampling,
    heard: Sequence[float],
    calls: Sequence[tuple[Args, Kwargs]],
    outputs: Sequence[Any],
) -> Trace:
    """What was heard of a loop of the user's own."""
    if not heard:
        expected, found = "a loop that calls the denoiser that it is given", "one that ends without"
        raise DiffESError("OwnSampler.sample", expected=expected, found=found, remedy="Call its first argument.")
    steps = own.steps_at(heard, sampling.num_inference_steps)
    told = dict(zip(dict.fromkeys(heard), steps, strict=True))
    each = len(heard) // len(steps)
    timesteps = tuple(told[t] for t in heard)
    alike = timesteps == tuple(t for t in steps for _ in range(each))
    left = _bytes(_tensors(calls[0])[:1])
    return Trace(timesteps, *calls[0], each if alike else 1, True, _bytes(outputs), left)
