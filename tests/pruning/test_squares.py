"""Methods that need no products of one input with another gather none, and find the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.helpers.pipelines import ddim, made
from tests.helpers.tiny import settings, tiny
from torch import Tensor

from diff_es import Depth, DiffESError, Granularity, Method, Obs, Ridge, Run, Sampling, Width, compress
from diff_es.compression.study import wanted_of
from diff_es.compression.survey import survey
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pruning.calibration import calibrate
from diff_es.pruning.compensation import output_error
from diff_es.pruning.importance import Activation, Magnitude, Ranking, Wanda, column_powers
from diff_es.pruning.library import Library
from diff_es.pruning.moments import Moments
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)


def bare(ranking: Ranking) -> Method:
    return Method(Width(4, dense=()), ranking, None, granularity=Granularity.BLOCK)


@pytest.mark.parametrize("make", [tiny, lambda: made(ddim)])
def test_squares_are_the_diagonal_of_all_products_and_rank_the_same(make: Callable[[], Any]) -> None:
    pipe = make()
    surveyed = survey(pipe, settings(method=bare(Wanda()), sampling=Sampling(6, None, 2)), QUIET)
    wanted, probes = wanted_of(surveyed), make_probes(pipe, 3, 0, "calibration")
    call = (surveyed.pipe, probes, surveyed.settings.sampling, surveyed.stages)
    whole, alone = (calibrate(*call, replace(wanted, squares=squares), QUIET) for squares in (False, True))
    pairs = zip([*whole.stages, whole.shared()], [*alone.stages, alone.shared()], strict=True)
    for one, other in pairs:
        for name in wanted.names:
            assert other[name].second.shape == other[name].first.shape
            torch.testing.assert_close(other[name].power(), one[name].power(), rtol=1e-5, atol=1e-9)
            torch.testing.assert_close(other[name].mean(), one[name].mean())
    for ranking in (Wanda(), Magnitude(), Activation()):
        own = denoiser_of(surveyed.pipe), surveyed.anatomy
        libraries = [Library(*own, found, bare(ranking), QUIET) for found in (whole, alone)]
        for stage in range(len(surveyed.stages)):
            cuts, same = (library.plan(stage, (2,) * len(library.units)).cuts for library in libraries)
            assert cuts
            assert all(cuts[name].kept.equal(same[name].kept) for name in cuts)


def test_only_rankings_and_compensation_that_invert_gather_products() -> None:
    for ranking in (Wanda(), Magnitude(), Activation()):
        assert bare(ranking).squares
        assert not replace(bare(ranking), compensation=Ridge()).squares
    assert not bare(Obs()).squares
    surveyed = survey(tiny(), settings(method=bare(Wanda())), QUIET)
    sizes, layers = wanted_of(surveyed).sizes(), surveyed.anatomy.layers
    assert sizes == {layer.name: 4 * layer.size for layer in layers}


def test_only_what_a_ladder_needs_is_gathered() -> None:
    for ladder, thins, skips in (
        (Width(4, dense=()), True, False),
        (Depth(), False, True),
        (Width(4, dense=(), depth=Depth()), True, True),
    ):
        surveyed = survey(tiny(), settings(method=Method(ladder)), QUIET)
        wanted, anatomy = wanted_of(surveyed), surveyed.anatomy
        assert wanted.layers == (anatomy.layers if thins else ())
        assert wanted.blocks == (anatomy.blocks if skips else ())


def test_what_is_lost_is_known_where_inputs_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, power = torch.randn(5, 8, generator=generator), torch.rand(8, generator=generator, dtype=torch.float64)

    def moments(second: Tensor) -> Moments:
        return Moments(second, torch.zeros(8, dtype=torch.float64), 1)

    shares = column_powers(weight, moments(power))
    torch.testing.assert_close(shares, column_powers(weight, moments(power.diag())))
    kept = torch.tensor([0, 3, 4])
    left = output_error(weight, None, moments(power.diag()), kept, (weight[:, kept], torch.zeros(5)))
    assert float(shares.sum() - shares[kept].sum()) == pytest.approx(left)


def test_a_search_without_products_needs_room_for_none() -> None:
    """What is too little for one matrix is enough; and it comes out the same."""
    asked = settings(method=bare(Wanda()))
    found = compress(tiny(), 0.6, asked, Run(memory=3e-7))
    assert found.report == compress(tiny(), 0.6, asked).report
    with pytest.raises(DiffESError, match="memory: expected at least"):
        compress(tiny(), 0.6, replace(asked, method=replace(asked.method, compensation=Ridge())), Run(memory=3e-7))
