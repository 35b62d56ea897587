"""The search for the best schedule within a budget, numpy only.

It sees schedules, their costs and their scores, and is ignorant of what a level does to the model: a `Space` says which
schedules keep the budget and how to move between them, and a `Search` asks for candidates and is told their scores.
"""

from diff_es.search.evolve import (
    Evolution,
    Generation,
    Propose,
    Scored,
    Search,
    evolutionary_search,
    random_search,
    replay,
)
from diff_es.search.knapsack import knapsack
from diff_es.search.space import Levels, Space

__all__ = [
    "Evolution",
    "Generation",
    "Levels",
    "Propose",
    "Scored",
    "Search",
    "Space",
    "evolutionary_search",
    "knapsack",
    "random_search",
    "replay",
]
