"""Laws of torch.compile under routing: a level compiles once, whatever weights it has, and nothing else changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from tests.helpers.exports import both, open_export, result_of
from tests.helpers.tiny import (
    assert_same,
    assert_same_plans,
    images,
    opened,
    settings,
    snapshot,
    stages_of,
    tiny,
)
from torch import Tensor
from torch._dynamo import config

from diff_es import Compact, Compressed, Sampling, Streamed, UnsupportedModel, compress, export
from diff_es.compression.study import prepare
from diff_es.evaluation.inspection import left_dense
from diff_es.layers import DENSE, Bypass, Cut, Plan, discover
from diff_es.layers.fingerprint import fingerprint
from diff_es.routing.placements import Placement, StreamedStore
from diff_es.routing.routing import routed

LEVELS = (1, 0, 2, 1, 0, 2, 2, 1, 1, 0)  # of ten stages; at level 2 a block is skipped too


class Counting:
    """A backend that runs the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.count += 1
        forward: Callable[..., Any] = graph.forward
        return forward


def in_place(pipe: DiTPipeline, backend: Any) -> None:
    pipe.transformer._repeated_blocks = ["BasicTransformerBlock"]  # diffusers 0.42 names none for DiT
    pipe.transformer.compile_repeated_blocks(backend=backend)


def replaced(pipe: DiTPipeline, backend: Any) -> None:
    for i, block in enumerate(pipe.transformer.transformer_blocks):
        pipe.transformer.transformer_blocks[i] = torch.compile(block, backend=backend)


def parts(pipe: DiTPipeline, backend: Any) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.attn1, block.ff = (torch.compile(part, backend=backend) for part in (block.attn1, block.ff))


def whole(pipe: DiTPipeline, backend: Any) -> None:
    pipe.transformer.compile(backend=backend)


Way = Callable[[DiTPipeline, Any], None]
BLOCKS: tuple[Way, ...] = (in_place, replaced, parts)
WAYS: tuple[Way, ...] = (*BLOCKS, whole)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def at_level(pipe: DiTPipeline, level: int, seed: int) -> Plan:
    """Which groups stay, the biases and the fitted map are drawn; how many stay follows from the level, of 4."""
    if level == 0:
        return DENSE
    generator, anatomy, cuts = torch.Generator().manual_seed(seed), discover(pipe.transformer), dict[str, Cut]()
    gone = [anatomy.blocks[1]] if level == 2 else []
    for layer in anatomy.layers:
        if not layer.name.startswith(tuple(f"{block.name}." for block in gone)):
            kept = torch.randperm(layer.groups, generator=generator)[: layer.kept(level, 4)].sort().values
            cuts[layer.name] = Cut(kept, bias=torch.randn(16, generator=generator) * 0.1)
    bypasses = {b.name: Bypass(torch.randn(16, 16, generator=generator) * 0.1, torch.ones(16)) for b in gone}
    return Plan(cuts, bypasses)


def ten(
    pipe: DiTPipeline, seed: int = 0, placement: Placement | None = None, levels: Sequence[int] = LEVELS
) -> tuple[Any, ...]:
    """Arguments of ``routed``: ten stages, each with weights of its own, at three levels."""
    plans = [at_level(pipe, level, 10 * seed + i) for i, level in enumerate(levels)]
    return pipe.transformer, stages_of(pipe, len(levels), Sampling(10)), opened(pipe, plans, placement)


def shown(pipe: DiTPipeline, steps: int = 10) -> Tensor:
    return images(pipe, steps=steps)


@pytest.mark.parametrize("way", WAYS)
def test_a_level_compiles_as_often_as_the_dense_model_and_never_again(way: Way) -> None:
    pipe, backend = tiny(), Counting()
    dense = shown(pipe)
    with routed(*ten(pipe)):
        slim = [shown(pipe), shown(pipe, 13)]
    with routed(*ten(pipe, seed=1)):
        others = shown(pipe)
    assert not torch.equal(slim[0], others)

    way(pipe, backend)
    before = snapshot(pipe.transformer)
    assert torch.equal(shown(pipe), dense)
    once = backend.count
    with routed(*ten(pipe)):
        assert torch.equal(shown(pipe), slim[0])
        count = backend.count
        assert once < count <= len(set(LEVELS)) * once + (way is not whole)  # a skipped block's stand-in is one more
        assert torch.equal(shown(pipe), slim[0])
        assert torch.equal(shown(pipe, 13), slim[1])
    assert_same(before, snapshot(pipe.transformer))
    assert torch.equal(shown(pipe), dense)
    with routed(*ten(pipe)):
        assert torch.equal(shown(pipe), slim[0])
    with routed(*ten(pipe, seed=1)):
        assert torch.equal(shown(pipe), others)
    assert backend.count == count, "levels that were compiled were compiled again"


class Ahead:
    """Streaming as a device with streams of its own does it."""

    def open(self, denoiser: Any, anatomy: Any, plans: Sequence[Plan]) -> StreamedStore:
        return StreamedStore(denoiser, anatomy, plans, 1.15, ahead=True)


def test_wherever_weights_wait_the_levels_share_their_code() -> None:
    pipe, backend = tiny(), Counting()
    replaced(pipe, backend)
    shown(pipe)
    with routed(*ten(pipe)):
        slim, count = shown(pipe), backend.count
    for placement in (Streamed(), Ahead(), Compact()):
        with routed(*ten(pipe, placement=placement)):
            assert torch.equal(shown(pipe), slim)
            assert torch.equal(shown(pipe), slim)
    assert backend.count == count


def test_more_levels_than_the_recompile_limit_are_compiled_all_the_same() -> None:
    pipe, backend = tiny(layers=1), Counting()
    in_place(pipe, backend)
    shown(pipe)
    once, counts = backend.count, list[int]()
    with config.patch(cache_size_limit=once):
        for level in (1, 3):
            store = opened(pipe, [at_level(pipe, level, 0)])
            with routed(pipe.transformer, stages_of(pipe, 1), store):
                shown(pipe)
            counts.append(backend.count)
    assert counts == [2 * once, 3 * once]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_recompile_limit_is_the_users_own_outside_of_the_denoiser(error: type[BaseException]) -> None:
    pipe, limit = tiny(), config.cache_size_limit
    seen, outside = list[int](), list[int]()
    pipe.vae.decoder.register_forward_pre_hook(lambda *_: outside.append(config.cache_size_limit))
    block = pipe.transformer.transformer_blocks[0].attn1
    block.register_forward_pre_hook(lambda *_: seen.append(config.cache_size_limit))
    with routed(*ten(pipe)):
        shown(pipe, 3)
    assert set(seen) == {config.accumulated_cache_size_limit}
    assert outside == [limit]

    def stop(*_: Any) -> None:
        raise error

    with pytest.raises(error), routed(*ten(pipe)):  # noqa: PT012
        block.register_forward_pre_hook(stop)
        shown(pipe)
    assert config.cache_size_limit == limit


@pytest.mark.parametrize("way", [in_place, replaced, whole])
def test_compiling_while_routed_is_compiling_before(way: Way) -> None:
    layers, levels = (1, (1, 0)) if way is whole else (2, LEVELS)  # a whole denoiser takes seconds to compile
    pipe, backend = tiny(layers=layers), Counting()
    dense = shown(pipe)
    with routed(*ten(pipe, levels=levels)):
        slim = shown(pipe, 13)
        shown(pipe, 5)  # ends at level 0
        way(pipe, backend)
        assert torch.equal(shown(pipe, 13), slim)
        count = backend.count
        assert count >= len(set(levels))
        assert torch.equal(shown(pipe, 13), slim)
    assert torch.equal(shown(pipe), dense)
    with routed(*ten(pipe, levels=levels)):
        assert torch.equal(shown(pipe, 13), slim)
    assert backend.count == count


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_model_has_the_names_of_the_plain_one(way: Way) -> None:
    pipe, plain = tiny(), tiny().transformer
    way(pipe, Counting())
    anatomy = discover(pipe.transformer)
    assert anatomy == discover(plain)
    assert fingerprint(pipe.transformer) == fingerprint(plain)
    assert left_dense(pipe.transformer, anatomy) == left_dense(plain, anatomy)


@pytest.mark.parametrize("way", BLOCKS)
def test_a_result_of_a_plain_pipeline_runs_compiled_and_one_of_a_compiled_pipeline_plain(
    way: Way, tmp_path: Path
) -> None:
    plain, compiled = tiny(), tiny()
    way(compiled, Counting())
    results = [result_of(pipe, both(pipe, 1)) for pipe in (plain, compiled)]
    with results[1].routed(plain):
        expected = images(plain)
    with results[0].routed(compiled):
        assert torch.equal(images(compiled), expected)
    results[0].apply(compiled)
    assert torch.equal(images(compiled), expected)
    results[0].remove(compiled)
    export(results[0], compiled, tmp_path / "export")
    assert torch.equal(images(open_export(tmp_path / "export")), expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_pipeline_is_studied_uncompiled(way: Way, study: Any) -> None:
    pipe, backend = tiny(), Counting()
    way(pipe, backend)
    found = prepare(pipe, settings())
    assert backend.count == 0
    pairs = [(stage, level) for stage in range(3) for level in (1, 3)]
    plans = ([part.library.plan(stage, (level,)) for stage, level in pairs] for part in (found, study))
    assert_same_plans(*plans)


@pytest.mark.slow
def test_compressing_a_compiled_pipeline_finds_what_compressing_a_plain_one_finds(fast: Compressed) -> None:
    pipe = tiny()
    whole(pipe, Counting())
    found = compress(pipe, 0.6, settings())
    assert (found.schedule, found.base, found.report) == (fast.schedule, fast.base, fast.report)
    assert found.origin == fast.origin
    assert_same_plans(found.plans, fast.plans)


def test_a_wrapper_around_the_whole_denoiser_is_refused() -> None:
    pipe = tiny()
    result = result_of(pipe, DENSE)
    pipe.transformer = torch.compile(pipe.transformer, backend=Counting())
    with (
        pytest.raises(UnsupportedModel, match=r"found OptimizedModule.*call `compile\(\)` on its blocks"),
        result.routed(pipe),
    ):
        pass


def test_a_stage_has_the_same_addresses_and_shapes_in_every_call() -> None:
    """What CUDA graphs need."""
    pipe = tiny()
    denoiser, stages, store = ten(pipe)
    seen = [list[dict[str, Any]]() for _ in LEVELS]

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        held = dict(module.named_parameters())
        for i, block in enumerate(module.transformer_blocks):
            if "forward" in vars(block):
                stand_in = block.forward.__self__
                held |= {f"{i} {name}": parameter for name, parameter in stand_in.named_parameters()}
        stage = stages.index(float(kwargs["timestep"][0]))
        seen[stage].append({name: (p.data_ptr(), p.shape, p.stride()) for name, p in held.items()})

    with routed(denoiser, stages, store):
        denoiser.register_forward_pre_hook(note, with_kwargs=True)
        for steps in (10, 10, 23):
            shown(pipe, steps)
    assert all(len(calls) > 3 and all(call == calls[0] for call in calls) for calls in seen)
    assert seen[0][0] != seen[3][0], "stages of one level have weights of their own"
    assert [("1 weight" in calls[0]) for calls in seen] == [level == 2 for level in LEVELS]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's own imports
def test_inductor_gives_what_eager_gives() -> None:
    pipe = tiny(layers=2)
    arguments = pipe.transformer, stages_of(pipe, 2), opened(pipe, [at_level(pipe, 2, seed) for seed in (0, 1)])
    with routed(*arguments):
        eager = images(pipe)
    in_place(pipe, "inductor")
    with routed(*arguments):
        torch.testing.assert_close(images(pipe), eager, atol=1e-4, rtol=0)
