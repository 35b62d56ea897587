"""A Ray cluster of two nodes on this machine, and crews of it, for all tests here: its start takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
from tests.helpers.on_ray import Standing, two_nodes

from diff_es.execution import OnRay
from diff_es.execution.ray_crew import RayCrew
from diff_es.utils.progress import Reporter


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """With room for seven workers on each node; this process is connected to it."""
    with two_nodes(workers=7) as found:
        yield found


@pytest.fixture(scope="session")
def hired(cluster: Any) -> Iterator[Callable[[int], Standing]]:
    """Gives executors of so many workers, who stay from one test to the next."""
    with ExitStack() as stack:

        def crew(count: int) -> Standing:
            found = stack.enter_context(OnRay(count).crew(Reporter(quiet=True)))
            assert isinstance(found, RayCrew)
            return Standing(found)

        yield cache(crew)
