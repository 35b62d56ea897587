"""Laws of layers that share: an output, groups, or heads of keys and values; on small modules written out here."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, LuminaAttnProcessor2_0, StableAudioAttnProcessor2_0
from tests.helpers.tiny import assert_same, snapshot
from torch import Tensor, nn

from diff_es import ArtefactError, Compact, Method, Resident, Streamed, Width
from diff_es.layers import DENSE, Anatomy, Block, Cut, Kind, Layer, Plan, Rows, Weights, discover
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.compaction import Compaction
from diff_es.pruning.granularity import Granularity, units_of
from diff_es.pruning.importance import Obs
from diff_es.pruning.library import Library
from diff_es.pruning.solving import fused
from diff_es.pruning.statistics import Statistics
from diff_es.pruning.wanted import Wanted
from diff_es.routing.placements import Placement
from diff_es.routing.realise import realise
from diff_es.routing.switch import Switch
from diff_es.trajectory.stages import Stages
from diff_es.utils.progress import Reporter

WIDTH, QUIET, STAGES = 8, Reporter(quiet=True), Stages.split([900.0, 100.0], 2)


class Shared(nn.Module):
    """Heads and channels that share an output with columns of nobody between them; the heads feed a second output."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.heads, self.channels, self.rest = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 20), nn.Linear(WIDTH, 4)
        self.out, self.second = nn.Linear(36, WIDTH, bias=bias), nn.Linear(12, WIDTH, bias=bias)

    def forward(self, hidden_states: Tensor, timestep: Any) -> tuple[Tensor, Tensor]:
        heads, channels = self.heads(hidden_states), self.channels(hidden_states).relu()
        return self.out(torch.cat([heads, self.rest(hidden_states), channels], -1)), self.second(heads)


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = Shared(bias)
        self.requires_grad_(False)
        self.eval()

    def forward(self, hidden_states: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.block(hidden_states, timestep)
        return pair


HEADS = Layer("block.heads", Kind.ATTENTION, 3, 4, (Rows("block.heads"),), "block.out")
SECOND = Layer("block.second", Kind.ATTENTION, 3, 4, (), "block.second", follows="block.heads")
CHANNELS = Layer("block.channels", Kind.FEEDFORWARD, 20, 1, (Rows("block.channels"),), "block.out", start=16)
ANATOMY = Anatomy((CHANNELS, HEADS, SECOND), (), ())


@torch.no_grad()
def run(net: nn.Module, seed: int = 1, timestep: float = 900.0) -> Tensor:
    noise = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.cat(net(noise, timestep=timestep))


def random_cut(layer: Layer, seed: int, kept: Tensor | None = None) -> Cut:
    g = torch.Generator().manual_seed(seed)
    if kept is None:
        kept = torch.randperm(layer.groups, generator=g)[: layer.groups // 2 + 1].sort().values
    return Cut(kept, torch.randn(WIDTH, len(kept) * layer.width, generator=g), torch.randn(WIDTH, generator=g))


def statistics(net: nn.Module) -> Statistics:
    with Gatherer(net, STAGES, Wanted(ANATOMY.layers)) as gatherer:
        for seed, timestep in product(range(40), (900.0, 100.0)):
            gatherer.begin()
            run(net, seed, timestep)
    return gatherer.statistics()


@torch.no_grad()
def by_hand(net: Net, cuts: dict[str, Cut]) -> Tensor:
    """The dense network with zeros for the columns that went, and the cuts' weights and biases written in."""
    block = deepcopy(net).block
    places = {"heads": (block.out, HEADS), "channels": (block.out, CHANNELS), "second": (block.second, SECOND)}
    for linear in (block.out, block.second):
        linear.bias = nn.Parameter(torch.zeros(WIDTH) if linear.bias is None else linear.bias)
    dense = deepcopy(block)
    for name, cut in cuts.items():
        linear, layer = places[name]
        assert cut.weight is not None
        assert cut.bias is not None
        gone = torch.arange(layer.start, layer.start + layer.groups * layer.width)
        linear.weight[:, gone] = 0
        linear.weight[:, gone.view(layer.groups, layer.width)[cut.kept].flatten()] = cut.weight
        own = (dense.out if linear is block.out else dense.second).bias
        linear.bias = nn.Parameter(linear.bias + cut.bias - own)
    return run(block)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("names", [("heads", "second"), ("channels",), ("heads", "second", "channels")])
def test_an_output_is_put_together_from_all_that_share_it(bias: bool, names: Sequence[str]) -> None:
    net = Net(bias)
    before, dense, switch = snapshot(net), run(net), Switch(net)
    heads = random_cut(HEADS, 1)
    cuts = {"heads": heads, "second": random_cut(SECOND, 2, heads.kept), "channels": random_cut(CHANNELS, 3)}
    plan = Plan({f"block.{name}": cuts[name] for name in names})
    switch.to(realise(net, ANATOMY, plan))
    found, out = run(net), net.block.out
    left = {"heads": 12, "channels": 20, **{name: cuts[name].weight.shape[1] for name in names}}  # type: ignore[union-attr]
    assert out.weight.shape == (WIDTH, left["heads"] + 4 + left["channels"]) == (out.out_features, out.in_features)
    switch.to(Weights())
    assert_same(before, snapshot(net))
    expected = by_hand(net, {name: cuts[name] for name in names})
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert run(net).equal(dense)


@pytest.mark.parametrize("bias", [False, True])
def test_what_shares_waits_anywhere_and_runs_alike(bias: bool) -> None:
    net = Net(bias)
    method = Method(Width(4, 1, ()))
    library = Library(net, ANATOMY, statistics(net), method, QUIET)
    compaction = Compaction(library, 0.01)
    plans = [compaction.plan(0, (2,)), DENSE, Plan({"block.channels": compaction.plan(1, (3,)).cuts["block.channels"]})]
    assert any(cut.factors for cut in plans[0].cuts.values())
    placements: tuple[Placement, ...] = (Resident(), Streamed(), Compact())
    before, outputs = snapshot(net), list[list[Tensor]]()
    for placement in placements:
        store = placement.open(net, ANATOMY, plans)
        outputs.append([])
        for stage in (0, 1, 2, 0, 2, 1):
            store.to(stage)
            outputs[-1].append(run(net))
        assert (net.block.out.bias is None) is not bias
        store.close()
    assert all(one.equal(other) for row in outputs[1:] for one, other in zip(outputs[0], row, strict=True))
    assert outputs[0][1].equal(run(net))
    assert not outputs[0][0].equal(outputs[0][2])
    after = snapshot(net)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith("value of "))


def test_statistics_of_a_shared_output_are_those_of_the_layers_own_columns() -> None:
    net, seen = Net(True), list[Tensor]()
    found = statistics(net).stages[0]
    handle = net.block.out.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1).double()))
    for seed in range(40):
        run(net, seed)
    handle.remove()
    x = torch.cat(seen)
    for layer, columns in ((HEADS, slice(0, 12)), (CHANNELS, slice(16, 36))):
        moments, own = found[layer.name], x[:, columns]
        assert moments.count == len(own)
        torch.testing.assert_close(moments.hessian(centred=False), own.T @ own / len(own), atol=1e-4, rtol=0)


def test_one_order_of_several_is_that_of_their_mean_ranks() -> None:
    orders = [torch.tensor([2, 0, 1, 3]), torch.tensor([2, 3, 1, 0])]
    # ranks: group 0: 1 and 3; 1: 2 and 2; 2: 0 and 0; 3: 3 and 1
    assert fused(orders).tolist() == [2, 0, 1, 3]
    assert fused(orders[1:]).tolist() == [2, 3, 1, 0]
    many = [torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    ranks = torch.stack([order.argsort() for order in many]).double().mean(0).tolist()
    assert fused(many).tolist() == sorted(range(9), key=lambda group: (ranks[group], group))


@pytest.mark.parametrize("shared_order", [False, True])
def test_a_follower_keeps_its_leaders_groups_with_weights_of_its_own(shared_order: bool) -> None:
    net, found = Net(True), statistics(Net(True))
    library = Library(net, ANATOMY, found, Method(Width(3, 1, ()), shared_order=shared_order), QUIET)
    for stage, level in product((0, 1), (1, 2)):
        cuts = library.plan(stage, (level,)).cuts
        assert cuts["block.heads"].kept.equal(cuts["block.second"].kept)
        assert len(cuts["block.heads"].kept) == 3 - level
        assert cuts["block.second"].weight is not None
        moments = found.shared() if shared_order else found.stages[stage]
        parts = ((net.block.out.weight[:, :12], HEADS), (net.block.second.weight, SECOND))
        orders = [Obs().order(weight, moments[layer.name], 4) for weight, layer in parts]
        assert cuts["block.heads"].kept.tolist() == sorted(fused(orders).tolist()[level:])


def test_a_plan_in_which_a_follower_differs_is_refused() -> None:
    net, two, others = Net(True), torch.tensor([0, 1]), torch.tensor([0, 2])
    for cuts, reason in (
        ({"block.heads": Cut(two)}, "one of them is dense"),
        ({"block.second": Cut(two)}, "one of them is dense"),
        ({"block.heads": Cut(two), "block.second": Cut(others)}, "others"),
    ):
        with pytest.raises(ArtefactError, match=f"block.second: expected the groups of block.heads.*found {reason}"):
            realise(net, ANATOMY, Plan(cuts))


def test_what_shares_is_in_one_unit() -> None:
    for grain, name in (
        (Granularity.WHOLE, "denoiser"),
        (Granularity.KIND, "attention"),
        (Granularity.BLOCK, "block.heads"),
    ):
        (unit,) = units_of(ANATOMY, Width(4, 1, ()), grain)
        assert (unit.name, unit.layers) == (name, ANATOMY.layers)
    blocks = replace(ANATOMY, blocks=(Block("block", WIDTH),))
    assert [unit.name for unit in units_of(blocks, Width(4, 1, ()), Granularity.BLOCK)] == ["block"]
    slow = Width(3, 1, (("block.heads", 1),))
    assert [[slow.kept(layer, level) for level in range(3)] for layer in (HEADS, SECOND)] == [[3, 3, 1]] * 2


def test_blocks_are_alike_only_where_leaving_out_any_saves_the_same() -> None:
    layer = replace(HEADS, name="blocks.0.attn")
    two = (Block("blocks.0", 8), Block("blocks.1", 8))
    alike = Anatomy((layer, replace(layer, name="blocks.1.attn")), two, ())
    assert alike.uniform
    assert Anatomy((), (), ()).uniform
    for other in (
        replace(alike, layers=(layer,)),
        replace(alike, blocks=(two[0], Block("blocks.1", 9))),
        replace(alike, blocks=(two[0], Block("blocks.1", 8, context=8))),
        replace(alike, blocks=(*two, Block("single.0", 8))),
    ):
        assert not other.uniform


# -------------------------------------------------------------------------------------------------------- attention


def slim_and_masked(module: Attention, keep: Sequence[int], **arguments: Any) -> tuple[Tensor, Tensor]:
    """The module by itself with these groups, and the dense one with the others' columns zeroed."""
    net = nn.ModuleDict({"attn": module.eval().requires_grad_(False)})
    (layer,) = discover(net).layers
    switch = Switch(net)
    switch.to(realise(net, discover(net), Plan({"attn": Cut(torch.tensor(keep))})))
    slim = module(**arguments)
    switch.to(Weights())
    mask = torch.isin(torch.arange(layer.groups), torch.tensor(keep)).repeat_interleave(layer.width)
    handle = module.to_out[0].register_forward_pre_hook(lambda _, args: (args[0] * mask,))
    masked = module(**arguments)
    handle.remove()
    return slim, masked


TOKENS, TEXT = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)), torch.arange(36.0).sin().view(2, 3, 6)
VARIANTS: dict[str, dict[str, Any]] = {
    "norm of each head": {"qk_norm": "rms_norm"},
    "layer norm of each head": {"qk_norm": "layer_norm"},
    "norm without weights": {"qk_norm": "l2"},
    "norm of the input": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0},
    "norm of the text": {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
    "norm of the text's groups": {
        "cross_attention_dim": 6,
        "cross_attention_norm": "group_norm",
        "cross_attention_norm_num_groups": 3,
    },
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_norms_that_heads_do_not_share_stay(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Attention(16, heads=4, dim_head=4, bias=True, **options)
    text = {"encoder_hidden_states": TEXT} if "cross_attention_dim" in options else {}
    slim, expected = slim_and_masked(module, [0, 3], hidden_states=TOKENS, **text)
    assert (slim - expected).abs().max() <= 1e-6
    assert not expected.allclose(module(TOKENS, **text))


@pytest.mark.parametrize("keep", [[1], [0, 2]])
def test_heads_of_keys_and_values_take_their_queries_with_them(keep: list[int]) -> None:
    torch.manual_seed(0)
    module = Attention(16, heads=6, kv_heads=3, dim_head=4, processor=StableAudioAttnProcessor2_0())
    (layer,) = discover(nn.ModuleDict({"attn": module})).layers
    assert (layer.groups, layer.width) == (3, 8)
    slim, expected = slim_and_masked(module, keep, hidden_states=TOKENS)
    assert (slim - expected).abs().max() <= 1e-6
    assert not expected.allclose(module(TOKENS))


def test_a_norm_across_heads_is_the_norm_of_what_is_left() -> None:
    torch.manual_seed(0)
    shape = {"dim_head": 4, "qk_norm": "layer_norm_across_heads", "processor": LuminaAttnProcessor2_0()}
    module, smaller = (Attention(16, heads=2 * n, kv_heads=n, out_bias=False, **shape) for n in (3, 2))
    net = nn.ModuleDict({"attn": module.eval().requires_grad_(False)})
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape) / 2)
    queries = torch.cat([torch.arange(8), torch.arange(16, 24)])  # of the first and the last pair
    keys = torch.cat([torch.arange(4), torch.arange(8, 12)])
    rows, state = {"to_q": queries, "norm_q": queries, "to_k": keys, "norm_k": keys, "to_v": keys}, dict[str, Tensor]()
    for name, value in module.state_dict().items():
        part = name.split(".")[0]
        state[name] = value[rows[part]] if part in rows else value[:, queries]
    smaller.load_state_dict(state)
    switch, before = Switch(net), snapshot(net)
    switch.to(realise(net, discover(net), Plan({"attn": Cut(torch.tensor([0, 2]))})))
    mask = torch.ones(2, 5, dtype=torch.bool)
    found = module(TOKENS, encoder_hidden_states=TOKENS, attention_mask=mask)
    assert module.norm_q.normalized_shape == (16,)
    switch.to(Weights())
    assert_same(before, snapshot(net))
    expected = smaller(TOKENS, encoder_hidden_states=TOKENS, attention_mask=mask)
    assert (found - expected).abs().max() <= 1e-6
