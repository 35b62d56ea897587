"""Slim layers equal the dense network with the same groups disabled, cost what they claim, and leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.transformers.transformer_bria import BriaAttention
from tests.helpers.tiny import BLOCKS, HEADS, HIDDEN, SIZE, denoiser
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as Wrapped

from diff_es.layers import DENSE, Anatomy, Bypass, Cut, Kind, Plan, Weights, discover
from diff_es.routing.realise import output_of, realise
from diff_es.routing.switch import Switch
from diff_es.utils.errors import ArtefactError

ACTIVATIONS = ("gelu-approximate", "geglu", "geglu-approximate", "swiglu", "linear-silu")


@torch.no_grad()
def run(model: DiTTransformer2DModel, seed: int = 1, batch: int = 2) -> Tensor:
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    timestep, labels = torch.full((batch,), 500), torch.arange(batch)
    output: Tensor = model(noise, timestep=timestep, class_labels=labels).sample
    return output


def random_plan(model: nn.Module, anatomy: Anatomy, seed: int, *, solved: bool) -> Plan:
    """Random groups of every layer; with ``solved`` also output projections of their own."""
    g, cuts = torch.Generator().manual_seed(seed), dict[str, Cut]()
    for layer in anatomy.layers:
        count = int(torch.randint(1, layer.groups + 1, (), generator=g))
        kept = torch.randperm(layer.groups, generator=g)[:count].sort().values
        dense = output_of(model, layer).weight
        weight, bias = torch.randn(len(dense), count * layer.width, generator=g), torch.randn(len(dense), generator=g)
        cuts[layer.name] = Cut(kept, weight / 4, bias) if solved else Cut(kept)
    return Plan(cuts)


@contextmanager
def masked(model: nn.Module, anatomy: Anatomy, plan: Plan) -> Iterator[None]:
    """The dense network with the removed groups' columns of inputs zeroed, and the plan's own weights written in."""
    handles, before = [], {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in anatomy.layers:
        cut, linear = plan.cuts[layer.name], output_of(model, layer)
        mask = torch.isin(torch.arange(layer.groups), cut.kept).repeat_interleave(layer.width)
        handles.append(linear.register_forward_pre_hook(lambda module, args, mask=mask: (args[0] * mask,)))
        if cut.weight is not None:
            linear.weight.zero_()
            linear.weight[:, mask] = cut.weight
        if cut.bias is not None:
            assert linear.bias is not None
            linear.bias.copy_(cut.bias)
    yield
    model.load_state_dict(before)
    for handle in handles:
        handle.remove()


def state(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Everything a module holds: attributes by identity or value, parameters and buffers by identity and content."""
    found = dict[str, tuple[Any, ...]]()
    for name, module in model.named_modules():
        plain = {k: v if isinstance(v, int) else id(v) for k, v in vars(module).items()}
        tensors = [(k, id(v), None if v is None else v.detach().clone()) for k, v in module._parameters.items()]
        found[name] = (plain, list(vars(module)), tensors, dict(module._modules), list(module._forward_hooks))
    return found


def assert_same_state(model: nn.Module, before: dict[str, tuple[Any, ...]]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, (plain, order, tensors, children, hooks) in before.items():
        assert after[name][0] == plain
        assert (after[name][1], after[name][3], after[name][4]) == (order, children, hooks)
        for (key, own, value), (_, other, now) in zip(tensors, after[name][2], strict=True):
            assert own == other, key
            assert value is now or value.equal(now)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_discovery_finds_heads_channels_and_blocks(activation: str) -> None:
    model = denoiser(activation)
    anatomy = discover(model)
    expected = [
        part
        for i in range(BLOCKS)
        for part in (
            (f"transformer_blocks.{i}.attn1", Kind.ATTENTION, HEADS, SIZE),
            (f"transformer_blocks.{i}.ff", Kind.FEEDFORWARD, 4 * HIDDEN, 1),
        )
    ]
    assert [(layer.name, layer.kind, layer.groups, layer.width) for layer in anatomy.layers] == expected
    assert [(b.name, b.width) for b in anatomy.blocks] == [(f"transformer_blocks.{i}", HIDDEN) for i in range(BLOCKS)]
    assert anatomy.refusals == ()
    for layer in anatomy.layers:
        assert output_of(model, layer).in_features == layer.groups * layer.width


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize(("activation", "bias"), [*((name, True) for name in ACTIVATIONS), ("geglu", False)])
def test_slim_equals_masked(activation: str, bias: bool, solved: bool) -> None:
    model = denoiser(activation, bias)
    anatomy, switch, dense = discover(model), Switch(model), run(model)
    for seed in range(4):
        plan = random_plan(model, anatomy, seed, solved=solved)
        with masked(model, anatomy, plan):
            expected = run(model)
        switch.to(realise(model, anatomy, plan))
        slim = run(model)
        switch.to(Weights())
        assert (slim - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (expected - dense).abs().max() > 1e-2 * dense.abs().max()
        assert run(model).equal(dense)


@pytest.mark.parametrize("levels", [1, 2, 5, 8])
def test_realised_groups_and_bytes_are_the_nominal_ones(levels: int) -> None:
    model = denoiser("geglu")
    anatomy, switch = discover(model), Switch(model)
    for level in range(levels + 1):
        counts = [max(1, layer.kept(level, levels)) for layer in anatomy.layers]
        for layer in anatomy.layers:
            exact = layer.groups * (1 - level / levels)
            assert exact <= layer.kept(level, levels) < exact + 1
            assert (layer.kept(level, levels) == layer.groups) == (level * layer.groups < levels)
        plan = Plan({x.name: Cut(torch.arange(n)) for x, n in zip(anatomy.layers, counts, strict=True)})
        weights = realise(model, anatomy, plan)
        switch.to(weights)
        for layer, count in zip(anatomy.layers, counts, strict=True):
            width, linear = count * layer.width, output_of(model, layer)
            assert (linear.weight.shape, linear.in_features) == ((HIDDEN, width), width)
            for rows in layer.rows:
                module = model.get_submodule(rows.module)
                assert module.weight.shape == (rows.chunks * width, HIDDEN)
                assert (module.bias.shape, module.out_features) == ((rows.chunks * width,), rows.chunks * width)
            if layer.kind is Kind.ATTENTION:
                attention = model.get_submodule(layer.name)
                assert (attention.heads, attention.inner_dim, attention.inner_kv_dim) == (count, width, width)
        # q, k, v with biases and the output; value and gate with biases and the output
        heads, channels = sum(counts[0::2]) * SIZE, sum(counts[1::2])
        assert weights.bytes == 4 * (heads * (3 * (HIDDEN + 1) + HIDDEN) + channels * (2 * (HIDDEN + 1) + HIDDEN))
        switch.to(Weights())


@pytest.mark.parametrize("bias", [False, True])
def test_switching_back_leaves_no_trace(bias: bool) -> None:
    model = denoiser("geglu", bias)
    anatomy, dense, before, switch = discover(model), run(model), state(model), Switch(model)
    plans = [random_plan(model, anatomy, seed, solved=bool(seed % 2)) for seed in range(4)]
    plans.append(Plan(bypasses={"transformer_blocks.0": None, "transformer_blocks.2": bypass()}))
    plans.append(Plan(dict(list(plans[0].cuts.items())[:1]), {"transformer_blocks.1": None}))
    ready = [realise(model, anatomy, plan) for plan in plans]
    assert_same_state(model, before)
    alone = []
    for weights in ready:
        fresh = Switch(model)
        fresh.to(weights)
        alone.append(run(model))
        fresh.to(Weights())
        assert_same_state(model, before)
        assert run(model).equal(dense)
    for i in (0, 1, 0, 0, 4, 2, 5, 3, 4, 1):  # straight from one to another
        switch.to(ready[i])
        assert run(model).equal(alone[i])
    switch.to(realise(model, anatomy, DENSE))
    assert_same_state(model, before)


def test_projections_without_a_bias_gain_and_lose_the_compensated_one() -> None:
    model = denoiser()
    layer = discover(model).layers[1]
    linear = output_of(model, layer)
    linear.bias = None
    before, dense, switch = state(model), run(model), Switch(model)
    offset = torch.linspace(-1, 1, HIDDEN)
    cut = Cut(torch.arange(layer.groups), linear.weight, offset)
    switch.to(realise(model, discover(model), Plan({layer.name: cut})))
    assert linear.bias is not None
    assert linear.bias.equal(offset)
    shifted = run(model)
    switch.to(realise(model, discover(model), Plan({layer.name: Cut(torch.arange(3))})))
    assert linear.bias is None
    switch.to(Weights())
    assert linear.bias is None
    assert_same_state(model, before)
    linear.bias = nn.Parameter(offset, requires_grad=False)
    assert (run(model) - shifted).abs().max() <= 1e-5 * shifted.abs().max()
    assert not shifted.allclose(dense)


def bypass(seed: int = 0) -> Bypass:
    g = torch.Generator().manual_seed(seed)
    return Bypass(torch.randn(HIDDEN, HIDDEN, generator=g) / 4, torch.randn(HIDDEN, generator=g))


@pytest.mark.parametrize("skipped", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("plain", [False, True])
def test_a_skipped_block_is_its_linear_map_or_the_identity(skipped: tuple[int, ...], plain: bool) -> None:
    model = denoiser()
    dense, switch = run(model), Switch(model)
    stand_ins = {f"transformer_blocks.{i}": None if plain else bypass(i) for i in skipped}
    switch.to(realise(model, discover(model), Plan(bypasses=stand_ins)))
    found = run(model)
    switch.to(Weights())
    for i in skipped:
        linear = Bypass(torch.zeros(HIDDEN, HIDDEN), torch.zeros(HIDDEN)) if plain else bypass(i)
        model.transformer_blocks[i].register_forward_hook(
            lambda module, args, output, b=linear: args[0] + args[0] @ b.weight.T + b.bias
        )
    expected = run(model)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not found.allclose(dense)


ATTN, FF, BLOCK = "transformer_blocks.1.attn1", "transformer_blocks.1.ff", "transformer_blocks.1"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.7.ff", Cut(torch.arange(2))),
        (BLOCK, Cut(torch.arange(2))),
        (ATTN, None),
        ("transformer_blocks.9", bypass()),
        (ATTN, Cut(torch.tensor([0, HEADS]))),
        (FF, Cut(torch.tensor([], dtype=torch.int64))),
        (FF, Cut(torch.arange(2), torch.zeros(HIDDEN, 3))),
        (ATTN, Cut(torch.arange(2), torch.zeros(HIDDEN, 2))),
        (ATTN, Cut(torch.arange(2), torch.zeros(HIDDEN + 1, 2 * SIZE))),
        (ATTN, Cut(torch.tensor([-1, 0]))),
        (ATTN, Cut(torch.tensor([1, 1]))),
        (FF, Cut(torch.arange(2), torch.zeros(HIDDEN, 2), torch.zeros(1))),
        (BLOCK, Bypass(torch.zeros(HIDDEN, HIDDEN + 1), torch.zeros(HIDDEN))),
        (BLOCK, Bypass(torch.zeros(HIDDEN, HIDDEN), torch.zeros(1))),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_naming_the_layer(name: str, part: Cut | Bypass | None) -> None:
    model, plan = denoiser(), Plan({name: part}) if isinstance(part, Cut) else Plan(bypasses={name: part})
    with pytest.raises(ArtefactError, match=f"base model, {name}: expected .* Load the pipeline that was compressed"):
        realise(model, discover(model), plan)


def fused() -> Attention:
    attention = Attention(16, heads=2, dim_head=8)
    attention.fuse_projections()
    attention.set_processor(FusedAttnProcessor2_0())
    return attention


def replaced(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    owner, _, leaf = path.rpartition(".")
    module.get_submodule(owner).register_module(leaf, part)
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fused, "fused: call unfuse_qkv_projections"),
        (lambda: Attention(16, heads=2, dim_head=8, added_kv_proj_dim=16), "second stream"),
        (lambda: Attention(32, heads=2, dim_head=8, spatial_norm_dim=4), "spatial norm"),
        (lambda: Attention(16, heads=2, dim_head=8, processor=IPAdapterAttnProcessor2_0(16, 16)), "weights of its own"),
        (lambda: Attention(8, heads=1, dim_head=8), "a single group"),
        (lambda: BriaAttention(16, 2, 8), "BriaAttention is an attention that this version does not know"),
        (lambda: Attention(16, heads=2, dim_head=8, pre_only=True), "no output projection"),
        (lambda: replaced(Attention(16, heads=2, dim_head=8), "to_v", Wrapped(16, 16)), "is a NonDynamicallyQuant"),
        (lambda: replaced(FeedForward(16), "net.0.proj", Wrapped(16, 64)), "not a plain nn.Linear"),
        (
            lambda: replaced(FeedForward(16), "net.0", nn.Tanh()),
            "activation Tanh is not one of ApproximateGELU, GEGLU, GELU",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name_and_reason(make: Callable[[], nn.Module], reason: str) -> None:
    anatomy = discover(nn.ModuleDict({"fine": Attention(16, heads=2, dim_head=8), "odd": make()}))
    assert [layer.name for layer in anatomy.layers] == ["fine"]
    (refusal,) = anatomy.refusals
    assert refusal.name == "odd"
    assert reason in refusal.reason
