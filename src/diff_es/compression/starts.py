"""Where a search begins: what the table of sensitivities says, what people do by hand, and what the dense run tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from ..search import Candidate, NoneFits, Space, mosaic
from ..solvers.ays import published
from ..trajectory.shortest import COEFFICIENTS, Bends, cheapest
from ..trajectory.timesteps import by_hand
from ..utils.seeds import derive_seed
from .evaluator import Evaluator
from .sensitivity import Sensitivity
from .study import Study


def starts(ready: Study, spaces: Sequence[Space], table: Sensitivity, evaluator: Evaluator) -> tuple[Candidate, ...]:
    """First candidates for every budget, each filled up to it: the knapsack of the sensitivities first, then uniform,
    ramps and the middle-protecting shape of MosaicDiff, or fewer steps, evenly, by the rules that people use, and where
    the dense run is straightest."""
    rng, found = np.random.default_rng(derive_seed(ready.settings.seed, "starts")), list[Candidate]()
    for space in spaces:
        found.append(space.repair(table.best(space), rng))
    for space in spaces:
        if ready.costs.choices is None:
            found += space.starts(rng)
            with suppress(NoneFits):  # where the deepest level is not the cheapest, and no budget for it
                found.append(space.repair(mosaic(space, ready.statistics.change), rng))
            continue
        found += [space.repair(table.best(space, coherent=True), rng), *space.starts(rng)]
        share = space.budget / ready.costs.dense
        ruled = [*by_rule(ready, share), *straightest(ready, share, evaluator)]
        found += [space.repair(_offered(ready, one, space.units), rng) for one in ruled]
    return tuple(found)


def _offered(ready: Study, candidate: Candidate, units: int) -> Candidate:
    """The nearest schedule whose stages take numbers of steps that they may choose, with the first so many units."""
    pairs = zip(ready.costs.choices or (), candidate.steps, strict=True)
    steps = [min(counts, key=lambda n: (abs(n - wanted), n)) for counts, wanted in pairs]
    return Candidate.of([levels[:units] for levels in candidate.levels], steps)


def by_rule(ready: Study, share: float) -> tuple[Candidate, ...]:
    """The dense model, if it may run at all, with as many steps as a share of the cost holds, where rules of hand put
    them, and where they were published for the model; with timesteps."""
    path, total = ready.path, _affordable(ready, share)
    if path is None or not total:
        return ()
    total = min(total, path.most_steps)  # where the user's own end at the sampler's end, there is one fewer
    return tuple(
        _stepping(ready, one) for one in [*by_hand(path, total), *filter(None, [published(ready.pipe, path, total)])]
    )


def straightest(ready: Study, share: float, evaluator: Evaluator) -> tuple[Candidate, ...]:
    """The same where steps miss least of the dense run (GITS, arXiv 2405.11326), for each coefficient that its authors
    try; of one whose states are known, as corrections of steps need them."""
    total, bends = _bent(ready, share, evaluator)
    if bends is None:
        return ()
    return _on(ready, dict.fromkeys(cheapest(bends.missed, total, one) for one in COEFFICIENTS))


def foreseen(ready: Study, share: float, evaluator: Evaluator) -> tuple[Candidate, ...]:
    """The same where steps miss least of it that are corrected."""
    total, bends = _bent(ready, share, evaluator)
    return () if bends is None else _on(ready, bends.nearest(total, ready.directions))


def _bent(ready: Study, share: float, evaluator: Evaluator) -> tuple[int, Bends | None]:
    """How many steps a share of the cost holds, and the dense run that they are placed on, if it has as many points."""
    total, bends = _affordable(ready, share), evaluator.scorer.fitness.bends
    return total, bends if bends is not None and 0 < total < len(bends) else None


def _on(ready: Study, found: Iterable[Sequence[int]]) -> tuple[Candidate, ...]:
    """The dense model, with steps at these points of the dense run."""
    assert ready.reference is not None
    return tuple(_stepping(ready, [ready.reference[point] for point in points]) for points in found)


def _affordable(ready: Study, share: float) -> int:
    """How many steps of the dense model a share of the cost holds; 0 where it may not run, or steps are set."""
    if ready.path is None or ready.costs.choices is None or 0 in ready.costs.barred:
        return 0
    return ready.costs.space(share).budget * sum(ready.costs.steps) // ready.costs.dense


def _stepping(ready: Study, timesteps: Sequence[float]) -> Candidate:
    """The dense model at these timesteps."""
    return Candidate.of(ready.own.levels, ready.stages.steps(timesteps), timesteps)


def with_timesteps(ready: Study, candidate: Candidate) -> Candidate:
    """A schedule that says its timesteps."""
    return candidate.at(ready.timesteps(candidate) or ())
