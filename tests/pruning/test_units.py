"""Laws of units: every layer has one level, parts make up the whole, and prices add up whatever each part does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from tests.helpers.counting import counted
from tests.helpers.tiny import CALL, LITTLE, assert_same_plans, images, joint, opened, settings, snapshot, tiny

from diff_es import Compressed, Depth, DiffESError, Method, Width, compress, load
from diff_es.compression.settings import Levers
from diff_es.compression.study import Study, prepare
from diff_es.compression.survey import survey
from diff_es.layers import Anatomy, Block, Kind, Layer, discover
from diff_es.pruning.granularity import Granularity, Ladder, Option, Skip, Thin, units_of
from diff_es.pruning.library import Library
from diff_es.pruning.macs import MacCounter
from diff_es.routing.routing import routed
from diff_es.search import Candidate
from diff_es.solvers.custom_timesteps import stepped
from diff_es.trajectory.stages import Stages
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)
WIDTH, EITHER = Width(4, dense=()), Width(4, dense=(), depth=Depth())
PLAIN = Width(4, dense=(), depth=Depth(bypass=False))
COMBINATIONS: dict[str, tuple[Ladder, Granularity]] = {
    "denoiser": (WIDTH, Granularity.WHOLE),
    "denoiser, depth": (Depth(), Granularity.WHOLE),
    "denoiser, width or depth": (EITHER, Granularity.WHOLE),
    "kinds": (WIDTH, Granularity.KIND),
    "blocks": (WIDTH, Granularity.BLOCK),
    "blocks, width or skip": (EITHER, Granularity.BLOCK),
    "blocks, width or plain skip": (PLAIN, Granularity.BLOCK),
}
every_combination = pytest.mark.parametrize(("ladder", "grain"), COMBINATIONS.values(), ids=COMBINATIONS)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return discover(tiny(layers=3).transformer)


# ---------------------------------------------------------------------------------------------------- what they are


@every_combination
def test_every_layer_has_one_unit_and_level_0_is_dense(ladder: Ladder, grain: Granularity, anatomy: Anatomy) -> None:
    units = units_of(anatomy, ladder, grain)
    assert sorted(layer.name for unit in units for layer in unit.layers) == sorted(x.name for x in anatomy.layers)
    assert len({unit.name for unit in units}) == len(units)
    for unit in units:
        assert unit.options[0] == Thin(tuple(layer.groups for layer in unit.layers))
        for level, option in enumerate(unit.options):
            if isinstance(option, Thin):
                assert isinstance(ladder, Width) or level == 0
                kept = [layer.kept(level, 4) for layer in unit.layers]  # sizes that no multiple rounds
                assert option.kept == tuple(kept)


def skips(options: Sequence[Option]) -> list[Any]:
    return [option.blocks for option in options if isinstance(option, Skip)]


def test_what_each_grain_offers(anatomy: Anatomy) -> None:
    blocks = [block.name for block in anatomy.blocks]
    for ladder, thinned, skipped in ((WIDTH, 4, []), (EITHER, 4, [1, 2]), (Depth(), 1, [1, 2])):
        (unit,) = units_of(anatomy, ladder, Granularity.WHOLE)
        assert (unit.name, unit.layers) == ("denoiser", anatomy.layers)
        assert skips(unit.options) == skipped
        assert len(unit.options) == thinned + len(skipped)  # one block always stays
    attention, forward = units_of(anatomy, WIDTH, Granularity.KIND)
    assert (attention.name, forward.name) == ("attention", "feedforward")
    assert {layer.kind for layer in attention.layers} == {Kind.ATTENTION}
    assert {layer.kind for layer in forward.layers} == {Kind.FEEDFORWARD}
    for ladder in (WIDTH, EITHER):
        units = units_of(anatomy, ladder, Granularity.BLOCK)
        assert [unit.name for unit in units] == blocks
        for unit in units:
            assert [layer.name for layer in unit.layers] == [f"{unit.name}.attn1", f"{unit.name}.ff"]
            assert skips(unit.options) == ([(unit.name,)] if ladder is EITHER else [])


def test_a_layer_outside_of_all_blocks_is_its_own_unit() -> None:
    names = ("b.1.ff", "b.10.ff", "refiner.ff", "b.1.attn")
    layers = [Layer(name, Kind.FEEDFORWARD, 8, 1, (), f"{name}.net.2") for name in names]
    anatomy = Anatomy(tuple(layers), (Block("b.1", 4), Block("b.10", 4)), ())
    units = units_of(anatomy, EITHER, Granularity.BLOCK)
    found = {unit.name: [layer.name for layer in unit.layers] for unit in units}
    assert found == {"b.1": ["b.1.ff", "b.1.attn"], "b.10": ["b.10.ff"], "refiner.ff": ["refiner.ff"]}
    assert [len(skips(unit.options)) for unit in units] == [1, 1, 0]


def test_widths_of_units_are_rounded_and_left_dense_as_the_ladder_says() -> None:
    anatomy = discover(tiny(head_size=8).transformer)
    slow = ("transformer_blocks.1.ff", 2)
    for unit in units_of(anatomy, Width(4, 16, (slow,)), Granularity.BLOCK):
        kept = [option.kept for option in unit.options if isinstance(option, Thin)]
        assert [heads for heads, _ in kept] == [4, 3, 2, 1]
        expected = [128, 96, 128 if unit.name == "transformer_blocks.1" else 64, 32]
        assert [channels for _, channels in kept] == expected


def test_layers_that_lose_nothing_at_any_level_are_named() -> None:
    pipe, slow = tiny(), "transformer_blocks.0.ff"
    timed = Width(4, dense=tuple((slow, level) for level in range(1, 4)))
    with pytest.warns(UserWarning, match=f"{slow} keeps all of its groups at every level") as found:
        survey(pipe, settings(method=Method(timed)), Reporter(quiet=True))
    assert len(found) == 1
    kept = Width(4, dense=timed.dense[1:] if timed.dense else ())
    survey(pipe, settings(method=Method(kept)), Reporter(quiet=True))


@pytest.mark.parametrize(
    ("ladder", "grain"),
    [(Depth(), Granularity.KIND), (Depth(), Granularity.BLOCK), (EITHER, Granularity.KIND)],
    ids=str,
)
def test_combinations_of_no_sense_are_refused_before_anything_runs(ladder: Ladder, grain: Granularity) -> None:
    pipe = tiny()
    pipe.transformer.pos_embed.register_forward_pre_hook(lambda *_: 1 / 0)
    for levers in (Levers.PRUNE, Levers.BOTH):
        with pytest.raises(DiffESError, match=rf"units: expected .*, found units of granularity {grain.value} with"):
            compress(pipe, 0.7, settings(levers=levers, method=Method(ladder, granularity=grain)))


@pytest.mark.parametrize("grain", Granularity)
def test_where_nothing_is_pruned_units_do_not_matter(grain: Granularity) -> None:
    ready = prepare(tiny(), joint(levers=Levers.STEPS, method=Method(WIDTH, granularity=grain)))
    assert [unit.name for unit in ready.units] == ["denoiser"]
    assert ready.costs.options == ((ready.counter.dense(),),)


# ------------------------------------------------------------------------------------------------------------ plans


@pytest.fixture(scope="module")
def study() -> Study:
    """With statistics of layers and blocks."""
    return prepare(tiny(), settings(**LITTLE, method=Method(EITHER)))


def library_of(study: Study, method: Method) -> Library:
    return Library(study.pipe.transformer, study.anatomy, study.statistics, method, QUIET)


@pytest.mark.parametrize("grain", [Granularity.KIND, Granularity.BLOCK])
@pytest.mark.parametrize("changes", [{}, {"stagewise": False}, {"compensation": None}, {"shared_order": True}], ids=str)
def test_units_at_one_level_are_the_whole_denoiser_at_it(
    grain: Granularity, changes: dict[str, Any], study: Study
) -> None:
    whole, parts = (library_of(study, Method(WIDTH, granularity=g, **changes)) for g in (Granularity.WHOLE, grain))
    for stage in range(3):
        for level in range(4):
            kept = tuple(layer.kept(level, 4) for layer in study.anatomy.layers)
            plans = [whole.plan(stage, (level,)), parts.plan(stage, (level,) * len(parts.units))]
            assert_same_plans(plans, [whole.thinned(stage, kept)] * 2)


def test_skipping_a_block_is_what_depth_leaves_in_its_place() -> None:
    study = prepare(tiny(layers=3), settings(method=Method(EITHER)))
    by_rank, by_name = (
        library_of(study, Method(EITHER, granularity=g)) for g in (Granularity.WHOLE, Granularity.BLOCK)
    )
    for stage in range(3):
        for count in (1, 2):
            ranked = by_rank.plan(stage, (3 + count,))
            assert len(ranked.bypasses) == count
            row = tuple(4 if unit.name in ranked.bypasses else 0 for unit in by_name.units)
            assert_same_plans([by_name.plan(stage, row)], [ranked])
    assert by_rank.plan(0, (4,)).bypasses.keys() <= by_rank.plan(0, (5,)).bypasses.keys()


@every_combination
def test_a_plan_is_the_union_of_its_parts_and_made_once(ladder: Ladder, grain: Granularity, study: Study) -> None:
    library, rng = library_of(study, Method(ladder, granularity=grain)), np.random.default_rng(0)
    for _ in range(6):
        row = tuple(int(rng.integers(len(unit.options))) for unit in library.units)
        plan, parts = library.plan(1, row), [library.part(1, unit, level) for unit, level in enumerate(row)]
        assert sum(len(part.cuts) for part in parts) == len(plan.cuts)
        assert all(plan.cuts[name] is cut for part in parts for name, cut in part.cuts.items())
        assert sum(len(part.bypasses) for part in parts) == len(plan.bypasses)
        assert library.plan(1, row) is plan
        for unit, level in enumerate(row):
            touched = {*parts[unit].cuts, *parts[unit].bypasses}
            assert bool(touched) == (level > 0)


# ----------------------------------------------------------------------------------------------------------- prices


def macs_of(pipe: DiTPipeline, counter: MacCounter, library: Library, stage: int, row: tuple[int, ...]) -> set[int]:
    """Of a call as it really runs, and as the counter has it for the realised plan."""
    plan = library.plan(stage, row)
    with routed(pipe.transformer, Stages(()), opened(pipe, [plan])), counted(pipe) as calls:
        images(pipe, [1], steps=1)
    return {calls[0].macs, counter._count(plan)}


@every_combination
def test_a_random_row_costs_what_its_units_add_up_to(ladder: Ladder, grain: Granularity, study: Study) -> None:
    method = Method(ladder, granularity=grain)
    ready = prepare(tiny(layers=3), settings(**LITTLE, method=method))
    library, rng, costs = ready.library, np.random.default_rng(1), ready.costs
    assert len(costs.options) == len(library.units)
    assert costs.dense == CALL.steps * ready.counter.dense()
    rows = [tuple(int(rng.integers(len(unit.options))) for unit in library.units) for _ in range(2)]
    rows += [tuple(len(unit.options) - 1 for unit in library.units), (0,) * len(library.units)]
    for i, row in enumerate(rows):
        assert macs_of(ready.pipe, ready.counter, library, i % 3, row) == {costs.call(row)}
    assert len({costs.call(row) for row in rows}) >= 3


@pytest.mark.parametrize("ladder", [EITHER, PLAIN], ids=["bypass", "nothing"])
def test_a_random_schedule_of_blocks_and_steps_costs_what_it_should(ladder: Width) -> None:
    ready = prepare(tiny(), joint(method=Method(ladder, granularity=Granularity.BLOCK)))
    pipe, rng = ready.pipe, np.random.default_rng(2)
    for _ in range(4):
        options = [[int(rng.integers(len(row))) for row in ready.costs.options] for _ in range(3)]
        candidate = Candidate.of(options, [int(rng.choice(counts)) for counts in ready.costs.choices or ()])
        plans = [ready.library.plan(stage, levels) for stage, levels in enumerate(candidate.levels)]
        timesteps, routing = ready.timesteps(candidate) or (), (pipe.transformer, ready.stages, opened(pipe, plans))
        with stepped(pipe, timesteps, CALL.steps), routed(*routing), counted(pipe) as calls:
            images(pipe, [1])
        assert [call.timestep for call in calls] == list(timesteps)
        assert sum(call.macs for call in calls) == ready.costs.of(candidate) == ready.macs.of(candidate)


# --------------------------------------------------------------------------------------------------------- searches


FOUR = replace(CALL, num_inference_steps=4)


def assert_kept(fast: Compressed, pipe: DiTPipeline, macs: float) -> None:
    with counted(pipe) as dense:
        images(pipe, [1], FOUR.steps)
    with fast.routed(pipe), counted(pipe) as calls:
        images(pipe, [1], FOUR.steps)
    spent, own = (sum(call.macs for call in seen) for seen in (calls, dense))
    assert spent / own == fast.report.macs_ratio <= macs


@pytest.mark.parametrize(
    ("name", "levers"),
    [
        ("kinds", Levers.BOTH),
        ("blocks", Levers.PRUNE),
        ("blocks, width or skip", Levers.BOTH),
        ("denoiser, width or depth", Levers.PRUNE),
    ],
)
def test_searches_over_units_keep_the_budget_and_come_back_from_disk(name: str, levers: Levers, tmp_path: Path) -> None:
    ladder, grain = COMBINATIONS[name]
    pipe, method = tiny(), Method(ladder, granularity=grain)
    before, dense = snapshot(pipe.transformer), images(pipe, steps=FOUR.steps)
    make = settings if levers is Levers.PRUNE else joint
    least = {**LITTLE, "first_rung": 0, "stages": 2, "population": 2, "sampling": FOUR}
    fast = compress(pipe, 0.6, make(**{**least, "levers": levers, "method": method}))
    assert snapshot(pipe.transformer).keys() == before.keys()
    assert fast.report.units == tuple(unit.name for unit in units_of(discover(pipe.transformer), ladder, grain))
    assert {len(row) for row in fast.schedule.levels} == {len(fast.report.units)}
    assert_kept(fast, pipe, 0.6)
    fast.save(tmp_path / "out")
    other = tiny()
    with fast.routed(pipe), load(tmp_path / "out").routed(other):
        pruned = images(pipe, steps=FOUR.steps)
        assert torch.equal(images(other, steps=FOUR.steps), pruned)
    assert not torch.equal(pruned, dense)
    assert torch.equal(images(pipe, steps=FOUR.steps), dense)


def test_what_is_left_of_a_budget_buys_no_unit_a_lower_level() -> None:
    fast = compress(tiny(), 0.6, settings(**LITTLE, method=Method(EITHER, granularity=Granularity.BLOCK)))
    tables, steps, ratio = fast.report.macs_by_level, fast.report.steps, fast.report.macs_ratio
    for stage, row in enumerate(fast.schedule.levels):
        for table, level in zip(tables, row, strict=True):
            rises = [macs - table[level] for macs in table if macs > table[level]]
            assert not rises or ratio + steps[stage] * min(rises) / (CALL.steps * tables[0][0]) > 0.6


def test_the_one_block_of_a_denoiser_is_the_denoiser() -> None:
    """A search over one unit is the same search however the unit is named."""
    found = []
    for grain in (Granularity.WHOLE, Granularity.BLOCK):
        method = replace(settings().method, granularity=grain)
        found.append(compress(tiny(layers=1), 0.7, settings(**{**LITTLE, "generations": 2}, method=method)))
    whole, block = found
    assert whole.schedule == block.schedule
    assert_same_plans(whole.plans, block.plans)
    for key in ("score", "held_out_score", "finalists", "history", "evaluations", "macs_ratio", "macs_by_level"):
        assert getattr(whole.report, key) == getattr(block.report, key)
