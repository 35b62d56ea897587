"""What calibration gathered, in memory or waiting on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..utils.malloc import give_back
from ..utils.spill import Spill
from .moments import Moments


@dataclass(frozen=True)
class Statistics:
    """Per stage, by name: the moments of each layer's output-projection input, and of each block's [input, residual],
    which for a second stream are named as ``Block.streams`` says.

    ``change[s]`` is the mean relative change of the denoiser's output from one step to the next in stage s.
    """

    stages: tuple[Mapping[str, Moments], ...]
    change: tuple[float, ...]

    def shared(self) -> dict[str, Moments]:
        """One set of statistics for the whole trajectory: the sum over the stages."""
        return {name: sum_moments([stage[name] for stage in self.stages]) for name in self.stages[0]}


class Lying(Mapping[str, Moments]):
    """Moments that are read where they are used, by their names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> tuple[Callable[..., dict[str, Moments]], tuple[dict[str, Moments]]]:
        """A copy in another process has them in memory."""
        return dict, (dict(self),)


class Some(Lying):
    """Those of some layers."""

    def __init__(self, whole: Mapping[str, Moments], names: Sequence[str]) -> None:
        super().__init__(names)
        self._whole = whole

    def __getitem__(self, name: str) -> Moments:
        return self._whole[name]


class Spilled(Lying):
    """The moments of a stage, of which the matrices wait on disk."""

    def __init__(self, spill: Spill, stage: int, names: Sequence[str]) -> None:
        super().__init__(names)
        self._spill, self._stage, self._rest = spill, stage, dict[str, Moments]()

    def put(self, name: str, moments: Moments) -> None:
        self._spill.put((self._stage, name), moments.second)
        self._rest[name] = replace(moments, second=torch.empty(0, dtype=moments.second.dtype))

    def __getitem__(self, name: str) -> Moments:
        rest = self._rest[name]
        return replace(rest, second=self._spill.get((self._stage, name)).to(rest.first.device))


def spilled(stages: int, names: Sequence[str], parts: Iterable[Statistics]) -> Statistics:
    """Statistics that come in parts, each of which is on disk, and no longer in memory, before the next is made.

    Args:
        names: of each stage's, in order; the parts come in any.
    """
    spill, change = Spill(), (0.0,) * stages
    kept = tuple(Spilled(spill, stage, names) for stage in range(stages))
    for part in parts:
        change = _further(change, part)
        for stage, moments in zip(kept, part.stages, strict=True):
            for name in moments:
                stage.put(name, moments[name])
        del part, moments
        give_back()  # or the sums of the next part take new memory beside that of this one
    return Statistics(kept, change)


def joined(stages: int, names: Sequence[str], parts: Iterable[Statistics]) -> Statistics:
    """The same in memory."""
    kept, change = tuple(dict[str, Moments]() for _ in range(stages)), (0.0,) * stages
    for part in parts:
        change = _further(change, part)
        for stage, moments in zip(kept, part.stages, strict=True):
            stage.update(moments)
    return Statistics(tuple({name: stage[name] for name in names} for stage in kept), change)


def _further(change: tuple[float, ...], part: Statistics) -> tuple[float, ...]:
    """The changes of all stages that were reached so far: of one that was not, a part has 0."""
    return tuple(map(max, change, part.change))


def sum_moments(parts: Sequence[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
