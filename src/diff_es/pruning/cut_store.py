"""The re-solved weights of levels: in memory as far as there is room, the rest on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch

from ..layers import Cut
from ..utils.spill import Spill

Key = tuple[int, str, int]
"""(stage whose statistics they are of, layer, number of groups that stay)."""


class CutStore:
    """Cuts by their keys. Weights that were asked for last stay in memory.

    Args:
        limit: bytes of weights to keep there; None: all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit, self._held, self._cuts = limit, 0, dict[Key, Cut]()
        self._near = OrderedDict[Key, int]()  # bytes of the weights that are in memory, those asked for last at the end
        self._far = dict[Key, torch.device]()  # where weights belong that are on disk too
        self._spill: Spill | None = None  # made when it is needed

    def __contains__(self, key: Key) -> bool:
        return key in self._cuts

    def __setitem__(self, key: Key, cut: Cut) -> None:
        self._cuts[key] = cut
        if cut.weight is not None:
            self._near[key] = cut.weight.nbytes
            self._held += cut.weight.nbytes
            self._shrink()

    def __getitem__(self, key: Key) -> Cut:
        cut = self._cuts[key]
        if key in self._near:
            self._near.move_to_end(key)
        elif key in self._far and self._spill is not None:
            self[key] = cut = replace(cut, weight=self._spill.get(key).to(self._far[key]))
        return cut

    def _shrink(self) -> None:
        """Leave on disk alone what there is no room for."""
        while self._limit is not None and self._held > self._limit:
            key, size = self._near.popitem(last=False)
            cut, self._held = self._cuts[key], self._held - size
            if key not in self._far and cut.weight is not None:
                self._spill = self._spill or Spill()
                self._spill.put(key, cut.weight)
                self._far[key] = cut.weight.device
            self._cuts[key] = replace(cut, weight=None)

    def __reduce__(self) -> tuple[Callable[..., CutStore], tuple[dict[Key, Cut]]]:
        """A copy in another process has all of them in memory."""
        return _restored, ({key: self[key] for key in list(self._cuts)},)


def _restored(cuts: dict[Key, Cut]) -> CutStore:
    store = CutStore()
    for key, cut in cuts.items():
        store[key] = cut
    return store
