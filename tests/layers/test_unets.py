"""Laws of pruned U-Nets: exact against the dense network, at every level consistent, and gone without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.helpers.tiny import assert_same, assert_same_plans, snapshot
from tests.helpers.unets import (
    BATCH,
    BOUNDED,
    MODELS,
    conditioned,
    gathered,
    inputs,
    masked,
    random_bypass,
    random_plan,
    run,
    sd,
    shifted,
    unconditional,
)
from torch import Tensor, nn

from diff_es import Compact, Depth, DiffESError, Method, Resident, Streamed, Width
from diff_es.compression.packing import pack, unpack
from diff_es.compression.store import read_folder, write_folder
from diff_es.layers import DENSE, Anatomy, Bypass, Cut, Kind, Layer, Plan, Weights, as_matrix, discover
from diff_es.pipelines.tracing import Trace
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.compaction import Compaction
from diff_es.pruning.compensation import output_error
from diff_es.pruning.granularity import Granularity, units_of
from diff_es.pruning.importance import Magnitude
from diff_es.pruning.library import Library
from diff_es.pruning.macs import MacCounter
from diff_es.pruning.statistics import Statistics
from diff_es.pruning.wanted import Wanted
from diff_es.routing.placements import Placement
from diff_es.routing.realise import realise
from diff_es.routing.switch import Switch
from diff_es.utils.progress import Reporter

QUIET, LEVELS = Reporter(quiet=True), 4
EITHER = Width(LEVELS, multiple=1, dense=(), depth=Depth())
every_model = pytest.mark.parametrize("make", MODELS)
Make = Callable[[], Any]


@cache
def statistics(make: Make) -> Statistics:
    return gathered(make())


@cache
def library(
    make: Make, grain: Granularity = Granularity.BLOCK, depth: Depth | None = None, *, solve: bool = True
) -> Library:
    """Of a model of its own; plans hold none of a model's weights."""
    ladder = EITHER if grain is Granularity.BLOCK else Width(LEVELS, 1, ())
    model, ridge = make(), Method().compensation if solve else None
    method = Method(replace(ladder, depth=depth or ladder.depth), compensation=ridge, granularity=grain)
    return Library(model, discover(model), statistics(make), method, QUIET)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


# --------------------------------------------------------------------------------------------------------- discovery


@every_model
def test_discovery_finds_every_attention_feed_forward_and_resnet_block(make: Make) -> None:
    model = make()
    anatomy, expected = discover(model), dict[str, tuple[Kind, int, int]]()
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            expected[name] = (Kind.ATTENTION, module.heads, module.to_q.out_features // module.heads)
        elif isinstance(module, FeedForward):
            expected[name] = (Kind.FEEDFORWARD, module.net[2].in_features, 1)
        elif isinstance(module, ResnetBlock2D):
            expected[f"{name}.conv2"] = (Kind.RESNET, 8, module.conv1.out_channels // 8)
    assert {layer.name: (layer.kind, layer.groups, layer.width) for layer in anatomy.layers} == expected
    refused = {refusal.name: refusal.reason for refusal in anatomy.refusals}
    sampling = {n for n, m in model.named_modules() if isinstance(m, ResnetBlock2D) and (m.up or m.down)}
    assert refused.keys() == sampling
    assert all("samples inside; its channels can be thinned" in refused[name] for name in sampling)
    blocks = {n for n, m in model.named_modules() if isinstance(m, ResnetBlock2D | BasicTransformerBlock)}
    assert {block.name for block in anatomy.blocks} == blocks - sampling
    assert len(blocks) >= 6


def test_every_kind_of_model_is_in_the_sample() -> None:
    kinds = {make: {layer.kind for layer in discover(make()).layers} for make in MODELS}
    assert kinds[sd] == {Kind.ATTENTION, Kind.FEEDFORWARD, Kind.RESNET}
    assert kinds[unconditional] == {Kind.ATTENTION, Kind.RESNET}
    assert any(rows.chunks == 2 and "time_emb" in rows.module for x in discover(shifted()).layers for rows in x.rows)
    assert any(block.shortcut for block in discover(sd()).blocks)


def test_layers_of_which_every_level_would_keep_all_are_named() -> None:
    anatomy = discover(conditioned(attention_head_dim=[1, 2]))
    single = {refusal.name for refusal in anatomy.refusals if "one always stays" in refusal.reason}
    assert single == {
        f"{place}.attentions.{i}.transformer_blocks.0.attn{n}"
        for place, count in (("down_blocks.0", 1), ("up_blocks.1", 2))
        for i in range(count)
        for n in (1, 2)
    }
    assert single.isdisjoint(layer.name for layer in anatomy.layers)
    assert {layer.groups for layer in anatomy.layers if layer.kind is Kind.ATTENTION} == {2}


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (lambda m: setattr(m, "conv1", nn.Conv2d(16, 16, 3, padding=1, groups=2)), "conv2", "grouped convolutions"),
        (lambda m: setattr(m, "conv2", nn.Sequential(m.conv2)), "conv2", "part is a Sequential, not a plain nn.Conv2d"),
        (lambda m: setattr(m, "norm2", nn.Identity()), "conv2", "part is a Identity, not a plain nn.GroupNorm"),
        (lambda m: setattr(m.conv2, "padding_mode", "reflect"), "conv2", "padding is not a number of zeros"),
        (lambda m: setattr(m, "output_scale_factor", 2.0), "", "divides its output by 2"),
    ],
)
def test_what_of_a_resnet_block_cannot_be_pruned_is_refused(change: Any, name: str, reason: str) -> None:
    model, place = sd(), "mid_block.resnets.0"
    before = discover(model)
    change(model.get_submodule(place))
    anatomy = discover(model)
    (refusal,) = anatomy.refusals
    assert refusal.name == (f"{place}.{name}" if name else place)
    assert reason in refusal.reason
    gone = {layer.name for layer in before.layers} - {layer.name for layer in anatomy.layers}
    gone |= {block.name for block in before.blocks} - {block.name for block in anatomy.blocks}
    assert gone == {refusal.name}


# ------------------------------------------------------------------------------------------------------------- slim


@every_model
@pytest.mark.parametrize("solved", [False, True])
def test_slim_equals_masked_and_leaves_no_trace(make: Make, solved: bool) -> None:
    model = make()
    anatomy, before, switch, dense = discover(model), snapshot(model), Switch(model), run(model)
    for seed in range(2):
        plan = random_plan(model, seed, solved=solved)
        with masked(model, anatomy, plan):
            expected = run(model)
        switch.to(realise(model, anatomy, plan))
        slim = run(model)
        larger = run(model, size=16)
        switch.to(Weights())
        assert close(slim, expected)
        assert larger.shape == (BATCH, 4, 16, 16)
        assert (expected - dense).abs().max() > 1e-2 * dense.abs().max()
    switch.to(realise(model, anatomy, DENSE))
    assert run(model).equal(dense)
    assert_same(before, snapshot(model))


@every_model
def test_realised_groups_are_the_nominal_ones(make: Make) -> None:
    model = make()
    anatomy, switch = discover(model), Switch(model)
    for level in range(LEVELS):
        plan = Plan({x.name: Cut(torch.arange(x.kept(level, LEVELS))) for x in anatomy.layers})
        switch.to(realise(model, anatomy, plan))
        for name, module in model.named_modules():
            if isinstance(module, Attention):
                heads, size = module.heads, module.to_q.weight.shape[0] // module.heads
                exact = module.sliceable_head_dim
                assert heads == exact
                rows = {p.weight.shape[0] for p in (module.to_q, module.to_k, module.to_v)}
                assert rows == {module.to_out[0].weight.shape[1]} == {module.inner_dim} == {heads * size}
            if isinstance(module, ResnetBlock2D):
                kept = 8 - level * 8 // LEVELS
                channels = module.out_channels // 8 * kept
                assert (module.norm2.num_groups, module.norm2.num_channels) == (kept, channels), name
                assert (module.conv1.out_channels, module.conv2.in_channels) == (channels, channels)
                assert module.conv1.weight.shape == (channels, module.in_channels, 3, 3)
                assert module.conv2.weight.shape == (module.conv2.out_channels, channels, 3, 3)
                chunks = 2 if module.time_embedding_norm == "scale_shift" else 1
                assert module.time_emb_proj.weight.shape[0] == chunks * channels
                assert len(module.norm2.weight) == len(module.norm2.bias) == len(module.conv1.bias) == channels
        for layer in anatomy.layers:
            assert model.get_submodule(layer.output).weight.shape[1] == layer.kept(level, LEVELS) * layer.width
        switch.to(Weights())


def watched(model: nn.Module) -> tuple[dict[str, tuple[int, ...]], list[Any]]:
    """The shapes that ResNet and transformer blocks return, and that norms of groups receive."""
    shapes, handles = dict[str, tuple[int, ...]](), []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.GroupNorm):
                assert args[0].shape[1] == module.num_channels == len(module.weight)
                shapes[f"{name} per group"] = divmod(module.num_channels, module.num_groups)
            else:
                shapes[name] = tuple(output.shape)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm | ResnetBlock2D | BasicTransformerBlock):
            handles.append(module.register_forward_hook(note(name)))
    return shapes, handles


@every_model
def test_norms_keep_their_groups_and_skip_connections_their_widths_at_every_level(make: Make) -> None:
    model = make()
    shapes, handles = watched(model)
    dense = run(model)
    expected, switch, ready = dict(shapes), Switch(model), library(make)

    @given(data=st.data())
    @examples(max_examples=8, deadline=None)
    def law(data: st.DataObject) -> None:
        levels = [data.draw(st.integers(0, len(unit.options) - 1), label=unit.name) for unit in ready.units]
        stage = data.draw(st.integers(0, 1), label="stage")
        shapes.clear()
        switch.to(realise(model, ready.anatomy, ready.plan(stage, levels)))
        output = run(model)
        switch.to(Weights())
        assert output.shape == dense.shape
        assert output.equal(dense) == (not any(levels))
        for name, shape in shapes.items():  # a norm inside of a skipped block has not run
            assert shape == expected[name], name

    law()
    for handle in handles:
        handle.remove()


# ----------------------------------------------------------------------------------------------------- skipped blocks


@every_model
@pytest.mark.parametrize("plain", [False, True])
def test_a_skipped_block_is_its_shortcut_and_its_linear_map(make: Make, plain: bool) -> None:
    model = make()
    anatomy, switch, dense = discover(model), Switch(model), run(model)
    names = [block.name for block in anatomy.blocks]
    for gone in ([names[0]], [names[len(names) // 2]], [names[-1]], names):
        check_skipping(model, anatomy, switch, gone, plain, dense)


def check_skipping(
    model: Any, anatomy: Anatomy, switch: Switch, gone: Sequence[str], plain: bool, dense: Tensor
) -> None:
    bypasses = {name: None if plain else random_bypass(model, name, i) for i, name in enumerate(gone)}
    before = snapshot(model)
    switch.to(realise(model, anatomy, Plan(bypasses=bypasses)))
    found = run(model)
    switch.to(Weights())
    assert_same(before, snapshot(model))
    handles = [model.get_submodule(name).register_forward_hook(_replacing(bypass)) for name, bypass in bypasses.items()]
    expected = run(model)
    for handle in handles:
        handle.remove()
    assert close(found, expected)
    assert not found.allclose(dense)


def _replacing(bypass: Bypass | None) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hidden, carried = args[0], args[0]
        if isinstance(module, ResnetBlock2D):
            if module.conv_shortcut is not None:
                carried = module.conv_shortcut(hidden)
            added = "oi,nihw->nohw", "o,nohw->nohw"
        else:
            added = "oi,nti->nto", "o,nto->nto"
        if bypass is None:
            return carried
        mapped = torch.einsum(added[0], bypass.weight, hidden)
        return carried + mapped + torch.einsum(added[1], bypass.bias, torch.ones_like(mapped))

    return hook


@every_model
def test_the_fitted_map_of_a_skipped_block_leaves_no_more_than_none(make: Make) -> None:
    """On the calibration inputs themselves, block by block, against what the block really adds."""
    model, seen = make(), dict[str, list[tuple[Tensor, Tensor]]]()
    fitted, plain = library(make), library(make, depth=Depth(bypass=False))

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            shortcut = module.conv_shortcut if isinstance(module, ResnetBlock2D) else None
            residual = output - (args[0] if shortcut is None else shortcut(args[0]))
            axis = 1 if isinstance(module, ResnetBlock2D) else -1
            pair = [part.movedim(axis, -1).flatten(0, -2).double() for part in (args[0], residual, output)]
            seen.setdefault(name, []).append(tuple(pair))  # type: ignore[arg-type]

        return hook

    names = [block.name for block in fitted.anatomy.blocks]
    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    for seed in range(2):
        run(model, seed, 900.0)
    for handle in handles:
        handle.remove()
    for name in names:
        hidden, residual, output = (torch.cat(part) for part in zip(*seen[name], strict=True))
        unit = next(i for i, unit in enumerate(fitted.units) if unit.name == name)
        last = len(fitted.units[unit].options) - 1
        bypass = fitted.part(0, unit, last).bypasses[name]
        assert bypass is not None
        assert plain.part(0, unit, last).bypasses == {name: None}
        left = (residual - hidden @ bypass.weight.double().T - bypass.bias).square().sum()
        assert left < residual.square().sum(), name
        for ready, error in ((fitted, left), (plain, residual.square().sum())):
            relative = ready._fit(0, name)[1]
            assert relative == pytest.approx(float(error / output.square().sum()), rel=1e-3)


def test_blocks_of_several_kinds_are_not_skipped_by_their_number() -> None:
    anatomy = discover(sd())
    for ladder in (Depth(), EITHER):
        with pytest.raises(DiffESError, match=r"blocks of several kinds.*--units block --prune width,depth"):
            units_of(anatomy, ladder, Granularity.WHOLE)
    units = units_of(anatomy, EITHER, Granularity.BLOCK)
    names = {layer.name for unit in units for layer in unit.layers}
    assert names == {layer.name for layer in anatomy.layers}
    assert {block.name for block in anatomy.blocks} <= {unit.name for unit in units}


# -------------------------------------------------------------------------------------------------------------- costs


def counted(model: Any, plan: Plan) -> int:
    """MACs of a call, summed up from the shapes that pass through the modules of the real, slimmed network."""
    macs, handles, anatomy = 0, list[Any](), discover(model)

    def count(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    def attention(module: Attention, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        nonlocal macs
        queries = output[0].numel() // module.to_out[0].weight.shape[0]
        keys = TEXT_TOKENS if kwargs.get("encoder_hidden_states") is not None else queries
        macs += 2 * BATCH * queries * keys * module.to_q.weight.shape[0]

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            handles.append(module.register_forward_hook(count))
        if isinstance(module, Attention):
            handles.append(module.register_forward_hook(attention, with_kwargs=True))
    pixels = dict[str, int]()
    for name in plan.bypasses:  # the hook of a skipped block still sees what passes
        handles.append(
            model.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: pixels.update({name: output.numel() // bypass_outputs(module)})
            )
        )
    switch = Switch(model)
    switch.to(realise(model, anatomy, plan))
    run(model)
    switch.to(Weights())
    for handle in handles:
        handle.remove()
    return macs + sum(pixels[name] * b.weight.numel() for name, b in plan.bypasses.items() if b is not None)


TEXT_TOKENS = 5


def bypass_outputs(module: Any) -> int:
    return module.conv2.weight.shape[0] if isinstance(module, ResnetBlock2D) else module.dim


@every_model
def test_the_table_of_macs_is_what_the_slimmed_network_computes(make: Make) -> None:
    model = make()
    anatomy = discover(model)
    counter = MacCounter(model, anatomy, Trace((500.0,), (), inputs(model, device="meta")))
    assert counter.dense() == counted(model, DENSE)
    ready = library(make)
    levels, saved = [0] * len(ready.units), 0
    for unit in range(0, len(ready.units), 4):
        levels[unit] = 1 + unit % (len(ready.units[unit].options) - 1)
        costs = counted(model, ready.part(0, unit, levels[unit]))
        assert counter.option(ready.units[unit], levels[unit]) == costs
        saved += counter.dense() - costs
    assert counted(model, ready.plan(0, levels)) == counter.dense() - saved, "units add up"
    (whole,) = units_of(ready.anatomy, Width(LEVELS, 1, ()), Granularity.WHOLE)
    assert counter.option(whole, 2) == counted(model, library(make, Granularity.WHOLE).plan(1, (2,)))


# ------------------------------------------------------------------------------------------- calibration and solving


@every_model
def test_statistics_are_those_of_every_tap_and_token(make: Make) -> None:
    model, seen = make(), dict[str, list[Tensor]]()

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0]
            if rows.dim() == 4:  # (N, C * 9, L): what every tap sees at every place
                rows = nn.functional.unfold(rows, 3, padding=1).unflatten(1, (-1, 9)).movedim(1, -1)
            seen.setdefault(name, []).append(rows.reshape(-1, rows.shape[-1]).double())

        return hook

    layers = discover(model).layers
    handles = [model.get_submodule(x.output).register_forward_pre_hook(keep(x.name)) for x in layers]
    for seed in range(2):
        run(model, seed, 100.0)
    for handle in handles:
        handle.remove()
    for layer in layers:
        x, found = torch.cat(seen[layer.name]), statistics(make).stages[1][layer.name]
        assert found.count == len(x)
        for one, other in ((found.hessian(centred=False), x.T @ x / len(x)), (found.mean(), x.mean(0))):
            torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=0)


def test_a_stage_without_calls_is_refused_by_the_name_of_a_layer() -> None:
    model = sd()
    anatomy = discover(model)
    with Gatherer(model, BOUNDED, Wanted(anatomy.layers, anatomy.blocks)) as gatherer:
        run(model, timestep=900.0)
    with pytest.raises(DiffESError, match=r"calibration, down_blocks.*found none in stage 1"):
        gatherer.statistics()


def shallow() -> Any:
    """Of one level, transformer blocks in the middle alone: what is compiled takes seconds."""
    return conditioned(block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))


@pytest.mark.slow
def test_compiled_u_nets_run_what_plain_ones_do() -> None:
    model, ready, graphs = shallow(), library(shallow), list[Any]()
    plans = [ready.plan(0, mixed(ready)), DENSE, ready.plan(1, mixed(ready))]
    switch, weights = Switch(model), [realise(model, ready.anatomy, plan) for plan in plans]
    expected = list[Tensor]()
    for one in weights:
        switch.to(one)
        expected.append(run(model))
    switch.to(Weights())

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model.compile(backend=backend)
    counts = list[int]()
    for _ in range(2):
        for one, output in zip(weights, expected, strict=True):
            switch.to(one)
            assert run(model).equal(output)
            counts.append(len(graphs))
    switch.to(Weights())
    torch.compiler.reset()
    assert counts[2:] == counts[1:2] * 4, "a stage of the same shapes compiles nothing"


def outputs_of(model: Any, layers: Sequence[Layer], plan: Plan) -> list[Tensor]:
    """What the convolutions at the output of layers return, the inputs of each being the dense ones."""
    found: list[list[Tensor]] = [[] for _ in layers]

    def hooking(layer: Layer, outputs: list[Tensor]) -> Any:
        cut = plan.cuts.get(layer.name)

        def hook(module: nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> None:
            if cut is None:
                outputs.append(output)
                return
            columns = layer.columns(cut.kept)
            weight = module.weight[:, columns] if cut.weight is None else cut.weight
            bias = module.bias if cut.bias is None else cut.bias
            outputs.append(nn.functional.conv2d(args[0][:, columns], weight, bias, padding=module.padding))

        return hook

    pairs = list(zip(layers, found, strict=True))
    handles = [model.get_submodule(one.output).register_forward_hook(hooking(one, outputs)) for one, outputs in pairs]
    for seed in range(2):
        run(model, seed, 900.0)
    for handle in handles:
        handle.remove()
    return [torch.cat([output.double().flatten() for output in outputs]) for outputs in found]


@every_model
def test_compensation_leaves_no_larger_error_than_slicing(make: Make) -> None:
    """For every tap of a convolution, as its moments see it; and for what the convolution really returns, borders and
    correlations between taps included, here and in sum."""
    model, real = make(), [0.0, 0.0]
    made = [library(make, Granularity.WHOLE, solve=solve) for solve in (True, False)]
    layers = [layer for layer in made[0].anatomy.layers if layer.kind is Kind.RESNET]
    for layer in layers:
        moments, output = statistics(make).stages[0][layer.name], model.get_submodule(layer.output)
        dense, errors = as_matrix(output.weight), list[float]()
        for ready in made:
            cut = ready.plan(0, (2,)).cuts[layer.name]
            assert cut.kept.equal(made[0].plan(0, (2,)).cuts[layer.name].kept)
            columns = layer.columns(cut.kept)
            weight = dense[:, columns] if cut.weight is None else as_matrix(cut.weight)
            offset = (dense.double() @ moments.mean() - weight.double() @ moments.mean()[columns]) * (ready is made[0])
            errors.append(output_error(dense, None, moments, columns, (weight, offset)))
        assert errors[0] < errors[1]
    before = outputs_of(model, layers, DENSE)
    for i, ready in enumerate(made):
        pairs = zip(outputs_of(model, layers, ready.plan(0, (2,))), before, strict=True)
        real[i] = sum(float((one - other).square().sum()) for one, other in pairs)
    assert real[0] < 0.8 * real[1]


def test_the_bias_of_a_convolution_takes_up_the_mean_of_every_tap() -> None:
    """Inputs that never change are made up for exactly, away from the borders, whatever goes."""
    model = sd()
    layer = next(x for x in discover(model).layers if x.kind is Kind.RESNET)
    output, x = model.get_submodule(layer.output), torch.randn(layer.size, generator=torch.Generator().manual_seed(0))
    constant = x[None, :, None, None].expand(1, -1, 5, 5)
    calm = statistics(sd).stages[0][layer.name]
    still = type(calm)(torch.outer(x, x) * 25, x * 25, 25)
    fake = Statistics(tuple({**stage, layer.name: still} for stage in statistics(sd).stages), (0.0, 0.0))
    ready = Library(
        model, discover(model), fake, Method(Width(LEVELS, 1, ()), Magnitude(), granularity=Granularity.WHOLE), QUIET
    )
    cut = ready.plan(0, (2,)).cuts[layer.name]
    assert cut.weight is not None
    dense = output(constant)[..., 2, 2]
    found = nn.functional.conv2d(constant[:, layer.columns(cut.kept)], cut.weight, cut.bias, padding=1)[..., 2, 2]
    torch.testing.assert_close(found, dense, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------- saved and placed


def mixed(ready: Library) -> list[int]:
    """Every level of some unit, skipped blocks too."""
    return [min(1 + i % LEVELS, len(unit.options) - 1) for i, unit in enumerate(ready.units)]


@pytest.mark.parametrize("compact", [False, True])
def test_plans_are_saved_and_read_to_the_bit(compact: bool, tmp_path: Path) -> None:
    model = sd()
    ready = library(sd)
    source: Any = Compaction(ready, 0.3) if compact else ready
    levels = mixed(ready)
    plans = [source.plan(0, levels), source.plan(1, [min(level, 2) for level in levels]), DENSE, source.plan(0, levels)]
    assert any(bypass for plan in plans for bypass in plan.bypasses.values())
    assert any(cut.factors for plan in plans for cut in plan.cuts.values()) is compact
    files, stems = pack(plans)
    write_folder(tmp_path / "out", files, lambda _: {})
    read, _ = read_folder(tmp_path / "out")
    again = unpack(read, stems, [[]] * 4, "out")
    assert again[0] is again[3]
    assert_same_plans([p for p in plans if not compact], [p for p in again if not compact])
    for one, other in zip(plans, again, strict=True):
        found = [realise(model, ready.anatomy, plan) for plan in (one, other)]
        assert found[0].counts == found[1].counts
        assert found[0].tensors.keys() == found[1].tensors.keys()
        assert all(torch.equal(value, found[1].tensors[name]) for name, value in found[0].tensors.items())


@pytest.mark.parametrize("make", [sd, unconditional])
def test_all_placements_give_bitwise_the_same_output(make: Make) -> None:
    model = make()
    compaction = Compaction(library(make), 0.3)
    levels = mixed(compaction._library)
    plans = [compaction.plan(0, levels), DENSE, compaction.plan(1, [min(level, 2) for level in levels])]
    before, anatomy, outputs = snapshot(model), discover(model), list[list[Tensor]]()
    placements: tuple[Placement, ...] = (Resident(), Streamed(), Compact())
    for placement in placements:
        store = placement.open(model, anatomy, plans)
        outputs.append([])
        for stage in (0, 1, 2, 0, 2):
            store.to(stage)
            outputs[-1].append(run(model))
        store.close()
        assert run(model).equal(outputs[-1][1])
    assert all(one.equal(other) for row in outputs[1:] for one, other in zip(outputs[0], row, strict=True))
    after = snapshot(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith("value of "))


def test_a_factored_correction_of_a_convolution_keeps_the_tolerance() -> None:
    model, tolerance = sd(), 0.02
    ready = library(sd, Granularity.WHOLE)
    whole, factored = ready.plan(0, (2,)), Compaction(ready, tolerance).plan(0, (2,))
    for layer in ready.anatomy.layers:
        if layer.kind is Kind.RESNET:
            dense, moments = model.get_submodule(layer.output).weight, statistics(sd).stages[0][layer.name]
            cut, columns = factored.cuts[layer.name], layer.columns(factored.cuts[layer.name].kept)
            assert cut.factors
            solved = as_matrix(whole.cuts[layer.name].weight).double()  # type: ignore[arg-type]
            lost = as_matrix(dense).double()
            lost[:, columns] -= solved
            missed = as_matrix(cut.merged(dense, columns)).double() - solved
            hessian = moments.hessian(centred=True)
            errors = [float((d @ h * d).sum()) for d, h in ((missed, hessian[columns][:, columns]), (lost, hessian))]
            assert errors[0] <= tolerance * errors[1] * 1.01
