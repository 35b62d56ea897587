"""How much work a search does, by one number: the sizes of its parts for an effort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from pydantic import SkipValidation, TypeAdapter

from ..utils.arguments import checked
from ..utils.checking import validated
from ..utils.errors import DiffESError
from ..utils.limits import Share
from .settings import Settings


class Effort(StrEnum):
    """How much denoiser work a search does, relative to the thorough one, which is some ten or twenty thousand dense
    images on a model of a few blocks."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"

    @property
    def share(self) -> float:
        """Of the work of the thorough one, roughly."""
        return _SHARES[self]


_SHARES = {Effort.QUICK: 0.03, Effort.STANDARD: 0.1, Effort.THOROUGH: 1.0}
_SHARE = TypeAdapter[float](Share)
SIZES = {
    "search_noises": (32, 0.3, 4),
    "finalists": (5, 0.2, 2),
    "held_out_noises": (32, 0.5, 8),
    "population": (20, 0.2, 4),
    "generations": (40, 1.0, 2),
    "timestep_generations": (16, 0.8, 2),
}
"""Of the thorough search, the power of the share that it goes by, and the least."""


@checked()
def with_effort(settings: Settings, effort: SkipValidation[Effort | float], keep: Sequence[str] = ()) -> Settings:
    """The settings with the sizes of an effort.

    Args:
        effort: one that has a name, or a share of the thorough one's work.
        keep: names of sizes that stay as they are.

    Raises:
        DiffESError: a share of no sense, or a name that no size has.
    """
    if unknown := sorted({*keep} - {*SIZES}):
        remedy = "Leave it out."
        raise DiffESError("keep", expected=f"some of {', '.join(SIZES)}", found=", ".join(unknown), remedy=remedy)
    return replace(settings, **{size: count for size, count in sizes_of(effort).items() if size not in keep})


def sizes_of(effort: Effort | float) -> dict[str, Any]:
    """Fields of ``Settings`` with whole numbers; raises as :func:`with_effort` does."""
    name = next((one for one in Effort if isinstance(effort, str) and one == effort), None)
    remedy = f"Or take {', '.join(Effort)}."
    share = validated(_SHARE, effort, "effort", remedy) if name is None else name.share
    return {size: max(least, round(most * share**power)) for size, (most, power, least) in SIZES.items()}
