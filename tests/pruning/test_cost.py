"""Costs against multiply-accumulates counted by hand, budgets at their edges, and what users do instead."""

import math
import re
from itertools import product

import pytest
import torch
from diffusers import DiTTransformer2DModel
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.helpers.tiny import HEADS, HIDDEN, SIZE, denoiser
from torch import Tensor, nn

from diff_es.evaluation.rivals.baselines import fewer_steps, uniform_width
from diff_es.layers import DENSE, Anatomy, Bypass, Cut, Plan, Weights, discover
from diff_es.pipelines.tracing import Trace
from diff_es.pruning.costs import Costs
from diff_es.pruning.granularity import Depth, Granularity, Thin, Width, units_of
from diff_es.pruning.macs import MacCounter
from diff_es.routing.realise import realise
from diff_es.routing.switch import Switch
from diff_es.search import Candidate, NoneFits, StageChoice
from diff_es.search.mosaic import middle_phase, mosaic
from diff_es.utils.errors import BudgetOutOfReach, UnsupportedModel
from diff_es.utils.progress import Reporter

laws = settings(max_examples=60, deadline=None)
TOKENS, BATCH = 16, 2


def call(device: str) -> dict[str, Tensor]:
    noise, ones = torch.zeros(BATCH, 4, 8, 8, device=device), torch.ones(BATCH, dtype=torch.int64, device=device)
    return {"hidden_states": noise, "timestep": ones, "class_labels": ones}


TRACE = Trace((500.0,), (), call("meta"))


def by_hand(model: DiTTransformer2DModel, anatomy: Anatomy, plan: Plan) -> int:
    """MACs of the real, slimmed network, summed up from the shapes that pass through its linear layers."""
    macs = 0

    def linear(module: nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight.shape[1]

    def convolution(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    def attention(module: nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs  # q k^T and its product with v, over the heads that are left
        macs += 2 * BATCH * TOKENS * TOKENS * output.shape[-1]

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(linear))
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(convolution))
        if name.endswith("to_q"):
            handles.append(module.register_forward_hook(attention))
    switch = Switch(model)
    switch.to(realise(model, anatomy, plan))
    with torch.no_grad():
        model(**call("cpu"))
    switch.to(Weights())
    for handle in handles:
        handle.remove()
    return macs + sum(BATCH * TOKENS * HIDDEN * HIDDEN for b in plan.bypasses.values() if b is not None)


def cut_to(anatomy: Anatomy, kept: tuple[int, ...]) -> Plan:
    pairs = zip(anatomy.layers, kept, strict=True)
    return Plan({layer.name: Cut(torch.arange(layer.groups - count, layer.groups)) for layer, count in pairs})


@pytest.mark.parametrize("activation", ["gelu-approximate", "geglu"])
def test_macs_of_any_widths_equal_those_counted_by_hand(activation: str) -> None:
    model = denoiser(activation)
    anatomy = discover(model)
    counter = MacCounter(model, anatomy, TRACE)
    assert counter.dense() == by_hand(model, anatomy, DENSE)
    g = torch.Generator().manual_seed(0)
    for _ in range(6):
        kept = tuple(int(torch.randint(1, layer.groups + 1, (), generator=g)) for layer in anatomy.layers)
        assert counter.thinned(kept) == by_hand(model, anatomy, cut_to(anatomy, kept))
    assert counter.thinned(tuple(layer.groups for layer in anatomy.layers)) == counter.dense()
    assert all(not parameter.is_meta for parameter in model.parameters())


def test_a_network_that_is_not_its_configuration_s_is_refused_and_counted_once_it_is() -> None:
    model, whole = denoiser(), denoiser()
    model.transformer_blocks = model.transformer_blocks[:2]
    with pytest.raises(UnsupportedModel, match=r"transformer_blocks\.2\..*: not there, and .*register_to_config"):
        MacCounter(model, discover(model), TRACE)
    model.register_to_config(num_layers=2)
    counter = MacCounter(whole, discover(whole), TRACE, bypass=False)
    assert MacCounter(model, discover(model), TRACE).dense() == counter.skipping(["transformer_blocks.2"])


def test_the_hand_count_of_one_attention_layer_is_the_textbook_one() -> None:
    model = denoiser()
    anatomy = discover(model)
    dense, fewer = (
        by_hand(model, anatomy, DENSE),
        by_hand(model, anatomy, cut_to(anatomy, (HEADS - 1, 96) + (3, 96) * 2)),
    )
    assert dense - fewer == BATCH * (4 * TOKENS * HIDDEN * SIZE + 2 * TOKENS * TOKENS * SIZE)


@pytest.mark.parametrize("bypass", [False, True])
def test_macs_of_skipped_blocks_equal_those_counted_by_hand_whichever_they_are(bypass: bool) -> None:
    model = denoiser()
    anatomy = discover(model)
    counter = MacCounter(model, anatomy, TRACE, bypass=bypass)
    linear = Bypass(torch.zeros(HIDDEN, HIDDEN), torch.zeros(HIDDEN)) if bypass else None
    for blocks in ((), (0,), (2,), (0, 1), (1, 2), (0, 1, 2)):
        names = [anatomy.blocks[i].name for i in blocks]
        assert counter.skipping(names) == by_hand(model, anatomy, Plan(bypasses=dict.fromkeys(names, linear)))


@pytest.mark.parametrize("ladder", [Width(5), Depth(), Depth(bypass=False), Width(4, depth=Depth())])
def test_a_table_starts_dense_and_falls_strictly(ladder: Width | Depth) -> None:
    model = denoiser()
    anatomy = discover(model)
    bypass = not (isinstance(ladder, Depth) and not ladder.bypass)
    counter, units = MacCounter(model, anatomy, TRACE, bypass=bypass), units_of(anatomy, ladder, Granularity.WHOLE)
    (table,) = counter.table(units, Reporter(quiet=True))
    thinned = [option for option in units[0].options if isinstance(option, Thin)]
    assert len(table) == len(units[0].options)
    assert table[0] == counter.dense()
    for part in (table[: len(thinned)], (table[0], *table[len(thinned) :])):  # thinner and thinner, then shallower
        assert list(part) == sorted(set(part), reverse=True)
    assert min(table) > 0
    for option, macs in zip(thinned, table, strict=False):
        assert macs == counter.thinned(option.kept)


# ----------------------------------------------------------------------------------------------------------- budgets


def table(most: int, least: int = 1) -> st.SearchStrategy[tuple[int, ...]]:
    """Prices of one unit's levels, falling."""
    prices = st.lists(st.integers(least, 10_000), min_size=1, max_size=most, unique=True)
    return prices.map(lambda found: tuple(sorted(found, reverse=True)))


@st.composite
def costs(draw: st.DrawFn) -> Costs:
    """One unit or two, with the steps of the stages given or a choice."""
    kind = draw(st.sampled_from(["one unit", "two units", "steps too"]))
    options = {
        "one unit": st.tuples(table(6)),
        "two units": st.tuples(table(3, 0), table(3, 1)),
        "steps too": st.tuples(table(3)),
    }[kind]
    steps = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=4 if kind == "one unit" else 3)))
    choices = None
    if kind == "steps too":
        sets = [draw(st.sets(st.integers(int(s == 0), 40), max_size=3)) | {own} for s, own in enumerate(steps)]
        choices = tuple(tuple(sorted(found)) for found in sets)
    return Costs(draw(st.integers(0, 5_000)), draw(options), steps, choices)


def every(c: Costs) -> list[Candidate]:
    """All schedules, whatever they cost."""
    rows = list(product(*(range(len(row)) for row in c.options)))
    if c.choices is None:
        return [Candidate.of(levels) for levels in product(rows, repeat=len(c.steps))]
    stages = product(*([StageChoice(n, row) for n in counts for row in rows] for counts in c.choices))
    return [Candidate(choices) for choices in stages]


def spent(c: Costs, candidate: Candidate) -> int:
    total = 0
    for n, levels in zip(c.steps if c.choices is None else candidate.steps, candidate.levels, strict=True):
        total += n * (c.fixed + sum(prices[level] for prices, level in zip(c.options, levels, strict=True)))
    return total


def cheapest(c: Costs) -> Candidate:
    deepest = [len(row) - 1 for row in c.options]
    fewest = None if c.choices is None else [counts[0] for counts in c.choices]
    return Candidate.of([deepest] * len(c.steps), fewest)


def pruning(*prices: int, steps: tuple[int, ...]) -> Costs:
    return Costs(0, (prices,), steps)


def test_the_ratio_weighs_each_stage_by_its_steps() -> None:
    c = pruning(100, 60, 10, steps=(3, 1))
    assert c.dense == 400
    assert c.ratio(Candidate.of([[0], [0]])) == 1
    assert c.ratio(Candidate.of([[1], [0]])) == 280 / 400
    assert c.ratio(Candidate.of([[0], [2]])) == 310 / 400
    joint = Costs(20, ((80, 40),), (3, 1), ((1, 3), (0, 1, 2)))
    assert joint.dense == 400
    assert joint.ratio(Candidate.of([[0], [1]], [1, 2])) == (100 + 120) / 400
    assert joint.ratio(Candidate.of([[0], [1]], [3, 0])) == 300 / 400


@laws
@given(st.lists(table(5), min_size=1, max_size=4), st.integers(0, 5_000), st.integers(1, 20))
def test_a_table_of_units_is_given_back_unit_by_unit(rows: list[tuple[int, ...]], more: int, steps: int) -> None:
    dense = sum(row[0] for row in rows) + more
    counted = [tuple(dense - row[0] + price for price in row) for row in rows]  # each with all else dense
    c = Costs.tabled(counted, (steps,))
    assert c.dense == steps * dense
    for unit, row in enumerate(counted):
        for level, price in enumerate(row):
            assert c.call([level if u == unit else 0 for u in range(len(rows))]) == price
    assert c.call([len(row) - 1 for row in rows]) == dense - sum(row[0] - row[-1] for row in rows)
    assert min(min(row) for row in c.options) >= 0 <= c.fixed


@laws
@given(costs(), st.floats(0, 1))
def test_a_space_holds_exactly_what_costs_no_more_than_the_fraction(c: Costs, fraction: float) -> None:
    least = c.ratio(cheapest(c))
    assume(not least * (1 - 1e-11) <= fraction < least)  # which rounding may make of it
    if fraction < least:
        assert not c.attainable(fraction)
        with pytest.raises(BudgetOutOfReach):
            c.space(fraction)
        return
    space = c.space(fraction)
    for candidate in every(c):
        assert c.of(candidate) == spent(c, candidate)
        if abs(spent(c, candidate) - fraction * c.dense) > 1e-9 * c.dense:
            assert space.feasible(candidate) == (spent(c, candidate) < fraction * c.dense)
        assert space.cost(candidate) == spent(c, candidate)


@laws
@given(costs(), st.data())
def test_the_ratio_of_a_schedule_is_a_budget_that_it_keeps(c: Costs, data: st.DataObject) -> None:
    candidate = data.draw(st.sampled_from(every(c)))
    assume(c.of(candidate) <= c.dense)
    assert c.space(c.ratio(candidate)).feasible(candidate)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.0001, 70, float("nan"), float("inf")])
def test_what_is_no_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(BudgetOutOfReach, match=r"macs: expected a fraction above 0, at most 1, .* such as 0\.7"):
        pruning(100, 10, steps=(3, 1)).space(fraction)


@laws
@given(costs())
@example(pruning(100, 29, steps=(1,)))
def test_too_small_a_budget_is_refused_with_one_that_works(c: Costs) -> None:
    least = c.ratio(cheapest(c))
    assert c.cheapest == spent(c, cheapest(c)) == min(spent(c, candidate) for candidate in every(c))
    with pytest.raises(BudgetOutOfReach, match=r"which the (deepest level costs|fewest steps cost)") as caught:
        c.space(least * 0.99)
    named = re.search(r"Ask for ([0-9.]+) or more", str(caught.value))
    assert named is not None
    assert least - 1e-9 <= float(named[1]) <= least + 0.0011
    assert c.space(float(named[1])).feasible(cheapest(c))


# --------------------------------------------------------------------------------------------------------- baselines


@laws
@given(st.integers(1, 200), st.integers(1, 1000))
def test_fewer_steps_are_as_many_as_fit(steps: int, thousandths: int) -> None:
    found = fewer_steps(steps, thousandths / 1000)
    assert found == max(1, steps * thousandths // 1000)


@pytest.mark.parametrize("fraction", [1.0, 0.91, 0.58])
def test_uniform_width_takes_the_last_share_that_fits_and_in_some_layers_the_one_before(fraction: float) -> None:
    model = denoiser()
    anatomy = discover(model)
    counter = MacCounter(model, anatomy, TRACE)
    finest, budget = 4 * HIDDEN, fraction * counter.dense()
    shares = [tuple(max(1, layer.kept(n, finest)) for layer in anatomy.layers) for n in range(finest + 1)]
    kept = uniform_width(counter, anatomy, fraction)
    last = next(position for position, share in enumerate(shares) if counter.thinned(share) <= budget)
    assert (last == 0) == (fraction == 1)
    before = shares[max(0, last - 1)]
    assert all(count in pair for count, *pair in zip(kept, shares[last], before, strict=True))
    assert counter.thinned(kept) <= budget
    for layer, count in enumerate(before):  # no layer has room for more
        fuller = (*kept[:layer], count, *kept[layer + 1 :])
        assert fuller == kept or counter.thinned(fuller) > budget
    with pytest.raises(NoneFits, match=r"uniform_width: expected .* found 0.01; raise the budget"):
        uniform_width(counter, anatomy, 0.01)


@pytest.mark.parametrize(
    ("change", "middle"),
    [
        ([9.0, 1, 5, 1, 9], [2]),  # the ends count for nothing
        ([0.0, 1, 1, 1, 1, 0], [1, 2]),  # half is enough, the first of equals
        ([0.0, 1, 2, 2, 1, 0], [2, 3]),
        ([0.0, 4, 1, 1, 3, 0], [1, 2]),  # never with a gap
        ([0.0, 0, 3, 3, 4, 0], [3, 4]),  # of runs as short, the one with the most change
        ([0.0, 0, 0, 0], [1]),
        ([1.0, 2, 1], [1]),
        ([1.0, 2], [0, 1]),
        ([1.0], [0]),
    ],
)
def test_the_middle_phase_by_hand(change: list[float], middle: list[int]) -> None:
    assert list(middle_phase(change)) == middle


@laws
@given(st.lists(st.integers(0, 20), min_size=3, max_size=9))
def test_the_middle_phase_is_the_shortest_run_with_half_of_the_interior_change(change: list[int]) -> None:
    run = middle_phase(change)
    inner = change[1:-1]
    assert 1 <= run.start < run.stop <= len(change) - 1
    assert 2 * sum(change[s] for s in run) >= sum(inner)
    for start in range(len(inner) - len(run) + 2):
        assert 2 * sum(inner[start : start + len(run) - 1]) < max(sum(inner), 1) or len(run) == 1


def test_mosaic_protects_the_middle() -> None:
    costs = pruning(8, 6, 4, 2, 1, steps=(2,) * 5)
    space = costs.space(0.6)
    found = mosaic(space, [0.0, 1, 5, 1, 0], gap=2)
    outer, (inner,) = {found.levels[s][0] for s in (0, 1, 3, 4)}, found.levels[2]
    assert outer == {inner + 2}
    assert space.feasible(found)
    assert math.isclose(costs.ratio(found), space.cost(found) / 80)
