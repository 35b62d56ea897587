"""The weights of levels, laid out once and kept as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ..pipelines.families import Pipeline
from ..pipelines.sampling import denoiser_of
from ..pruning.library import Library
from ..routing.placements import parameter_bytes
from ..routing.realise import realise
from ..routing.switch import Content, Entry, Switch


class WeightCache:
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
