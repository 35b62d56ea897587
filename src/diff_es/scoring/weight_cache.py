"""The weights of levels, laid out once and kept as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from functools import cached_property

from ..pipelines.families import Pipeline
from ..pipelines.sampling import denoiser_of
from ..pruning.library import Library
from ..routing.placements import parameter_bytes
from ..routing.realise import owned_bytes, realise
from ..routing.switch import Content, Entry, Switch


class WeightCache:
    """The realised weights of every (stage, unit, level) that candidates use, as a store that routing runs from.

    They are laid out when their stage begins, and the limit binds those of a candidate in use as well: all that there
    is beyond it is of the stage that runs.

    Args:
        limit: bytes of them to keep; None: as many as the library keeps, or 8 GB.
    """

    def __init__(self, pipe: Pipeline, library: Library, limit: int | None = None) -> None:
        self._denoiser, self._library = denoiser_of(pipe), library
        self._limit = next(one for one in (limit, library.memory, 1 << 33) if one is not None)
        self._switch, self._held = Switch(self._denoiser), 0
        self._parts = OrderedDict[tuple[int, int, int], tuple[Content, int]]()
        self._rows: Sequence[Sequence[int]] = ()
        self._stage, self._content = -1, dict[str, Entry]()

    def choose(self, rows: Sequence[Sequence[int]]) -> None:
        """Run a candidate from now on: one row of levels a stage."""
        self._rows, self._stage, self._content = rows, -1, {}

    def _laid_out(self, stage: int) -> dict[str, Entry]:
        """The weights of a stage; those that have not run for the longest time make room for them."""
        content, source = dict[str, Entry](), self._library.source(stage)
        used = dict.fromkeys((source, unit, level) for unit, level in enumerate(self._rows[stage]) if level)
        for key in used:
            if key not in self._parts:
                self._make_room(key[1], used.keys())
                self._parts[key] = self._made(*key)
                self._held += self._parts[key][1]
            self._parts.move_to_end(key)
            content |= self._parts[key][0]
        return content

    def _made(self, source: int, unit: int, level: int) -> tuple[Content, int]:
        """The weights, and their bytes."""
        weights = realise(self._denoiser, self._library.anatomy, self._library.part(source, unit, level))
        return self._switch.prepare(weights), weights.bytes

    def _make_room(self, unit: int, used: Set[tuple[int, int, int]]) -> None:
        """For weights of a unit, which take no more than its dense ones."""
        for key in [key for key in self._parts if key not in used]:
            if self._held + self._dense[unit] <= self._limit:
                return
            self._held -= self._parts.pop(key)[1]

    @cached_property
    def _dense(self) -> list[int]:
        """Bytes of the parameters that each unit replaces."""
        return [owned_bytes(self._denoiser, unit.layers) for unit in self._library.units]

    def forget(self) -> None:
        """Let go of all of them; what is needed again is laid out again."""
        self._parts.clear()
        self._held, self._stage, self._content = 0, -1, {}

    @property
    def weight_bytes(self) -> int:
        return parameter_bytes(self._denoiser) + self._held

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes

    def to(self, stage: int) -> None:
        if stage != self._stage:
            self._switch.put({})  # weights are laid out while all is dense
            self._stage, self._content = -1, {}
            self._stage, self._content = stage, self._laid_out(stage)
        self._switch.put(self._content)

    def rest(self) -> None:
        self._switch.put({})

    def settle(self) -> None:
        """They have never been elsewhere."""

    def close(self) -> None:
        self.rest()
