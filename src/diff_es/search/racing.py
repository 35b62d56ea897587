"""Racing: a cohort is judged on few probes first, and only the better part of it on more.

Source: successive halving (Karnin et al., ICML 2013; Jamieson and Talwalkar, arXiv 1502.07943).
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf

from diff_es.search.candidate import Candidate

ScoresOn = Callable[[int, tuple[Candidate, ...]], Mapping[Candidate, float]]
"""(rung, candidates) -> the score of each on the rung's probes, the same for all; higher is better."""


def promoted(
    scores: Mapping[Candidate, float], share: float, peers: Callable[[Candidate], int] = lambda _: 0
) -> tuple[Candidate, ...]:
    """Who goes on to the next rung: of each group of `peers` the best `share`, rounded up, in the order of `scores`.

    Equal scores go by the order of candidates, and what scored -inf is out. ValueError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"promoted: expected a share above 0, at most 1, found {share}")
    groups = dict[int, list[Candidate]]()
    for candidate in scores:
        groups.setdefault(peers(candidate), []).append(candidate)
    best = set[Candidate]()
    for group in groups.values():
        ranked = sorted(group, key=lambda candidate: (-scores[candidate], candidate))
        best.update(ranked[: ceil(share * len(group) - 1e-9)])
    return tuple(candidate for candidate in scores if candidate in best and scores[candidate] > -inf)


def race(
    cohort: Sequence[Candidate],
    scores_on: ScoresOn,
    shares: Sequence[float],
    peers: Callable[[Candidate], int] = lambda _: 0,
) -> dict[Candidate, float]:
    """What to tell a search of a cohort: the scores of the last rung, and -inf of those who dropped out before.

    There is one rung more than `shares`, and after each but the last the `promoted` go on. Scores of different rungs
    never meet. Race the whole of what was asked, and keep the scores of all rungs to resume it: a part of a cohort has
    other winners.

    Examples:
        >>> quality = {Candidate.of([[level]]): -float(level) for level in range(8)}
        >>> told = race(tuple(quality), lambda rung, left: {one: quality[one] for one in left}, (0.5, 0.5))
        >>> [one.levels for one, score in told.items() if score > -inf]
        [((0,),), ((1,),)]
    """
    left = tuple(cohort)
    for rung, share in enumerate(shares):
        scores = scores_on(rung, left)
        left = promoted({candidate: scores[candidate] for candidate in left}, share, peers)
    top = scores_on(len(shares), left) if left else {}
    told = {candidate: top[candidate] for candidate in left}
    return {candidate: told.get(candidate, -inf) for candidate in cohort}
