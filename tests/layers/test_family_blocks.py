"""Every family of transformers: skipped blocks, plans made from statistics, placements and costs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from tests.helpers.counting import _Counting
from tests.helpers.families import (
    BATCH,
    FAMILIES,
    HIDDEN,
    arguments,
    assert_close,
    every_family,
    model_of,
    random_plan,
    run,
    slim,
)
from tests.helpers.tiny import assert_same, snapshot
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diff_es import Compact, Depth, Method, Resident, Streamed, Width
from diff_es.layers import Block, Bypass, Cut, Plan, Weights, discover, room_to_compile
from diff_es.pipelines.denoiser import meta_twin
from diff_es.pipelines.tracing import Trace
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.compaction import Compaction
from diff_es.pruning.compensation import regress
from diff_es.pruning.granularity import Granularity, Skip, Thin
from diff_es.pruning.library import Library
from diff_es.pruning.macs import MacCounter
from diff_es.pruning.wanted import Wanted
from diff_es.routing.placements import Placement
from diff_es.routing.realise import output_of, realise
from diff_es.routing.switch import Switch
from diff_es.trajectory.stages import Stages
from diff_es.utils.progress import Reporter


def bypass(block: Block, seed: int) -> Bypass:
    g = torch.Generator().manual_seed(seed)
    return block.blank().map(lambda tensor: torch.randn(tensor.shape, generator=g) * 0.2)


def by_definition(block: Block, stand_in: Bypass | None) -> Callable[..., Any]:
    """What a skipped block returns: each stream with its own linear map added."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        named = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | kwargs
        image = named["hidden_states"]
        text: Any = named.get("encoder_hidden_states")
        if stand_in is not None:
            image = image + image @ stand_in.weight.T + stand_in.bias
            if stand_in.context_weight is not None and stand_in.context_bias is not None:
                text = text + text @ stand_in.context_weight.T + stand_in.context_bias
        return (text, image) if isinstance(output, tuple) else image

    return hook


@every_family
@pytest.mark.parametrize("plain", [False, True])
def test_a_skipped_block_is_what_the_definition_says(name: str, plain: bool) -> None:
    model, family = model_of(name), FAMILIES[name]
    anatomy, dense, before = discover(model), run(model, family), snapshot(model)
    count = len(anatomy.blocks)
    for skipped in [(i,) for i in range(count)] + [tuple(range(count)), (0, count - 1)]:
        blocks = [anatomy.blocks[i] for i in skipped]
        stand_ins = {block.name: None if plain else bypass(block, i) for i, block in enumerate(blocks)}
        found = slim(name, Plan(bypasses=stand_ins))
        handles = [
            model.get_submodule(block.name).register_forward_hook(
                by_definition(block, stand_ins[block.name]), with_kwargs=True
            )
            for block in blocks
        ]
        expected = run(model, family)
        for handle in handles:
            handle.remove()
        assert_close(found, expected)
        assert not found.allclose(dense)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("name", ["wan", "sana", "ltx"])
def test_a_bypass_has_the_precision_of_its_block_also_where_tables_stay_float32(name: str) -> None:
    model, half = deepcopy(model_of(name)), torch.bfloat16
    anatomy = discover(model)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            module.to(half)
    switch = Switch(model)
    switch.to(realise(model, anatomy, Plan(bypasses={block.name: bypass(block, 0) for block in anatomy.blocks})))
    for block in anatomy.blocks:
        states = torch.randn(2, 3, block.width, dtype=half)
        assert model.get_submodule(block.name).forward(states).dtype is half
    switch.to(Weights())


@cache
def library_of(name: str) -> Library:
    """Levels of width, and skipped blocks, from calls at the timesteps of two stages."""
    model, family = model_of(name), FAMILIES[name]
    anatomy, stages = discover(model), Stages((family.timestep * (1000 if family.timestep < 1 else 1),))
    with Gatherer(model, stages, Wanted(anatomy.layers, anatomy.blocks)) as gatherer:
        for seed in range(6):
            gatherer.begin()
            now = torch.full((BATCH,), family.timestep * (1 + 0.1 * (-1) ** seed))
            with torch.no_grad():
                model(**{**arguments(family, seed), "timestep": now})
    method = Method(Width(8, multiple=1, depth=Depth()), granularity=Granularity.BLOCK)
    return Library(model, anatomy, gatherer.statistics(), method, Reporter(quiet=True))


@every_family
def test_a_fitted_bypass_is_finite_and_beats_leaving_the_block_out(name: str) -> None:
    library = library_of(name)
    for unit, described in enumerate(library.units):
        if isinstance(described.options[-1], Skip):
            plan = library.part(1, unit, len(described.options) - 1)
            bypass = plan.bypasses[described.name]
            assert bypass is not None
            assert all(tensor.isfinite().all() for tensor in bypass.tensors().values())
            assert slim(name, plan).isfinite().all()
            block = next(block for block in library.anatomy.blocks if block.name == described.name)
            for stream in block.streams:
                moments = library.moments(1, stream)
                left = regress(moments, HIDDEN, 0.01)[2]
                assert left < float(moments.power()[HIDDEN:].sum())
    assert sum(isinstance(unit.options[-1], Skip) for unit in library.units) == len(library.anatomy.blocks)


@every_family
@pytest.mark.parametrize(
    "placement", [Resident(), Streamed(), Compact()], ids=lambda placement: type(placement).__name__
)
def test_plans_run_in_every_placement_to_the_same_bits(name: str, placement: Placement) -> None:
    library, family, model = library_of(name), FAMILIES[name], model_of(name)
    make = Compaction(library, 0.1).plan if isinstance(placement, Compact) else library.plan
    plans = [make(stage, levels) for stage, levels in enumerate(levels_of(library))]
    expected, dense, before = [slim(name, plan) for plan in plans], run(model, family), deepcopy(model.state_dict())
    store = placement.open(model, library.anatomy, plans)
    for stage in (0, 1, 0):
        store.to(stage)
        assert run(model, family).equal(expected[stage])
    store.close()
    assert run(model, family).equal(dense)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def levels_of(library: Library) -> tuple[tuple[int, ...], ...]:
    """Mixed levels of the units in two stages; one unit is skipped."""
    rows = tuple(tuple((3 * unit + 2 + 5 * stage) % 8 for unit in range(len(library.units))) for stage in range(2))
    return (len(library.units[0].options) - 1, *rows[0][1:]), rows[1]


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux", "qwen"])
def test_both_streams_keep_the_same_heads_at_every_level(name: str) -> None:
    library = library_of(name)
    followers = [layer for layer in library.anatomy.layers if layer.follows]
    for stage in range(2):
        for level in range(8):
            plan = library.plan(stage, [level] * len(library.units))
            assert bool(plan.cuts) == bool(level)
            for layer in followers:
                leader = plan.cuts.get(layer.follows or "")
                own = plan.cuts.get(layer.name)
                assert (own is None) == (leader is None)
                if own is not None and leader is not None:
                    assert own.kept.equal(leader.kept)
                    assert own.weight is not None
                    assert not own.weight.equal(output_of(model_of(name), layer).weight[:, layer.columns(own.kept)])


@every_family
def test_counted_costs_are_what_is_really_computed(name: str) -> None:
    model, family = model_of(name), FAMILIES[name]
    anatomy = discover(model)
    meta = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), arguments(family))
    counter = MacCounter(model, anatomy, Trace((500.0,), (), meta))
    for level in (0, 2, 5):
        kept = tuple(max(1, layer.kept(level, 8)) for layer in anatomy.layers)
        plan = Plan({x.name: Cut(torch.arange(n)) for x, n in zip(anatomy.layers, kept, strict=True)})
        with sdpa_kernel(SDPBackend.MATH), _Counting() as counted:
            slim(name, plan)
        assert counter.thinned(kept) == counted.macs
    for block in anatomy.blocks:
        with sdpa_kernel(SDPBackend.MATH), _Counting() as counted:
            slim(name, Plan(bypasses={block.name: bypass(block, 0)}))
        assert counter.skipping([block.name]) == counted.macs
    for unit in library_of(name).units:  # each with the others dense, as a table of costs has them
        option = unit.options[5]
        assert isinstance(option, Thin)
        plan = Plan({x.name: Cut(torch.arange(n)) for x, n in zip(unit.layers, option.kept, strict=True)})
        with sdpa_kernel(SDPBackend.MATH), _Counting() as counted:
            slim(name, plan)
        assert counter.option(unit, 5) == counted.macs


def test_the_twin_of_every_family_has_its_layers() -> None:
    for name in FAMILIES:
        assert discover(meta_twin(model_of(name))) == discover(model_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "ltx"])
def test_compiled_blocks_run_every_plan(name: str) -> None:
    model, family = deepcopy(model_of(name)), FAMILIES[name]
    anatomy = discover(model)
    ready = [realise(model, anatomy, random_plan(model, anatomy, seed)) for seed in range(2)]
    switch, expected = Switch(model), list[Tensor]()
    for weights in ready:
        switch.to(weights)
        expected.append(run(model, family))
    switch.to(Weights())
    one_of_each = {type(module): module for module in map(model.get_submodule, [one.name for one in anatomy.blocks])}
    for module in one_of_each.values():  # the others run as they are: each would be compiled as often again
        module.compile(backend="eager", fullgraph=True)
    switch = Switch(model)
    for i in (0, 1, 0):
        switch.to(ready[i])
        with room_to_compile():
            assert run(model, family).equal(expected[i])
    switch.to(Weights())
    torch.compiler.reset()
