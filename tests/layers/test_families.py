"""Every family of transformers: what is found in it, and that slim layers are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
)
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
)
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_wan import WanAttention
from tests.helpers.families import (
    BLOCKS,
    FAMILIES,
    HEADS,
    HIDDEN,
    assert_close,
    every_family,
    layer_names,
    model_of,
    random_plan,
    run,
    slim,
)
from tests.helpers.tiny import assert_same, snapshot
from torch import Tensor, nn

from diff_es.layers import DENSE, Anatomy, Cut, Kind, Plan, Weights, discover
from diff_es.routing.realise import output_of, realise
from diff_es.routing.switch import Switch
from diff_es.utils.errors import ArtefactError

ACROSS = {"sana-sprint", "wan", "wan-image", "ltx"}  # normalise queries and keys across all heads
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
