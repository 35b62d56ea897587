"""A library's optimiser as a rival of the searches: CMA-ES with margin (arXiv 2205.13482), from the package `cmaes`.

    pip install cmaes

It is a `Search` like any other. What it draws is rounded to the options and repaired to the budget, and its state is
built up again from the scores at every generation, so it resumes and parallelises as the others do.
"""

from __future__ import annotations

import numpy as np

from diff_es.search import Candidate, Scored, Search, Space


def cma_search(space: Space, evaluations: int, seed: int = 0, population: int = 20) -> Search:
    """CMA-ES with margin over the numbers of a schedule, as places among their options, for so many evaluations.

    It ends early where that many of its own generations have not brought them.
    """
    from cmaes import CMAwM

    options = list[tuple[int, ...]]()  # of each number
    for s, stage in enumerate(space.costs):
        options += [space.steps.counts[s]] if space.steps else []
        options += [tuple(range(len(row))) for row in stage]
    free = [i for i, offered in enumerate(options) if len(offered) > 1]
    tops = np.array([len(options[i]) - 1.0 for i in free])

    def schedule(places: np.ndarray, rng: np.random.Generator) -> Candidate:
        flat = [offered[0] for offered in options]
        for i, place in zip(free, places, strict=True):
            flat[i] = options[i][round(place)]
        return space.repair(Candidate.of_numbers(flat, space.stages, steps=space.steps is not None), rng)

    def propose(generation: int, ranking: tuple[Scored, ...]) -> tuple[Candidate, ...]:
        known = dict(ranking)
        bounds, ones = np.stack([np.zeros(len(free)), tops], 1), np.ones(len(free))
        optimiser = CMAwM(tops / 2, float(tops.mean()) / 4, bounds, ones, seed=seed, population_size=population)
        for turn in range(evaluations):
            draws = [optimiser.ask() for _ in range(population)]
            rngs = [np.random.default_rng([seed, turn, index]) for index in range(population)]
            asked = [schedule(places, rng) for (places, _), rng in zip(draws, rngs, strict=True)]
            new = [one for one in dict.fromkeys(asked) if one not in known][: evaluations - len(known)]
            if new or len(known) >= evaluations:
                return tuple(new)
            optimiser.tell([(raw, -known[one]) for (_, raw), one in zip(draws, asked, strict=True)])
        return ()

    return Search(propose)
