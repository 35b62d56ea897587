"""What a search chooses: of each stage the sampler steps and the levels of its units, and where the steps lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, order=True)
class StageChoice:
    """How a stage runs."""

    steps: int | None  # of the sampler; None: as many as its own, which are no choice
    levels: tuple[int, ...]  # one for each unit; 0 is dense

    def at_level(self, unit: int, level: int) -> StageChoice:
        """The same but for the level of one unit."""
        return replace(self, levels=(*self.levels[:unit], level, *self.levels[unit + 1 :]))

    def followed_by(self, levels: Iterable[int]) -> StageChoice:
        """With the levels of more units."""
        return replace(self, levels=(*self.levels, *levels))


@dataclass(frozen=True, order=True)
class Candidate:
    """A schedule that may be scored; the noisiest stage comes first.

    Candidates are ordered by their stages, of each the steps and then the levels; equal scores go by that order.
    """

    stages: tuple[StageChoice, ...] = field(compare=False)
    timesteps: tuple[float, ...] = field(default=(), compare=False)  # descending; (): where the numbers put them
    _key: tuple[Any, ...] = field(init=False, repr=False)  # all of it in plain tuples, which searches compare faster
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # -1: other than that of None, its hash is the same in every process
        rows = tuple((-1 if one.steps is None else one.steps, one.levels) for one in self.stages)
        object.__setattr__(self, "_key", (rows, self.timesteps))
        object.__setattr__(self, "_hash", hash(self._key))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(
        cls, levels: Iterable[Sequence[int]], steps: Sequence[int] | None = None, timesteps: Sequence[float] = ()
    ) -> Candidate:
        """From levels by `[stage][unit]` and, where they are a choice, the steps of each stage.

        ValueError where there are steps of more stages, or of fewer.
        """
        rows = [tuple(row) for row in levels]
        counts = [None] * len(rows) if steps is None else list(steps)
        return cls(tuple(StageChoice(n, row) for n, row in zip(counts, rows, strict=True)), tuple(timesteps))

    @classmethod
    def of_numbers(cls, numbers: Sequence[int], stages: int, *, steps: bool) -> Candidate:
        """From :meth:`numbers`; whether steps are a choice."""
        width = len(numbers) // stages
        rows = [tuple(numbers[i : i + width]) for i in range(0, len(numbers), width)]
        if not steps:
            return cls(tuple(StageChoice(None, row) for row in rows))
        return cls(tuple(StageChoice(row[0], row[1:]) for row in rows))

    def numbers(self) -> list[int]:
        """All numbers in a row: of each stage the steps, where they are a choice, and then the levels."""
        return [n for one in self.stages for n in ((*one.levels,) if one.steps is None else (one.steps, *one.levels))]

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """By `[stage][unit]`."""
        return tuple(one.levels for one in self.stages)

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each stage. ValueError where they are no choice."""
        found = tuple(one.steps for one in self.stages if one.steps is not None)
        if len(found) != len(self.stages):
            raise ValueError(f"Candidate.steps: expected a candidate that chooses its steps, found {self}")
        return found

    @property
    def chooses_steps(self) -> bool:
        """Whether it says how many steps each stage takes."""
        return self.stages[0].steps is not None

    @property
    def pruned(self) -> bool:
        """Whether any unit is not dense."""
        return any(any(one.levels) for one in self.stages)

    def at_levels(self, levels: Iterable[Sequence[int]]) -> Candidate:
        """The same steps at other levels."""
        pairs = zip(self.stages, levels, strict=True)
        return replace(self, stages=tuple(StageChoice(one.steps, tuple(row)) for one, row in pairs))

    def at_stage(self, stage: int, choice: StageChoice) -> Candidate:
        """The same but for one stage."""
        return replace(self, stages=(*self.stages[:stage], choice, *self.stages[stage + 1 :]))

    def at(self, timesteps: Sequence[float]) -> Candidate:
        """The same, its steps at these timesteps; at (), where their numbers put them."""
        return replace(self, timesteps=tuple(timesteps))

    def to_json(self) -> dict[str, object]:
        """JSON values: levels by `[stage][unit]`, and where there are any, steps by `[stage]` and timesteps."""
        chosen = {"steps": list(self.steps)} if self.chooses_steps else {}
        moved = {"timesteps": list(self.timesteps)} if self.timesteps else {}
        return {**chosen, "levels": [list(row) for row in self.levels], **moved}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """What :meth:`to_json` wrote, whose shape was checked."""
        return cls.of(data["levels"], data.get("steps"), data.get("timesteps") or ())
