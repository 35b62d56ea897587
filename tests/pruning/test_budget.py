"""Laws of budgets: what is asked for is kept on the device, or refused at once with the best that can be had."""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, EIGHT, LITTLE, assert_same, images, joint, settings, slimmed, snapshot, tiny
from torch import Tensor, nn

from diff_es import BudgetOutOfReach, Compact, Depth, DiffESError, Method, Run, Sampling, Streamed, Width, compress
from diff_es.compression.settings import Levers
from diff_es.compression.survey import survey
from diff_es.layers import Cut, Plan, discover
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.pruning.budget import Budget, MacsRatio, MeasuredPrices, Prices, Speedup, WeightMemory, measured_prices
from diff_es.pruning.costs import Costs
from diff_es.pruning.granularity import Granularity
from diff_es.routing.routing import routing_of
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)
NOTHING: Any = None  # in a pipeline's place: nobody looks at it
WIDE: dict[str, Any] = {"head_size": 16, "heads": 8, "layers": 3}  # a model whose weights outweigh their alignment


@pytest.mark.parametrize("speedup", [0.0, 0.99, -2.0, math.nan, math.inf])
def test_a_speed_up_of_no_sense_is_refused(speedup: float) -> None:
    with pytest.raises(DiffESError, match=rf"speedup: expected a number from 1 to 1000.*, found {speedup}"):
        Budget.of(speedup=speedup)


@pytest.mark.parametrize("weights", [0.0, -1.0, math.nan, math.inf])
def test_weights_of_no_sense_are_refused(weights: float) -> None:
    with pytest.raises(DiffESError, match=rf"weights_gb: expected a number above 0, at .*, found {weights}"):
        Budget.of(weights_gb=weights)


def test_budgets_of_sense_are_taken() -> None:
    assert Budget().to_json() == {"macs": 0.7, "speedup": None, "weights_gb": None}
    assert Budget.of(speedup=1).compute == Speedup(1)
    assert Budget.of(speedup=1.4).to_json() == {"macs": None, "speedup": 1.4, "weights_gb": None}
    assert Budget.of(0.5, weights_gb=1e-9).memory == WeightMemory(1e-9)


def test_two_budgets_at_once_are_refused() -> None:
    with pytest.raises(
        BudgetOutOfReach, match=r"a share of MACs or a speed-up, found 0.5 of the MACs and 1.4x as fast. L"
    ):
        Budget.of(0.5, speedup=1.4)
    with pytest.raises(BudgetOutOfReach, match=r"0\.7 of the MACs and 2x as fast"):  # what is usual, said
        compress(NOTHING, 0.7, speedup=2)
    told = r"placement: expected none, since the result is streamed, found Compact beside 1 GB of weights\. Leave one"
    with pytest.raises(DiffESError, match=told):
        compress(NOTHING, weights_gb=1.0, run=Run(placement=Compact()))


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration, which comes before all else that takes long, is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("calibration began")

    monkeypatch.setattr("diff_es.compression.study.calibrate", refuse)


def least_named(error: BudgetOutOfReach) -> float:
    named = re.search(r"expected at (?:least|most) ([0-9.]+)", str(error))
    assert named is not None
    return float(named[1])


@pytest.mark.parametrize("levers", Levers)
@pytest.mark.usefixtures("nothing_runs")
def test_too_few_macs_are_refused_with_the_least_that_can_be_had(levers: Levers, tmp_path: Path) -> None:
    chosen = joint(levers=levers)
    with pytest.raises(BudgetOutOfReach, match="macs: expected at least") as caught:
        compress(tiny(), 0.001, chosen, run=Run(journal=tmp_path / "journal.jsonl"))
    deepest = 0.3835 if levers is Levers.PRUNE else 0.064 if levers is Levers.BOTH else 0.1667
    assert least_named(caught.value) == deepest
    assert list(tmp_path.iterdir()) == []
    if levers is Levers.STEPS:  # nothing is calibrated
        assert (
            compress(tiny(), deepest, replace(chosen, **LITTLE, first_rung=0, timestep_generations=1)).report.cost_ratio
            <= deepest
        )
        return
    with pytest.raises(AssertionError, match="calibration began"):
        compress(tiny(), deepest, chosen)


@pytest.mark.usefixtures("nothing_runs")
def test_too_little_memory_is_refused_with_the_least_that_can_be_had(tmp_path: Path) -> None:
    pipe = tiny(**WIDE)
    least = gigabytes(pipe, 7)
    with pytest.raises(BudgetOutOfReach, match=r"weights: expected at least .* GB, which the deepest level") as caught:
        compress(pipe, 0.9, settings(method=EIGHT), weights_gb=least * 0.9, run=Run(journal=tmp_path / "journal.jsonl"))
    assert least_named(caught.value) == pytest.approx(least, abs=5e-4)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BudgetOutOfReach, match="macs: expected at least") as caught:  # only deep levels are left
        compress(pipe, 0.01, settings(method=EIGHT), weights_gb=least)
    with pytest.raises(AssertionError, match="calibration began"):
        compress(pipe, least_named(caught.value), settings(method=EIGHT), weights_gb=least)


@pytest.mark.usefixtures("nothing_runs")
def test_weights_are_for_one_level_of_the_denoiser() -> None:
    method = Method(Width(4, dense=()), granularity=Granularity.BLOCK)
    with pytest.raises(DiffESError, match=r"weights: expected one unit, found 2\. Take one level for the whole"):
        compress(tiny(), 0.7, settings(method=method), weights_gb=1.0)


# ------------------------------------------------------------------------------------------------------------ memory


def gigabytes(pipe: DiTPipeline, level: int) -> float:
    """Of all weights that run at a level of eight, from a network that is really smaller."""
    anatomy = discover(pipe.transformer)
    cuts = {x.name: Cut(torch.arange(x.groups - level * x.groups // 8)) for x in anatomy.layers}
    return sum(parameter.nbytes for parameter in slimmed(pipe.transformer, Plan(cuts)).parameters()) / 1e9


def peak(pipe: DiTPipeline) -> float:
    """The most GB of weights during a trajectory of a routed pipeline: counted at every call, and as its store says."""
    seen = list[int]()

    def count(timestep: float) -> None:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in pipe.transformer.parameters()}
        seen.append(sum(storage.nbytes() for storage in storages.values()))

    handle = on_timestep(pipe.transformer, count)
    images(pipe, steps=FOUR.steps)
    handle.remove()
    routing = routing_of(pipe.transformer)
    assert routing is not None
    return max(*seen, routing.store.peak_bytes) / 1e9


FOUR = Sampling(4, 2.0, 2)
PADDING = 6 * 8 * 64 / 1e9  # of the parts that are copied to the device, in GB: tensors of six layers


@pytest.mark.parametrize(
    ("most", "level", "share"), [(1, 1, 1.0), (4, 4, 1.01), (4, 3, 0.999), (7, 7, 1.0), (7, 6, 0.999)]
)
def test_levels_whose_weights_take_more_are_barred(most: int, level: int, share: float) -> None:
    """All below the highest that fits into a share of what a level takes."""
    pipe = tiny(**WIDE)
    limit = gigabytes(pipe, level) * share
    found = survey(pipe, settings(method=EIGHT), QUIET, Budget(MacsRatio(0.9), WeightMemory(limit)))
    assert found.costs.barred == set(range(most))
    space = found.costs.space(0.9)
    assert {level for (level,) in space.random(np.random.default_rng(0)).levels} <= set(range(most, 8))
    assert found.macs.barred == frozenset()


@pytest.mark.parametrize(("levers", "most"), [(Levers.PRUNE, 3), (Levers.BOTH, 6)])
def test_no_stage_takes_more_memory_than_allowed(levers: Levers, most: int) -> None:
    pipe = tiny(**WIDE)
    before, dense = snapshot(pipe.transformer), images(pipe, steps=FOUR.steps)
    limit = gigabytes(pipe, most)
    make = settings if levers is Levers.PRUNE else joint
    least = {**LITTLE, "first_rung": 0, "stages": 2, "population": 2, "sampling": FOUR}
    fast = compress(pipe, 0.7, make(**{**least, "levers": levers, "method": EIGHT}), weights_gb=limit)
    assert isinstance(fast.placement, Streamed)
    assert fast.report.macs_ratio <= 0.7
    with fast.routed(pipe):
        assert peak(pipe) <= limit + PADDING
        assert not torch.equal(images(pipe, steps=FOUR.steps), dense)
    levels = [row[0] for row, steps in zip(fast.schedule.levels, fast.report.steps, strict=True) if steps]
    assert min(levels) >= most
    assert_same(before, snapshot(pipe.transformer))


@pytest.mark.parametrize(("bypass", "share"), [(True, 1.0), (False, 1.2)])
def test_skipping_blocks_keeps_a_limit_of_memory(bypass: bool, share: float) -> None:
    pipe = tiny(**WIDE)
    limit, least = gigabytes(pipe, 0) * share, {**LITTLE, "stages": 2, "sampling": FOUR}
    fast = compress(pipe, 0.8, settings(**least, method=Method(Depth(bypass))), weights_gb=limit)
    with fast.routed(pipe):
        assert peak(pipe) <= limit + PADDING


# ------------------------------------------------------------------------------------------------------------- time


@st.composite
def prices(draw: st.DrawFn) -> Prices:
    rows = st.lists(st.integers(1, 10**7), min_size=1, max_size=5).map(lambda found: tuple(sorted(found, reverse=True)))
    steps = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    choices = draw(st.sampled_from([None, tuple((1, n) if n > 1 else (1,) for n in steps)]))
    return Prices(Costs(draw(st.integers(0, 10**6)), (draw(rows),), steps, choices), draw(st.floats(0, 10**8)))


@given(prices(), st.floats(0, 1), st.floats(0, 1))
@examples(max_examples=100, deadline=None)
def test_the_share_of_a_speed_up_falls_and_gives_it_back(found: Prices, x: float, y: float) -> None:
    less, more = (1 + (found.best - 1) * share * (1 - 1e-9) for share in sorted((x, y)))
    assert found.best >= 1
    assert found.share(1.0) == pytest.approx(1.0)
    assert 1 >= found.share(less) >= found.share(more) * (1 - 1e-12) > 0
    left = found.share(more) * found.costs.dense
    assert found.dense / (found.other + left) == pytest.approx(more, rel=1e-6)
    assert left >= found.costs.cheapest * (1 - 1e-9)


@given(prices())
@examples(max_examples=50, deadline=None)
def test_more_than_the_best_speed_up_is_refused_with_the_best(found: Prices) -> None:
    with pytest.raises(BudgetOutOfReach, match=r"speedup: expected at most .*, which the cheapest schedule gives"):
        found.share(found.best * 1.001 + 0.001)
    with pytest.raises(BudgetOutOfReach) as caught:
        found.share(found.best * 2 + 1)
    named = least_named(caught.value)
    assert found.best - 0.011 < named <= found.best
    if named >= 1:
        found.share(named)


@given(prices())
@examples(max_examples=25, deadline=None)
def test_prices_come_back_from_json(found: Prices) -> None:
    counted = replace(found.costs, fixed=1, options=tuple((3,) * len(row) for row in found.costs.options))
    said = json.loads(json.dumps(found.measured.model_dump()))
    assert Prices.restored(MeasuredPrices.model_validate(said), counted) == found
    with pytest.raises(DiffESError, match=r"prices.* Search anew in another folder"):
        Prices.restored(MeasuredPrices.model_validate({**said, "options": [[1], *said["options"]]}), counted)
    for edited in ({**said, "other": None}, {**said, "fixed": -1}):
        with pytest.raises(ValidationError):
            MeasuredPrices.model_validate(edited)


@pytest.mark.parametrize(
    "method",
    [
        Method(Width(4, dense=())),
        Method(Depth()),
        Method(Width(3, dense=()), granularity=Granularity.BLOCK),
        Method(Width(3, dense=(), depth=Depth()), granularity=Granularity.BLOCK),
    ],
)
def test_measured_prices_are_positive_and_leave_no_trace(method: Method) -> None:
    pipe = tiny()
    before, decoder, dense = snapshot(pipe.transformer), snapshot(pipe.vae), images(pipe)
    found = survey(pipe, settings(method=method), QUIET)
    measured = measured_prices(pipe, found.counter, found.units, found.macs, CALL, QUIET)
    assert [len(row) for row in measured.costs.options] == [len(unit.options) for unit in found.units]
    assert min(min(row) for row in measured.costs.options) >= 0
    assert measured.costs.call([len(unit.options) - 1 for unit in found.units]) > 0
    assert measured.costs.fixed >= 0
    assert measured.other >= 0
    assert measured.costs.steps == found.macs.steps
    assert_same(before, snapshot(pipe.transformer))
    assert_same(decoder, snapshot(pipe.vae))
    assert torch.equal(images(pipe), dense)


def test_prompts_are_no_part_of_a_step() -> None:
    """Whose encoding is slept: half of the steps save nothing of it."""
    pipe, case = made(CASES["SD"].make), CASES["SD"]
    encode, slept = pipe.encode_prompt, 0.15

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(slept)
        return encode(*args, **kwargs)

    pipe.encode_prompt = slowly
    found = survey(pipe, settings(sampling=case.sampling), QUIET)
    measured = measured_prices(pipe, found.counter, found.units, found.macs, case.sampling, QUIET)
    assert measured.other > 0.8 * slept * 1e9
    assert measured.costs.fixed < slept * 1e9 / sum(found.macs.steps)


NAP = 0.010  # seconds that each of three feed-forward layers sleeps at full width
DECODER = 0.040


@pytest.fixture
def sleepy() -> Iterator[DiTPipeline]:
    """A pipeline whose time is slept: in its feed-forward layers by their width, and in its decoder."""
    pipe = tiny()

    def nap(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        time.sleep(NAP * module.net[2].in_features / 64)  # type: ignore[union-attr, index]

    handles = [block.ff.register_forward_hook(nap) for block in pipe.transformer.transformer_blocks]
    handles.append(pipe.vae.post_quant_conv.register_forward_hook(lambda *_: time.sleep(DECODER)))
    yield pipe
    for handle in handles:
        handle.remove()


def seconds(pipe: DiTPipeline) -> float:
    times = list[float]()
    for _ in range(5):
        began = time.perf_counter()
        images(pipe)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def quick(levers: Levers) -> Any:
    """Few evaluations, since every call sleeps."""
    small = {
        "calibration_samples": 2,
        "search_noises": 2,
        "held_out_noises": 2,
        "finalists": 1,
        "population": 4,
        "generations": 2,
    }
    return joint(
        levers=levers, **{**small, "first_rung": 0, "timestep_generations": 1, "method": Method(Width(4, dense=()))}
    )


@pytest.mark.usefixtures("nothing_runs")
def test_too_much_speed_is_refused_with_the_best_that_can_be_had(sleepy: DiTPipeline, tmp_path: Path) -> None:
    with pytest.raises(BudgetOutOfReach, match=r"speedup: expected at most .*x, which the cheapest schedule") as caught:
        compress(sleepy, settings=quick(Levers.PRUNE), speedup=9.0, run=Run(journal=tmp_path / "journal.jsonl"))
    assert list(tmp_path.iterdir()) == []
    named = least_named(caught.value)
    assert 1 < named < 4  # what the deepest level of four saves of each call
    with pytest.raises(AssertionError, match="calibration began"):
        compress(sleepy, settings=quick(Levers.PRUNE), speedup=1 + (named - 1) * 0.6)
