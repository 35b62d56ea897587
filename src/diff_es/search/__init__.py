"""The search for the best schedule within a budget, numpy only.

It sees schedules, their costs and their scores, and is ignorant of what a level does to the model: a `Space` says which
schedules keep the budget and how to move between them, and a `Search` asks for candidates and is told their scores.
"""

from diff_es.search.additive import Branch, Point, branches, knapsack_hull, prunings
from diff_es.search.ask import Generation, Propose, Scored, Search, replay
from diff_es.search.candidate import Candidate, StageChoice
from diff_es.search.choosing import Standing, choose, error_of
from diff_es.search.evolve import (
    Evolution,
    EvoPress,
    evolutionary_search,
    evopress_search,
    front_search,
    random_search,
    usual_switches,
)
from diff_es.search.knapsack import joint_knapsack, knapsack, knapsack_best, knapsack_front
from diff_es.search.mosaic import mosaic
from diff_es.search.pareto import FrontPoint, best_within, front, tier
from diff_es.search.placing import Placing, placing_search
from diff_es.search.racing import ScoresOn, promoted, race
from diff_es.search.relaxed import Relaxed
from diff_es.search.slots import Steps
from diff_es.search.space import NoneFits, Space

__all__ = [
    "Branch",
    "Candidate",
    "EvoPress",
    "Evolution",
    "FrontPoint",
    "Generation",
    "NoneFits",
    "Placing",
    "Point",
    "Propose",
    "Relaxed",
    "Scored",
    "ScoresOn",
    "Search",
    "Space",
    "StageChoice",
    "Standing",
    "Steps",
    "best_within",
    "branches",
    "choose",
    "error_of",
    "evolutionary_search",
    "evopress_search",
    "front",
    "front_search",
    "joint_knapsack",
    "knapsack",
    "knapsack_best",
    "knapsack_front",
    "knapsack_hull",
    "mosaic",
    "placing_search",
    "promoted",
    "prunings",
    "race",
    "random_search",
    "replay",
    "tier",
    "usual_switches",
]
