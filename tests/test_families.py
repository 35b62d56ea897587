"""Every family of transformers: what is found in it, and that pruning it is what it claims to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    FusedJointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
    XFormersJointAttnProcessor,
)
from diffusers.models.transformers.sana_transformer import GLUMBConv
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxIPAdapterAttnProcessor,
    FluxSingleTransformerBlock,
)
from diffusers.models.transformers.transformer_flux2 import Flux2Attention
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from tests.counting import _Counting
from tests.families import BATCH, BLOCKS, FAMILIES, HEADS, HIDDEN, arguments, built, run
from tests.tiny import assert_same, snapshot
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diff_es import Compact, Depth, Method, Resident, Streamed, Width
from diff_es.calibrate import Gatherer
from diff_es.compaction import Compaction
from diff_es.cost import MacCounter
from diff_es.errors import ArtefactError
from diff_es.layers import (
    DENSE,
    Anatomy,
    Block,
    Bypass,
    Cut,
    Kind,
    Plan,
    Switch,
    Weights,
    discover,
    output_of,
    realise,
)
from diff_es.library import Library
from diff_es.obs import regress
from diff_es.pipeline import Trace, meta_twin
from diff_es.placements import Placement
from diff_es.progress import Reporter
from diff_es.schedule import Stages
from diff_es.units import Grain, Skip

every_family = pytest.mark.parametrize("name", FAMILIES)
ACROSS = {"sana-sprint", "wan", "wan-image", "ltx"}  # normalise queries and keys across all heads


@cache
def model_of(name: str) -> Any:
    return built(FAMILIES[name])


def random_plan(model: nn.Module, anatomy: Anatomy, seed: int, *, solved: bool = True) -> Plan:
    """Random groups of every layer, the same for those that follow; with ``solved`` new output projections too."""
    g, cuts = torch.Generator().manual_seed(seed), dict[str, Cut]()
    for layer in anatomy.layers:
        if layer.follows is None:
            count = int(torch.randint(1, layer.groups, (), generator=g))
            kept = torch.randperm(layer.groups, generator=g)[:count].sort().values
        else:
            kept = cuts[layer.follows].kept
        dense = output_of(model, layer).weight
        weight = torch.randn(len(dense), len(kept) * layer.width, *dense.shape[2:], generator=g) / 4
        bias = torch.randn(len(dense), generator=g)
        cuts[layer.name] = Cut(kept, weight, bias) if solved else Cut(kept)
    return Plan(cuts)


def slim(name: str, plan: Plan, seed: int = 1) -> Tensor:
    model = model_of(name)
    switch = Switch(model)
    switch.to(realise(model, discover(model), plan))
    try:
        return run(model, FAMILIES[name], seed)
    finally:
        switch.to(Weights())


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def layer_names(pattern: str, *parts: str) -> list[str]:
    return [f"{pattern}.{i}.{part}" for i in range(BLOCKS) for part in parts]


# ----------------------------------------------------------------------------------------------------- discovery

BASIC = ("attn1", "attn2", "ff")
JOINT = ("attn", "attn.to_add_out", "ff", "ff_context")
FOUND = {
    "pixart": layer_names("transformer_blocks", *BASIC),
    "sd3": [*layer_names("transformer_blocks", *JOINT)[:-3], "transformer_blocks.1.ff"],
    "sd3.5": [f"transformer_blocks.0.{part}" for part in (*JOINT[:2], "attn2", *JOINT[2:])]
    + ["transformer_blocks.1.attn", "transformer_blocks.1.ff"],
    "flux": layer_names("transformer_blocks", *JOINT) + layer_names("single_transformer_blocks", "attn", "proj_mlp"),
    "sana": layer_names("transformer_blocks", *BASIC),
    "sana-sprint": layer_names("transformer_blocks", *BASIC),
    "qwen": layer_names("transformer_blocks", *JOINT[:2], "img_mlp", "txt_mlp"),
    "wan": layer_names("blocks", "attn1", "attn2", "ffn"),
    "wan-image": ["condition_embedder.image_embedder.ff", *layer_names("blocks", "attn1", "attn2", "ffn")],
    "ltx": layer_names("transformer_blocks", *BASIC),
}


@every_family
def test_discovery_finds_every_layer_and_block(name: str) -> None:
    model, anatomy = model_of(name), discover(model_of(name))
    assert [layer.name for layer in anatomy.layers] == FOUND[name]
    for layer in anatomy.layers:
        attention = layer.name.rpartition(".")[2].startswith(("attn", "to_add_out"))
        assert layer.kind is (Kind.ATTENTION if attention else Kind.FEEDFORWARD)
        heads = 2 if name.startswith("sana") and layer.name.endswith("attn2") else HEADS
        assert (layer.groups, layer.width) == ((heads, HIDDEN // heads) if attention else (layer.groups, 1))
        assert layer.follows == (layer.name.removesuffix(".to_add_out") if layer.name.endswith("_out") else None)
    for layers in anatomy.sharing():  # every column of an output belongs to one layer
        starts = [layer.start for layer in layers] + [output_of(model, layers[0]).weight.shape[1]]
        assert starts[0] == 0
        assert starts[1:] == [layer.start + layer.size for layer in layers]
    stacks = {"flux": ("transformer_blocks", "single_transformer_blocks"), "wan": ("blocks",), "wan-image": ("blocks",)}
    assert [(block.name, block.width) for block in anatomy.blocks] == [
        (f"{stack}.{i}", HIDDEN) for stack in stacks.get(name, ("transformer_blocks",)) for i in range(BLOCKS)
    ]
    assert anatomy.refusals == ()


# --------------------------------------------------------------------------------------------------------- slim


@every_family
def test_dense_is_dense_to_the_bit(name: str) -> None:
    model, dense = model_of(name), run(model_of(name), FAMILIES[name])
    before, anatomy = snapshot(model), discover(model)
    every = Plan({layer.name: Cut(torch.arange(layer.groups)) for layer in anatomy.layers})
    assert slim(name, DENSE).equal(dense)
    assert slim(name, every).equal(dense)
    assert_same(before, snapshot(model))


@contextmanager
def masked(model: nn.Module, anatomy: Anatomy, plan: Plan) -> Iterator[None]:
    """The dense network with the removed groups' inputs zeroed, and the plan's own weights written in."""
    handles, before = [], deepcopy(model.state_dict())
    added: dict[str, list[Tensor]] = {}
    for layer in anatomy.layers:
        cut, output = plan.cuts[layer.name], output_of(model, layer)
        keep = torch.isin(torch.arange(layer.groups), cut.kept).repeat_interleave(layer.width)
        mask, span = torch.ones(output.weight.shape[1]), slice(layer.start, layer.start + len(keep))
        mask[span] = keep.float()
        shape = (-1, 1, 1) if isinstance(output, nn.Conv2d) else (-1,)
        mask = mask.view(shape)
        handles.append(output.register_forward_pre_hook(lambda module, args, mask=mask: (args[0] * mask,)))
        columns = torch.arange(span.start, span.stop)[keep]
        if cut.weight is not None:
            output.weight[:, columns] = cut.weight
        if cut.bias is not None:
            added.setdefault(layer.output, []).append(cut.bias)
    for path, biases in added.items():
        module = model.get_submodule(path)
        dense = before.get(f"{path}.bias", torch.zeros(1))
        offset = sum(biases) - len(biases) * dense  # to be added to the dense output
        assert isinstance(offset, Tensor)
        offset = offset.view(-1, 1, 1) if isinstance(module, nn.Conv2d) else offset
        handles.append(module.register_forward_hook(lambda module, args, out, offset=offset: out + offset))
    yield
    model.load_state_dict(before)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ACROSS])
def test_slim_equals_the_dense_network_with_the_groups_disabled(name: str, solved: bool) -> None:
    model, family = model_of(name), FAMILIES[name]
    anatomy, dense = discover(model), run(model, family)
    for seed in range(3):
        plan = random_plan(model, anatomy, seed, solved=solved)
        with masked(model, anatomy, plan):
            expected = run(model, family)
        assert_close(slim(name, plan), expected)
        assert (expected - dense).abs().max() > 1e-2 * dense.abs().max()
        assert run(model, family).equal(dense)


def fewer(attention: Any, fresh: nn.Module, cut: Cut, size: int) -> nn.Module:
    """A new attention of the real class with fewer heads, and the weights of those that stay."""
    rows = torch.cat([torch.arange(size) + head * size for head in cut.kept.tolist()])
    state = dict[str, Tensor]()
    for key, value in attention.state_dict().items():
        state[key] = value[:, rows] if key == "to_out.0.weight" else value if key == "to_out.0.bias" else value[rows]
    if cut.weight is not None and cut.bias is not None:
        state |= {"to_out.0.weight": cut.weight, "to_out.0.bias": cut.bias}
    fresh.load_state_dict(state)
    return fresh.eval()


def turning(cut: Cut, size: int) -> Callable[..., Any]:
    """Gives an attention of LTX-Video the rotary embedding of its heads alone, from that of all of them."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (rotary := kwargs["image_rotary_emb"]) is not None:
            parts = [part.unflatten(-1, (HEADS, size))[..., cut.kept, :].flatten(-2) for part in rotary]
            kwargs = {**kwargs, "image_rotary_emb": tuple(parts)}
        return args, kwargs

    return hook


def rebuilt(attention: Any, cut: Cut) -> nn.Module:
    heads, size = len(cut.kept), attention.inner_dim // attention.heads
    if isinstance(attention, WanAttention):
        cross = size if attention.is_cross_attention else None
        options: Any = {"eps": attention.norm_q.eps, "added_kv_proj_dim": attention.added_kv_proj_dim}
        options |= {"cross_attention_dim_head": cross, "processor": attention.processor}
        return fewer(attention, WanAttention(HIDDEN, heads, size, **options), cut, size)
    if isinstance(attention, LTXAttention):
        fresh = LTXAttention(HIDDEN, heads, heads, size, cross_attention_dim=HIDDEN)
        fresh.register_forward_pre_hook(turning(cut, size), with_kwargs=True)
        return fewer(attention, fresh, cut, size)
    options = {"dim_head": size, "bias": attention.use_bias, "qk_norm": "rms_norm_across_heads"}
    options |= {"eps": attention.norm_q.eps, "processor": attention.processor}
    return fewer(attention, Attention(HIDDEN, None, heads, heads, **options), cut, size)


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize("name", sorted(ACROSS))
def test_across_heads_slim_equals_the_class_with_fewer_heads(name: str, solved: bool) -> None:
    model, family = model_of(name), FAMILIES[name]
    dense = run(model, family)
    for seed in range(3):
        plan = random_plan(model, discover(model), seed, solved=solved)
        copy = deepcopy(model)
        rest = dict(plan.cuts)
        for layer in discover(model).layers:
            if layer.kind is Kind.ATTENTION:
                module = rebuilt(copy.get_submodule(layer.name), rest.pop(layer.name))
                owner, _, leaf = layer.name.rpartition(".")
                setattr(copy.get_submodule(owner), leaf, module)
        anatomy = discover(model)
        others = Anatomy(tuple(layer for layer in anatomy.layers if layer.name in rest), (), ())
        with masked(copy, others, Plan(rest)):
            expected = run(copy, family)
        assert_close(slim(name, plan), expected)
        assert (expected - dense).abs().max() > 1e-2 * dense.abs().max()


@every_family
@pytest.mark.parametrize("level", [1, 4, 7])
def test_realised_widths_are_the_nominal_ones(name: str, level: int) -> None:
    model, anatomy = deepcopy(model_of(name)), discover(model_of(name))
    plan = Plan({layer.name: Cut(torch.arange(max(1, layer.kept(level, 8)))) for layer in anatomy.layers})
    switch = Switch(model)
    before = snapshot(model)
    sizes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    switch.to(realise(model, anatomy, plan))
    owned = set[str]()
    for layers in anatomy.sharing():
        width = sum(len(plan.cuts[layer.name].kept) * layer.width for layer in layers)
        assert output_of(model, layers[0]).weight.shape[1] == width
        owned.add(f"{layers[0].output}.weight")
    for layer in anatomy.layers:
        for rows in layer.rows:
            for leaf, tensor in model.get_submodule(rows.module).named_parameters(recurse=False):
                kept = len(plan.cuts[layer.name].kept)
                assert len(tensor) * layer.groups == sizes[f"{rows.module}.{leaf}"][0] * kept
                owned.add(f"{rows.module}.{leaf}")
    same = {key for key, tensor in model.state_dict().items() if tensor.shape == sizes[key]}
    assert not same & owned or level == 1
    assert same | owned == sizes.keys()
    if level == 7:
        kinds = Attention | FluxAttention | LTXAttention | WanAttention
        assert {module.heads for module in model.modules() if isinstance(module, kinds)} == {1}
    switch.to(Weights())
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux", "qwen"])
def test_a_plan_whose_streams_keep_other_heads_is_refused(name: str) -> None:
    model, anatomy = model_of(name), discover(model_of(name))
    followers = [layer for layer in anatomy.layers if layer.follows]
    assert followers
    plan = random_plan(model, anatomy, 0)
    for layer in followers:
        own = plan.cuts[layer.name]
        other = Cut((own.kept + 1) % layer.groups if len(own.kept) < layer.groups else own.kept[:1])
        wrong = Cut(other.kept.sort().values)
        for cuts in ({**plan.cuts, layer.name: wrong}, {k: v for k, v in plan.cuts.items() if k != layer.name}):
            with pytest.raises(ArtefactError, match=layer.name):
                realise(model, anatomy, Plan(cuts))


# --------------------------------------------------------------------------------------------------------- blocks


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


@cache
def library_of(name: str) -> Library:
    """Levels of width, and skipped blocks, from calls at the timesteps of two stages."""
    model, family = model_of(name), FAMILIES[name]
    anatomy, stages = discover(model), Stages((family.timestep,))
    with Gatherer(model, stages, anatomy.layers, anatomy.blocks) as gatherer:
        for seed in range(6):
            gatherer.begin()
            now = torch.full((BATCH,), family.timestep * (1 + 0.1 * (-1) ** seed))
            with torch.no_grad():
                model(**{**arguments(family, seed), "timestep": now})
    method = Method(Width(8, multiple=1, depth=Depth()), grain=Grain.BLOCK)
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
        for level in range(1, 8):
            plan = library.plan(stage, [level] * len(library.units))
            for layer in followers:
                leader = plan.cuts.get(layer.follows or "")
                own = plan.cuts.get(layer.name)
                assert (own is None) == (leader is None)
                if own is not None and leader is not None:
                    assert own.kept.equal(leader.kept)
                    assert own.weight is not None
                    assert not own.weight.equal(output_of(model_of(name), layer).weight[:, layer.columns(own.kept)])


# ---------------------------------------------------------------------------------------------------------- costs


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


def test_the_twin_of_every_family_has_its_layers() -> None:
    for name in FAMILIES:
        assert discover(meta_twin(model_of(name))) == discover(model_of(name))


# ------------------------------------------------------------------------------------------------------- refusals


def joint(**changes: Any) -> Attention:
    options = {"heads": 2, "dim_head": 8, "added_kv_proj_dim": 16, "context_pre_only": False, "out_dim": 16}
    return Attention(16, **{"processor": model_of("sd3").transformer_blocks[0].attn.processor, **options, **changes})


def single(change: Callable[[FluxSingleTransformerBlock], object]) -> nn.Module:
    block = FluxSingleTransformerBlock(16, 2, 8)
    change(block)
    return block


class Wrapped(nn.Linear):
    """As adapters wrap a projection."""


def wrapped(module: nn.Module, path: str, part: nn.Module | None = None) -> nn.Module:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, part or Wrapped(16, 16))
    return module


def fused(module: Any) -> nn.Module:
    module.fuse_projections()
    return module


def set_processor(module: Any, processor: object) -> nn.Module:
    module.set_processor(processor)
    return module


def flux() -> FluxAttention:
    return FluxAttention(16, 2, 8, added_kv_proj_dim=16, context_pre_only=False)


def wan(**changes: Any) -> WanAttention:
    return WanAttention(16, 2, 8, processor=WanAttnProcessor(), **changes)


@pytest.mark.parametrize(
    ("make", "names", "reason"),
    [
        (lambda: joint(processor=FusedJointAttnProcessor2_0()), [""], "unfuse_qkv_projections"),
        (lambda: fused(flux()), [""], "unfuse_qkv_projections"),
        (lambda: fused(wan()), [""], "unfuse_qkv_projections"),
        (lambda: single(lambda block: block.attn.fuse_projections()), ["attn", "proj_mlp"], "unfuse_qkv_projections"),
        (lambda: joint(kv_heads=1), [""], "grouped-query"),
        (lambda: joint(processor=SD3IPAdapterJointAttnProcessor2_0(16, 8, 4)), [""], "set JointAttnProcessor2_0 or"),
        (lambda: joint(processor=XFormersJointAttnProcessor()), [""], "XFormersJointAttnProcessor"),
        (lambda: set_processor(flux(), FluxIPAdapterAttnProcessor(16, 8)), [""], "FluxIPAdapterAttnProcessor"),
        (lambda: set_processor(wan(), print), [""], "set WanAttnProcessor"),
        (lambda: FluxAttention(16, 2, 8), [""], "declare its heads"),
        (lambda: FluxAttention(16, 2, 8, pre_only=True), [""], "declare its heads"),
        (lambda: wrapped(joint(), "add_k_proj"), [""], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(flux(), "to_out.0"), [""], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(wan(), "to_v"), [""], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(single(id), "proj_out"), ["attn", "proj_mlp"], "Wrapped, not a plain nn.Linear"),
        (lambda: wrapped(GLUMBConv(8, 8), "conv_depth", Wrapped(1, 1)), [""], "not a plain nn.Conv2d"),
        (lambda: wrapped(joint(qk_norm="rms_norm"), "norm_k", nn.RMSNorm(16)), [""], "across heads"),
        (lambda: wan(cross_attention_dim_head=4), [""], "fewer or other heads"),
        (lambda: LTXAttention(16, 2, 1, 8), [""], "fewer or other heads"),
        (lambda: LTXAttention(14, 2, 2, 7), [""], "belong to two heads"),
        (lambda: Flux2Attention(16, 2, 8), [""], "declare its heads"),
        (lambda: nn.MultiheadAttention(16, 2), [""], "nn.MultiheadAttention"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_a_reason(
    make: Callable[[], nn.Module], names: list[str], reason: str
) -> None:
    anatomy = discover(nn.ModuleDict({"fine": joint(), "odd": make()}))
    assert [layer.name for layer in anatomy.layers] == ["fine", "fine.to_add_out"]
    assert [refusal.name for refusal in anatomy.refusals] == [f"odd.{name}".rstrip(".") for name in names]
    assert all(reason in refusal.reason for refusal in anatomy.refusals)


@pytest.mark.parametrize("name", ["sd3", "pixart", "flux", "wan", "qwen", "ltx", "sana"])
def test_fused_projections_are_refused_until_they_are_separate_again(name: str) -> None:
    model: Any = deepcopy(model_of(name))
    dense = discover(model)
    model.fuse_qkv_projections()
    heads = [layer.name for layer in dense.layers if layer.kind is Kind.ATTENTION and layer.follows is None]
    fused_ones = [refusal for refusal in discover(model).refusals if "unfuse_qkv_projections" in refusal.reason]
    if name in ("qwen", "sana"):  # their attention cannot be fused, or is not by this call
        return
    assert {refusal.name for refusal in fused_ones} >= set(heads)
    model.unfuse_qkv_projections()
    assert discover(model) == dense
