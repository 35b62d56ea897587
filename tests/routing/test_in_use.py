"""Laws of a routed pipeline in its user's hands: what is done to it works, or is refused before an image is made, and
leaving gives back the dense model, to the bit."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, StableDiffusionPipeline
from tests.helpers.in_use import (
    FAMILIES,
    halves,
    image_of,
    in_threads,
    load_ip_adapter,
    made_of,
    result_of,
    slim_of,
)
from tests.helpers.tiny import assert_same, snapshot, tiny
from torch import Tensor

from diff_es import ArtefactError, Compact, DiffESError, Resident, Streamed
from diff_es.layers import Anatomy, Plan, discover
from diff_es.layers.fingerprint import fingerprint
from diff_es.pipelines.sampling import denoiser_of
from diff_es.routing.changes import Likeness
from diff_es.routing.placements import Placed

families = pytest.mark.parametrize("name", FAMILIES)
FUSE = [name for name in FAMILIES if name != "DiT"]


def in_turn(names: Sequence[str], values: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each family with one of the values, each value with some families."""
    return list(zip(names, cycle(values), strict=False))


def bare(plan: Plan) -> Plan:
    """The dense columns of what stays: what a compact placement runs too."""
    return Plan({name: replace(cut, weight=None, bias=None) for name, cut in plan.cuts.items()})


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        *((name, Resident()) for name in FAMILIES),
        *(("DiT", Streamed()), ("SD", Compact()), ("FLUX", Streamed()), ("FLUX", Compact())),
    ],
)
def test_a_copy_is_a_dense_pipeline_of_its_own(name: str, placement: Placed) -> None:
    pipe = made_of(name)
    fast = result_of(name, pipe)
    fast = replace(fast, plans=tuple(map(bare, fast.plans)))
    dense, before = image_of(name, pipe), snapshot(denoiser_of(pipe))
    with fast.routed(pipe, placement):
        pruned = image_of(name, pipe)
        twin = deepcopy(pipe)
        assert torch.equal(image_of(name, twin), dense)
        assert torch.equal(image_of(name, pipe), pruned)
    assert not torch.equal(pruned, dense)
    assert_same(before, snapshot(denoiser_of(pipe)))
    for one in (pipe, twin, deepcopy(twin)):
        assert torch.equal(image_of(name, one), dense)
    with fast.routed(twin, placement):
        assert torch.equal(image_of(name, twin), pruned)
        assert torch.equal(image_of(name, pipe), dense)


def test_pickling_is_refused_with_the_remedy_and_a_copy_can_be_pickled() -> None:
    pipe = made_of("SD")
    with result_of("SD", pipe).routed(pipe):
        image_of("SD", pipe)
        for write in (pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
            with pytest.raises(DiffESError, match=r"found a routed one\. Leave the `routed` context or call `remove"):
                write(pipe.unet)
        twin, shallow = deepcopy(pipe.unet), copy(pipe.unet)
        state = deepcopy(pipe.unet.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
    loaded = pickle.loads(pickle.dumps(twin))
    assert fingerprint(loaded) == fingerprint(pipe.unet) == fingerprint(shallow)


@pytest.mark.parametrize("plans", [None, halves])
@pytest.mark.parametrize("name", ["SD", "FLUX"])
def test_calls_of_several_threads_take_turns(name: str, plans: Any) -> None:
    """Of two pipelines that share a denoiser, with a scheduler and tokenizers each, which threads cannot share."""
    one = made_of(name)
    own = {key: deepcopy(part) for key, part in one.components.items() if key.startswith(("scheduler", "tokenizer"))}
    other = type(one)(**{**one.components, **own})
    other.set_progress_bar_config(disable=True)
    seeds = range(2)

    def drawn(pipe: Any) -> Tensor:
        return torch.cat([image_of(name, pipe, seed) for seed in seeds])

    dense = drawn(one)
    with result_of(name, one, None if plans is None else plans(name, one)).routed(one):
        alone = drawn(one)
        for found in in_threads([lambda: drawn(one), lambda: drawn(other)]):
            assert torch.equal(found, alone)
    assert not torch.equal(alone, dense)
    for found in in_threads([lambda: drawn(one), lambda: drawn(other)]):
        assert torch.equal(found, dense)


def test_whoever_shares_the_denoiser_runs_routed_and_any_of_them_may_leave() -> None:
    pipe = made_of("SD")
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    fast, dense, before = result_of("SD", pipe), image_of("SD", pipe), snapshot(pipe.unet)
    fast.apply(pipe)
    pruned = image_of("SD", pipe)
    assert torch.equal(image_of("SD", other), pruned)
    assert not torch.equal(pruned, dense)
    with pytest.raises(DiffESError, match="found one that is routed already"), fast.routed(other):
        pass
    fast.remove(other)
    assert_same(before, snapshot(pipe.unet))
    for one in (pipe, other):
        assert torch.equal(image_of("SD", one), dense)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["SD", "SDXL"])
def test_an_image_adapter_runs_where_its_layers_are_whole_and_is_refused_elsewhere(name: str, inside: bool) -> None:
    pipe, picture = made_of(name), [torch.rand(2, 1, 16, generator=torch.Generator().manual_seed(3))]
    fast = result_of(name, pipe)
    plan = Plan({name: cut for name, cut in fast.plans[0].cuts.items() if "attn2" not in name})
    some = replace(fast, plans=(plan,) * len(fast.plans))
    slim, dense = slim_of(pipe, plan), image_of(name, pipe)
    load_ip_adapter(slim)
    expected = image_of(name, slim, ip_adapter_image_embeds=picture)
    if not inside:
        load_ip_adapter(pipe)
    with some.routed(pipe):
        if inside:
            image_of(name, pipe)
            load_ip_adapter(pipe)
        assert torch.equal(image_of(name, pipe, ip_adapter_image_embeds=picture), expected)
    message = r"attn2.*found its processor IPAdapter\w+ has weights of its own"
    if inside:
        pipe.unload_ip_adapter()
        fast.apply(pipe)
        load_ip_adapter(pipe)
        with pytest.raises(ArtefactError, match=message):
            image_of(name, pipe, ip_adapter_image_embeds=picture)
        pipe.unload_ip_adapter()
        image_of(name, pipe)
        fast.remove(pipe)
        assert torch.equal(image_of(name, pipe), dense)
    else:
        with pytest.raises(ArtefactError, match=message), fast.routed(pipe):
            pass


@pytest.mark.parametrize(("name", "placement"), in_turn(FUSE, (Resident(), Compact())))
def test_fused_projections_are_refused_and_leave_no_trace(name: str, placement: Placed) -> None:
    pipe, fused = made_of(name), made_of(name)
    denoiser, result = denoiser_of(pipe), result_of(name, pipe)
    fast = replace(result, plans=tuple(map(bare, result.plans)))
    dense = image_of(name, pipe)
    denoiser_of(fused).fuse_qkv_projections()
    expected = image_of(name, fused)
    with fast.routed(pipe, placement):
        pruned = image_of(name, pipe)
        denoiser.fuse_qkv_projections()
        for _ in range(2):
            with pytest.raises(ArtefactError, match=r"are fused: call unfuse_qkv_projections\(\)"):
                image_of(name, pipe)
    assert torch.equal(image_of(name, pipe), expected)
    with pytest.raises(ArtefactError, match=r"are fused: call unfuse_qkv_projections\(\)"), fast.routed(pipe):
        pass
    denoiser.unfuse_qkv_projections()
    assert torch.equal(image_of(name, pipe), dense)
    with fast.routed(pipe, placement):
        assert torch.equal(image_of(name, pipe), pruned)
        denoiser.fuse_qkv_projections()
        denoiser.unfuse_qkv_projections()
        assert torch.equal(image_of(name, pipe), pruned)
    assert torch.equal(image_of(name, pipe), dense)


def skipping(name: str, pipe: Any, which: int) -> Any:
    """A result that leaves out one block in all stages but the first."""
    fast = result_of(name, pipe)
    block = discover(denoiser_of(pipe)).blocks[which].name
    left_out = [
        Plan({key: cut for key, cut in plan.cuts.items() if not key.startswith(f"{block}.")}, {block: None})
        for plan in fast.plans[1:]
    ]
    return replace(fast, plans=(fast.plans[0], *left_out))


def cache(pipe: Any) -> Any:
    return FirstBlockCacheConfig(threshold=0.2)


def broadcast(pipe: Any) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


@pytest.mark.parametrize("kind", [cache, broadcast])
def test_a_cache_that_comes_inside_and_goes_after_leaving_changes_nothing(kind: Any) -> None:
    pipe, dense = made_of("FLUX"), image_of("FLUX", made_of("FLUX"))
    fast = skipping("FLUX", pipe, 1)
    cached = made_of("FLUX")
    cached.transformer.enable_cache(kind(cached))
    expected = image_of("FLUX", cached)
    with fast.routed(pipe):
        image_of("FLUX", pipe)
        pipe.transformer.enable_cache(kind(pipe))
        if kind is cache:
            with pytest.raises(DiffESError, match=r"found one with hooks of diffusers on it, fbc_.*disable_cache\(\)"):
                image_of("FLUX", pipe)
        else:
            image_of("FLUX", pipe)
    assert torch.equal(image_of("FLUX", pipe), expected)
    pipe.transformer.disable_cache()
    assert torch.equal(image_of("FLUX", pipe), dense)
    with fast.routed(pipe):
        image_of("FLUX", pipe)
    assert torch.equal(image_of("FLUX", pipe), dense)


@pytest.mark.parametrize("kind", [cache, broadcast])
@pytest.mark.parametrize("inside", [True, False])
def test_a_cache_on_blocks_that_stay_is_that_of_a_smaller_network(kind: Any, inside: bool) -> None:
    pipe = made_of("FLUX")
    fast = result_of("FLUX", pipe)
    fast = replace(fast, plans=(fast.plans[0],) * len(fast.plans))
    slim = slim_of(pipe, fast.plans[0])
    slim.transformer.enable_cache(kind(slim))
    expected = image_of("FLUX", slim)
    if not inside:
        pipe.transformer.enable_cache(kind(pipe))
    with fast.routed(pipe):
        if inside:
            image_of("FLUX", pipe)
            pipe.transformer.enable_cache(kind(pipe))
        assert torch.equal(image_of("FLUX", pipe), expected)


@pytest.mark.parametrize(("name", "storage"), in_turn(FAMILIES, (torch.bfloat16, torch.float8_e4m3fn)))
def test_storage_in_fewer_bits_that_comes_inside_is_that_of_a_pipeline_never_routed(
    name: str, storage: torch.dtype
) -> None:
    pipe, control = made_of(name), made_of(name)
    fast = result_of(name, pipe)
    denoiser_of(control).enable_layerwise_casting(storage, torch.float32)
    expected = image_of(name, control)
    with fast.routed(pipe):
        pruned = image_of(name, pipe)
        denoiser_of(pipe).enable_layerwise_casting(storage, torch.float32)
        if storage is torch.bfloat16:
            again = image_of(name, pipe)
            assert (again - pruned).abs().max() < 0.1
            assert torch.equal(again, image_of(name, pipe))
        else:
            with pytest.raises(ArtefactError, match=r"hash of the base model|bits"):
                image_of(name, pipe)
    assert {n: p.dtype for n, p in denoiser_of(pipe).named_parameters()} == {
        n: p.dtype for n, p in denoiser_of(control).named_parameters()
    }
    assert torch.equal(image_of(name, pipe), expected)


@pytest.mark.parametrize(("name", "dtype"), in_turn(FAMILIES, (torch.float64, torch.bfloat16, torch.float16)))
def test_a_cast_inside_is_a_cast_of_the_dense_model(name: str, dtype: torch.dtype) -> None:
    pipe, control = made_of(name), made_of(name)
    fast = result_of(name, pipe)
    denoiser_of(control).to(dtype)
    with fast.routed(pipe, Streamed()):
        image_of(name, pipe)
        denoiser_of(pipe).to(dtype)
    expected = denoiser_of(control).state_dict()
    for key, value in denoiser_of(pipe).state_dict().items():
        assert value.dtype == expected[key].dtype, key
        assert torch.equal(value, expected[key]), key


def test_a_pipeline_that_is_cast_inside_runs_as_one_that_was_cast_before() -> None:
    pipe, control = made_of("DiT"), made_of("DiT").to(torch.bfloat16)
    fast = result_of("DiT", pipe)
    with fast.routed(control):
        expected = image_of("DiT", control)
    for placement in (Resident(), Streamed()):
        pipe = made_of("DiT")
        with fast.routed(pipe, placement):
            image_of("DiT", pipe)
            pipe.to(torch.bfloat16)
            assert torch.equal(image_of("DiT", pipe), expected)
        assert torch.equal(image_of("DiT", pipe), image_of("DiT", control))


@families
def test_loading_a_state_dict_inside_loads_it_whole(name: str) -> None:
    pipe, other = made_of(name), made_of(name)
    denoiser, fast = denoiser_of(pipe), result_of(name, pipe)
    with torch.no_grad():
        for parameter in denoiser_of(other).parameters():
            parameter.mul_(1.5)
    dense, state = image_of(name, other), denoiser_of(other).state_dict()
    own = {key: value.clone() for key, value in denoiser.state_dict().items()}
    with fast.routed(pipe):
        pruned = image_of(name, pipe)
        denoiser.load_state_dict(own)
        assert torch.equal(image_of(name, pipe), pruned)
        denoiser.load_state_dict(state)
        with pytest.raises(ArtefactError, match="hash of the base model"):
            image_of(name, pipe)
    assert torch.equal(image_of(name, pipe), dense)


def test_weights_that_are_written_to_are_noticed_however_it_is_done() -> None:
    """Through the parameter, and past its count of versions, as peft's merging does."""
    for write in (
        lambda weight: weight.mul_(1.5),
        lambda weight: weight.data.mul_(1.5),
        lambda weight: setattr(weight, "data", weight.data * 1.5),
    ):
        pipe = made_of("DiT")
        with result_of("DiT", pipe).routed(pipe):
            image_of("DiT", pipe)
            with torch.no_grad():
                write(pipe.transformer.transformer_blocks[1].attn1.to_q.weight)
            with pytest.raises(ArtefactError, match="hash of the base model"):
                image_of("DiT", pipe)


@pytest.mark.filterwarnings("ignore")
def test_traces_and_exports_of_one_stage_are_refused() -> None:
    pipe = made_of("DiT")
    call = (torch.randn(2, 4, 8, 8),)
    kwargs = {"timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([1, 2]), "return_dict": False}
    with result_of("DiT", pipe).routed(pipe):
        image_of("DiT", pipe)
        message = r"found a call that is traced, which would keep one stage's\. Leave the routed context first"
        with pytest.raises(DiffESError, match=message):
            torch.jit.trace(pipe.transformer, example_inputs=call, example_kwarg_inputs=kwargs)
        with pytest.raises(DiffESError, match=message):
            torch.export.export(pipe.transformer, call, kwargs, strict=False)
        image_of("DiT", pipe)
    torch.export.export(pipe.transformer, call, kwargs, strict=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["before", "inside", "another object"])
def test_a_denoiser_that_is_compiled_as_a_whole_is_routed(how: str) -> None:
    pipe = tiny(layers=1)
    plans = None if how == "before" else halves("DiT", pipe)  # which compile once for all stages
    dense, fast = image_of("DiT", pipe), result_of("DiT", pipe, plans)
    with fast.routed(pipe):
        pruned = image_of("DiT", pipe)
    if how == "before":
        pipe.transformer.compile(backend="eager")
    with fast.routed(pipe):
        if how == "inside":
            pipe.transformer.compile(backend="eager")
        if how == "another object":
            pipe.transformer = torch.compile(pipe.transformer, backend="eager")
        assert torch.allclose(image_of("DiT", pipe), pruned, atol=1e-5)
    assert torch.allclose(image_of("DiT", pipe), dense, atol=1e-5)
    torch.compiler.reset()


def test_training_mode_and_other_modules_are_noticed() -> None:
    pipe = made_of("DiT")
    dense = image_of("DiT", pipe)
    with result_of("DiT", pipe).routed(pipe):
        pipe.transformer.train()
        with pytest.raises(DiffESError, match="found training mode"):
            image_of("DiT", pipe)
        pipe.transformer.eval()
        block = pipe.transformer.transformer_blocks[0]
        own, block.attn1.to_q = block.attn1.to_q, torch.nn.Linear(16, 16)
        with pytest.raises(ArtefactError, match="hash of the base model"):
            image_of("DiT", pipe)
        block.attn1.to_q = own
        pruned = image_of("DiT", pipe)
    assert not torch.equal(pruned, dense)
    assert torch.equal(image_of("DiT", pipe), dense)


def test_a_denoiser_of_which_nothing_can_be_pruned_has_a_likeness_too() -> None:
    model = torch.nn.Linear(2, 2)
    likeness = Likeness(model, Anatomy((), (), ()))
    assert likeness.changed() is None
    assert likeness.rewritten(moves=False) is None
