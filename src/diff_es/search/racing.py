"""Racing: a cohort is judged on few probes first, and only the better part of it on more.

Source: successive halving (Karnin et al., ICML 2013; Jamieson and Talwalkar, arXiv 1502.07943).
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf

from diff_es.search.space import Levels

Judge = Callable[[int, tuple[Levels, ...]], Mapping[Levels, float]]
"""(rung, candidates) -> the score of each on the rung's probes, the same for all; higher is better."""


def promoted(
    scores: Mapping[Levels, float], share: float, peers: Callable[[Levels], int] = lambda _: 0
) -> tuple[Levels, ...]:
    """Who goes on to the next rung: of each group of `peers` the best `share`, rounded up, in the order of `scores`.

    Equal scores go by the order of their levels, and what scored -inf is out. ValueError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"promoted: expected a share above 0, at most 1, found {share}")
    groups = dict[int, list[Levels]]()
    for levels in scores:
        groups.setdefault(peers(levels), []).append(levels)
    best = set[Levels]()
    for group in groups.values():
        ranked = sorted(group, key=lambda levels: (-scores[levels], levels))
        best.update(ranked[: ceil(share * len(group) - 1e-9)])
    return tuple(levels for levels in scores if levels in best and scores[levels] > -inf)


def race(
    cohort: Sequence[Levels], judge: Judge, shares: Sequence[float], peers: Callable[[Levels], int] = lambda _: 0
) -> dict[Levels, float]:
    """What to tell a search of a cohort: the scores of the last rung, and -inf of those who dropped out before.

    There is one rung more than `shares`, and after each but the last the `promoted` go on. Scores of different rungs
    never meet. Race the whole of what was asked, and keep the scores of all rungs to resume it: a part of a cohort has
    other winners.

    >>> quality = {((level,),): -float(level) for level in range(8)}
    >>> told = race(tuple(quality), lambda rung, left: {levels: quality[levels] for levels in left}, (0.5, 0.5))
    >>> [levels for levels, score in told.items() if score > -inf]
    [((0,),), ((1,),)]
    """
    left = tuple(cohort)
    for rung, share in enumerate(shares):
        scores = judge(rung, left)
        left = promoted({levels: scores[levels] for levels in left}, share, peers)
    top = judge(len(shares), left) if left else {}
    told = {levels: top[levels] for levels in left}
    return {levels: told.get(levels, -inf) for levels in cohort}
