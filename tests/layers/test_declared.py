"""Denoisers that no finder knows: a declaration is true of them or refused, and makes them prunable."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.helpers.tiny import assert_same, snapshot
from torch import Tensor, nn

from diff_es import Method, Resident, Width
from diff_es.layers import (
    Anatomy,
    Channels,
    Cut,
    Heads,
    Kind,
    Plan,
    Residual,
    Rows,
    SeparateAttention,
    Weights,
    discover,
    separate_attention,
)
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.declare import declare
from diff_es.pruning.library import Library
from diff_es.pruning.wanted import Wanted
from diff_es.routing.realise import realise
from diff_es.routing.routing import routed
from diff_es.routing.switch import Switch
from diff_es.trajectory.stages import Stages
from diff_es.utils.errors import DiffESError
from diff_es.utils.progress import Reporter


def _example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "foreign_denoiser.py"
    spec = importlib.util.spec_from_file_location("foreign_denoiser", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


EXAMPLE: Any = _example()


def foreign() -> Any:
    torch.manual_seed(0)
    model = EXAMPLE.Denoiser().eval().requires_grad_(False)
    separate_attention(model)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def call(model: nn.Module, seed: int = 0) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signal, times = torch.randn(2, EXAMPLE.LENGTH, generator=generator), torch.tensor([0.3, 0.9])
    return lambda: model(signal, t=times)


def declared(model: nn.Module) -> Anatomy:
    return declare(model, EXAMPLE.DECLARATION, call(model), timestep="t")


def sampled(model: nn.Module, seed: int) -> Tensor:
    """By Euler's method, from noise."""
    signal = torch.randn(16, EXAMPLE.LENGTH, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found: Tensor = EXAMPLE.sample(model, signal, EXAMPLE.TIMES, lambda start, result: result)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
def test_a_separate_attention_is_the_packed_one(bias: bool, batch_first: bool, masked: torch.dtype | None) -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(16, 2, bias=bias, batch_first=batch_first).eval()
    for parameter in packed.parameters():
        nn.init.normal_(parameter)
    separate, x, y = SeparateAttention(deepcopy(packed)), torch.randn(5, 5, 16), torch.randn(5, 5, 16)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    mask = None if masked is None else later if masked is torch.bool else torch.randn(5, 5)
    expected = packed(x, y, y, need_weights=False, attn_mask=mask)[0]
    assert (separate(x, y, y, need_weights=False, attn_mask=mask)[0] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("odd", [{"kdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_an_attention_that_cannot_be_separated_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(DiffESError, match=r"nn.MultiheadAttention: expected q, k and v alike"):
        SeparateAttention(nn.MultiheadAttention(16, 2, **odd))


def test_separating_leaves_what_a_denoiser_gives_as_it_is() -> None:
    torch.manual_seed(0)
    model = EXAMPLE.Denoiser().eval().requires_grad_(False)
    before = call(model)()
    assert separate_attention(model) == tuple(f"blocks.{i}.self_attn" for i in range(len(model.blocks)))
    assert (call(model)() - before).abs().max() <= 1e-5 * before.abs().max()
    assert separate_attention(model) == ()


def test_a_declaration_finds_every_module_that_its_names_match() -> None:
    model = foreign()
    before = snapshot(model)
    anatomy = declared(model)
    assert_same(before, snapshot(model))
    numbers = range(len(model.blocks))
    heads = [(f"blocks.{i}.self_attn.out", Kind.ATTENTION, 4, EXAMPLE.WIDTH // 4) for i in numbers]
    channels = [(f"blocks.{i}.linear2", Kind.FEEDFORWARD, 4 * EXAMPLE.WIDTH, 1) for i in numbers]
    assert [(x.name, x.kind, x.groups, x.width) for x in anatomy.layers] == heads + channels
    assert [(block.name, block.width) for block in anatomy.blocks] == [(f"blocks.{i}", EXAMPLE.WIDTH) for i in numbers]
    assert discover(model).layers == ()


def test_slim_equals_a_copy_of_smaller_layers() -> None:
    model = foreign()
    anatomy, copy, g = declared(model), deepcopy(model), torch.Generator().manual_seed(0)
    cuts = dict[str, Cut]()
    for layer in anatomy.layers:
        kept = torch.randperm(layer.groups, generator=g)[: layer.groups // 2].sort().values
        weight = torch.randn(EXAMPLE.WIDTH, len(kept) * layer.width, generator=g) / 4
        cuts[layer.name] = Cut(kept, weight, torch.randn(EXAMPLE.WIDTH, generator=g))
    for i, block in enumerate(copy.blocks):
        heads, channels = cuts[f"blocks.{i}.self_attn.out"], cuts[f"blocks.{i}.linear2"]
        size = EXAMPLE.WIDTH // 4
        rows = torch.cat([torch.arange(size) + head * size for head in heads.kept.tolist()])
        for linear, picked in ((block.self_attn.q, rows), (block.self_attn.k, rows), (block.self_attn.v, rows)):
            linear.weight, linear.bias = nn.Parameter(linear.weight[picked]), nn.Parameter(linear.bias[picked])
        block.linear1.weight = nn.Parameter(block.linear1.weight[channels.kept])
        block.linear1.bias = nn.Parameter(block.linear1.bias[channels.kept])
        for linear, cut in ((block.self_attn.out, heads), (block.linear2, channels)):
            assert cut.weight is not None
            assert cut.bias is not None
            linear.weight, linear.bias = nn.Parameter(cut.weight), nn.Parameter(cut.bias)
        block.self_attn.num_heads = len(heads.kept)
    before, dense, switch = snapshot(model), call(model)(), Switch(model)
    every = Plan({layer.name: Cut(torch.arange(layer.groups)) for layer in anatomy.layers})
    ready = [realise(model, anatomy, plan) for plan in (Plan(cuts), every)]
    switch.to(ready[0])
    slim = call(model)()
    switch.to(ready[1])
    assert call(model)().equal(dense)
    switch.to(Weights())
    expected = call(copy)()
    assert (slim - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not slim.allclose(dense)
    assert_same(before, snapshot(model))


def test_a_declared_denoiser_is_calibrated_ranked_and_routed_with_its_own_loop() -> None:
    model = foreign()
    anatomy, before = declared(model), snapshot(model)
    stages = Stages.split(EXAMPLE.TIMES, 3)
    with Gatherer(model, stages, Wanted(anatomy.layers, anatomy.blocks)) as gatherer:
        gatherer.begin()
        dense = sampled(model, 0)
    method = Method(Width(4))
    library = Library(model, anatomy, gatherer.statistics(), method, Reporter(quiet=True))
    levels = ((1,), (0,), (3,))
    plans = [library.plan(stage, row) for stage, row in enumerate(levels)]
    with routed(model, stages, partial(Resident().open, model, anatomy, plans)):
        pruned = sampled(model, 0)
    signal, switch = torch.randn(16, EXAMPLE.LENGTH, generator=torch.Generator().manual_seed(0)), Switch(model)
    ready = [realise(model, anatomy, plan) for plan in plans]
    for t, after in pairwise([*EXAMPLE.TIMES, 0.0]):  # the same by hand
        switch.to(ready[stages.index(t)])
        signal = signal - (t - after) * model(signal, torch.full((16,), t))
    switch.to(Weights())
    assert pruned.equal(signal)
    assert not pruned.allclose(dense)
    assert_same(before, snapshot(model))


class Mixing(nn.Module):
    """An attention-like layer whose groups are laid out, normalised or counted in a way of choice."""

    def __init__(self, interleaved: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.heads, self.interleaved = 4, interleaved
        self.value, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(16) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        value = self.norm(self.value(x))
        shape = (-1, self.heads) if self.interleaved else (self.heads, -1)
        heads = value.unflatten(-1, shape).softmax(-2 if self.interleaved else -1).flatten(-2)
        found: Tensor = x + self.out(heads)
        return found


class Net(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.idle, self.last = nn.ModuleList(parts), Mixing(), nn.Linear(8, 4)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        found: Tensor = self.last(x)
        return found


def part(**changes: Any) -> Heads:
    return Heads(**{"module": "parts.*", "heads": 4, "rows": ("value",), "output": "out", "counts": COUNTS, **changes})


COUNTS = (("heads", 1),)


def trial(net: nn.Module, *declaration: Heads | Channels | Residual) -> Anatomy:
    return declare(net, declaration, lambda: net(torch.randn(2, 3, 8), timestep=torch.ones(2)))


def test_a_true_declaration_is_accepted_also_on_inputs_that_are_drawn() -> None:
    torch.manual_seed(0)
    net, drawn = Net(Mixing(), Mixing()).eval(), torch.random.get_rng_state()
    anatomy = trial(net, part(), Residual("parts.*"))
    assert [(layer.groups, layer.width) for layer in anatomy.layers] == [(4, 4)] * 2
    assert [block.width for block in anatomy.blocks] == [8, 8]
    assert torch.random.get_rng_state().equal(drawn)


class Packed(nn.Module):
    """Returns a tuple, as blocks of two streams do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return (x + self.inner(x),)


class Unpacking(Net):
    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for part in self.parts:
            (x,) = part(x)
        found: Tensor = self.last(x)
        return found


def test_a_block_that_returns_a_tuple_says_so() -> None:
    anatomy = trial(Unpacking(Packed()).eval(), Residual("parts.*", returns=("hidden_states",)))
    assert anatomy.blocks[0].returns == ("hidden_states",)
    with pytest.raises(DiffESError, match=r"parts.0: expected to return a tensor, found a tuple of 1. Declare what"):
        trial(Unpacking(Packed()).eval(), Residual("parts.*"))


class Gained(Net):
    """Hands its parts a factor for every channel of all heads, as a rotary embedding is handed."""

    class Part(Mixing):
        def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
            assert gain is not None
            found: Tensor = x + self.out(self.value(x) * gain)
            return found

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x, torch.arange(16.0))
        found: Tensor = self.last(x)
        return found


def test_an_argument_of_all_heads_is_gathered_where_it_is_declared() -> None:
    torch.manual_seed(0)
    net = Gained(Gained.Part()).eval()
    before = snapshot(net)
    (layer,) = trial(net, part(arguments=("gain",))).layers
    assert layer.arguments == (("parts.0", "gain"),)
    assert_same(before, snapshot(net))
    with pytest.raises(DiffESError, match=r"parts.0.out: expected a layer that runs without its first group"):
        trial(net, part())


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep = nn.Conv2d(6, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.down = nn.Conv2d(20, 6, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = pixels + self.down(self.deep(self.up(pixels)).relu())
        return found


def test_channels_of_convolutions_and_blocks_of_pixels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Convolved(), Convolved()).eval()
    channels = Channels("*", rows=("up", "deep"), output="down", counts=(("deep.groups", 1),))
    anatomy = declare(net, (channels, Residual("*", pixels=True)), lambda: net(torch.randn(2, 6, 5, 4)))
    assert [layer.groups for layer in anatomy.layers] == [20, 20]
    assert [(block.width, block.pixels) for block in anatomy.blocks] == [(6, True)] * 2
    with pytest.raises(DiffESError, match=r"declaration, 0.down: expected a layer that runs"):
        declare(net, (replace(channels, counts=()),), lambda: net(torch.randn(2, 6, 5, 4)))


@pytest.mark.parametrize(
    ("net", "declaration", "message"),
    [
        (lambda: Net(Mixing()), part(module="blocks.*"), "blocks.*: expected the name of a module, found none of that"),
        (lambda: Net(Mixing()), part(rows=("values",)), "parts.0.values: expected the name of a module"),
        (
            lambda: Net(Mixing()),
            part(output="norm"),
            "parts.0.norm: expected nn.Linear or a convolution, found a Identity",
        ),
        (lambda: Net(Mixing()), part(heads=5), "parts.0.out: expected equal parts of the input columns, found 16 col"),
        (lambda: Net(Mixing()), part(rows=(Rows("value", 2),)), "parts.0.value.weight: expected 32 rows: 2 x 4 groups"),
        (lambda: Net(Mixing()), part(counts=(("heads", 2),)), "parts.0.heads: expected 8, 2 for each group, found 4"),
        (lambda: Net(Mixing()), part(counts=(("head", 1),)), "parts.0.head: expected 4, 1 for each group, found None"),
        (lambda: Net(Mixing()), part(counts=()), "parts.0.out: expected a layer that runs without its first group"),
        (lambda: Net(Mixing(), Mixing()), part(rows=()), "parts.0.out: expected a layer that runs without its first"),
        (lambda: Net(Mixing(), Mixing(interleaved=True)), part(), "parts.1.out: expected a layer that runs .* others"),
        (lambda: Net(Mixing(norm=True)), part(rows=("value", "norm")), "parts.0.out: .* mixes groups before the outp"),
        (lambda: Net(Mixing()), part(module="idle"), "idle.out: expected to run in a call of the denoiser, found that"),
        (lambda: Net(Mixing()), Residual("idle"), "idle: expected to run in a call of the denoiser"),
        (
            lambda: Net(Mixing()),
            Residual("last"),
            r"last: expected hidden_states in and out in the same shape, found \(",
        ),
        (
            lambda: Net(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
            part(module="parts.*.self_attn", heads=2, rows=(Rows("", 3),), output="out_proj", counts=()),
            "parts.0.self_attn: expected an attention that can run with fewer heads, .* separate q, k and v",
        ),
    ],
)
def test_what_is_not_so_is_refused_by_name(net: Callable[[], nn.Module], declaration: Any, message: str) -> None:
    torch.manual_seed(0)
    model = net().eval()
    before = snapshot(model)
    with pytest.raises(DiffESError, match=f"declaration, {message}"):
        trial(model, declaration)
    assert_same(before, snapshot(model))
