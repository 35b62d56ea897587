"""Levels alone with corrected steps: these stay in place, and each makes up for the pruned ones before it."""

from __future__ import annotations

from functools import cache

import pytest
from diffusers import LCMScheduler
from tests.helpers.tiny import CALL, settings, tiny

from diff_es import DiffESError, Levers
from diff_es.compression.study import Study, prepare
from diff_es.scoring.metrics import EXACT_DB
from diff_es.search import Candidate


@cache
def study(corrections: int) -> Study:
    return prepare(tiny(), settings(corrections=corrections, search_noises=4))


SCHEDULES = [Candidate.of([[level] for level in levels]) for levels in ((3, 0, 0), (2, 1, 0), (3, 3, 3), (0, 0, 3))]


def test_steps_stay_and_are_what_results_are_compared_with() -> None:
    corrected = study(4)
    assert corrected.settings.levers is Levers.PRUNE
    assert corrected.costs.choices is None
    assert corrected.reference == corrected.timesteps(SCHEDULES[0]) == corrected.trace.timesteps
    assert corrected.steps(SCHEDULES[0]) == study(0).steps(SCHEDULES[0])
    assert corrected.costs.ratio(SCHEDULES[1]) == study(0).costs.ratio(SCHEDULES[1])


def test_nothing_pruned_needs_no_correction() -> None:
    assert study(4).part(0)(study(4).own) == EXACT_DB


@pytest.mark.parametrize("candidate", SCHEDULES)
def test_uncorrected_it_is_pruning_alone(candidate: Candidate) -> None:
    """To the bit: chosen timesteps that are the sampler's own change nothing."""
    assert study(4).part(0).plain(candidate) == study(0).part(0)(candidate)


@pytest.mark.parametrize("candidate", SCHEDULES)
def test_on_the_noises_that_it_was_fitted_to_it_is_no_worse(candidate: Candidate) -> None:
    """Each step is fitted to come closer, relative to what it misses for each noise."""
    fitted = study(4).fitness("search", CALL.batch)
    assert fitted(candidate) > fitted.plain(candidate)


def test_where_steps_stay_none_are_corrected_by_default() -> None:
    ready = prepare(tiny(), settings(corrections=None))
    assert ready.settings.corrections == 0
    assert ready.path is None


def test_a_sampler_whose_steps_had_better_stay_takes_no_corrections() -> None:
    message = (
        r"corrections: expected none for this sampler, found 4 for one that draws noise on the way\. Leave them out"
    )
    with pytest.raises(DiffESError, match=message):
        prepare(tiny(scheduler=LCMScheduler), settings(corrections=4))
