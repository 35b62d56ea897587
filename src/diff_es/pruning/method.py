"""How levels are made from statistics: the choices, and nothing of how they are carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ..utils.arguments import checked, named
from .compensation import Ridge
from .granularity import Depth, Granularity, Ladder, Width
from .importance import Obs, Ranking


@checked()
@dataclass(frozen=True)
class Method:
    """How levels are made from statistics."""

    ladder: Ladder = field(default_factory=Width)
    ranking: Ranking = field(default_factory=Obs)
    compensation: Ridge | None = field(default_factory=Ridge)  # None slices the dense weights
    stagewise: bool = True  # False shares one set of statistics between all stages
    shared_order: bool = False  # True lets all stages give up their groups in one order, and only the weights differ
    granularity: Annotated[Granularity, named(Granularity)] | None = (
        None  # what carries its own level; None: units.usual_granularity
    )

    @property
    def depth(self) -> Depth | None:
        """How blocks are skipped, if they are."""
        return self.ladder if isinstance(self.ladder, Depth) else self.ladder.depth

    @property
    def squares(self) -> bool:
        """Whether of the inputs of layers only the power of each matters: nothing is inverted or solved."""
        return self.compensation is None and not isinstance(self.ranking, Obs)


def title_of(method: Method) -> str:
    """What making its levels is called."""
    return "rank and compensate" if method.compensation else "rank"
