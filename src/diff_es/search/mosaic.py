"""The schedule of MosaicDiff (arXiv 2510.11962): three phases, the middle one protected."""

from collections.abc import Sequence

from diff_es.search.candidate import Candidate
from diff_es.search.space import Space


def middle_phase(change: Sequence[float]) -> range:
    """The middle of three phases, read off the trajectory: the shortest run of interior stages with at least half of
    the interior's change of the denoiser's output (after MosaicDiff, arXiv 2510.11962, whose phases are set by hand).
    """
    inner = range(1, len(change) - 1)
    if not inner:
        return range(len(change))
    total = sum(change[s] for s in inner)
    runs = [range(a, b + 1) for a in inner for b in inner if b >= a]
    enough = [run for run in runs if sum(change[s] for s in run) >= total / 2]
    return min(enough, key=lambda run: (len(run), -sum(change[s] for s in run)))


def mosaic(space: Space, change: Sequence[float], gap: int = 2) -> Candidate:
    """Three phases, the middle one ``gap`` levels less pruned than the others, nearest to the budget.

    Raises:
        NoneFits: no schedule of this shape keeps the budget.
    """
    return space.protect(middle_phase(change), gap)
