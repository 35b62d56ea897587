"""Every kind of layer that can be declared, all the way: calibrated, ranked, routed, saved and loaded."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from tests.helpers.foreign import CASES, OWN, TIMES, Case, Own, masked
from tests.helpers.tiny import assert_same, snapshot
from tests.helpers.tiny import settings as search
from torch import Tensor, nn

from diff_es import (
    Compact,
    Compressed,
    Depth,
    DiffESError,
    Levers,
    Method,
    Resident,
    Sampling,
    Streamed,
    UnsupportedModel,
    Width,
    compress,
    load,
)
from diff_es.compression.study import prepare
from diff_es.execution.shipping import shipped
from diff_es.layers import Anatomy, Kind, Plan, Residual, Weights, anatomy_of, declared, discover, often_seen
from diff_es.layers.fingerprint import fingerprint
from diff_es.pruning.calibration import Gatherer
from diff_es.pruning.compaction import Compaction
from diff_es.pruning.declare import declare
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.library import Library
from diff_es.pruning.statistics import Statistics
from diff_es.pruning.wanted import Wanted
from diff_es.routing.realise import realise
from diff_es.routing.routing import routed
from diff_es.routing.switch import Switch
from diff_es.trajectory.stages import Schedule, Stages
from diff_es.utils.progress import Reporter

STAGES = Stages.split(TIMES, 2)


def gathered(case: Case, model: nn.Module, anatomy: Anatomy) -> Statistics:
    with Gatherer(model, STAGES, Wanted(anatomy.layers, anatomy.blocks)) as gatherer:
        for seed in (10, 20, 30):
            gatherer.begin()
            case.run(model, seed)
    return gatherer.statistics()


def library_of(case: Case, model: nn.Module) -> Library:
    anatomy = case.declared(model)
    method = Method(Width(4, multiple=1, dense=()), granularity=Granularity.WHOLE)
    return Library(model, anatomy, gathered(case, model, anatomy), method, Reporter(quiet=True))


def by_hand(case: Case, model: nn.Module, anatomy: Anatomy, plans: list[Plan]) -> Tensor:
    twins = [masked(model, anatomy, plan) for plan in plans]
    calls = [case.call(twins[STAGES.index(t)], t, i).flatten(1) for i, t in enumerate(TIMES)]
    return torch.stack(calls)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_declared_layer_is_calibrated_ranked_and_routed_as_the_masked_dense_one(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before, dense = snapshot(model), case.run(model)
    library = library_of(case, model)
    anatomy = library.anatomy
    assert tuple(layer.groups for layer in anatomy.layers) == case.groups
    plans = [library.plan(0, (1,)), library.plan(1, (2,))]
    expected = by_hand(case, model, anatomy, plans)
    assert not close(expected, dense)
    for placement in (Resident(), Streamed()):
        with routed(model, STAGES, partial(placement.open, model, anatomy, plans)):
            assert close(case.run(model), expected)
    factored = [Compaction(library, 0.05).plan(stage, (level,)) for stage, level in ((0, 1), (1, 2))]
    assert any(cut.factors for cut in factored[1].cuts.values())
    results = list[Tensor]()
    for place in (Resident(), Compact()):
        with routed(model, STAGES, partial(place.open, model, anatomy, factored)):
            results.append(case.run(model))
    assert close(results[1], results[0])
    assert case.run(model).equal(dense)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("name", CASES)
def test_compensation_on_what_was_calibrated_comes_closer_than_none(name: str) -> None:
    """By no more than the ridge could cost: the moments are those of what the projection sees."""
    case = CASES[name]
    model = case.model()
    library = library_of(case, model)
    plan = library.plan(0, (2,))
    sliced = Plan({key: type(cut)(cut.kept) for key, cut in plan.cuts.items()})
    dense, error = case.run(model, 10)[:2], list[float]()
    for one in (plan, sliced):
        switch = Switch(model)
        switch.to(realise(model, library.anatomy, one))
        error.append(float((case.run(model, 10)[:2] - dense).square().mean()))
        switch.to(Weights())
    assert error[0] < error[1]


def test_what_is_declared_is_named_as_what_it_is() -> None:
    model = CASES["pixels"].model()
    anatomy = CASES["pixels"].declared(model)
    assert {layer.kind for layer in anatomy.layers} == {Kind.RESNET}
    assert anatomy.layers[0].counts == (("blocks.0.norm", "num_groups", 1), ("blocks.0.norm", "num_channels", 4))
    assert [(block.width, block.pixels) for block in anatomy.blocks] == [(8, True)] * 2
    tokens = CASES["parallel"].declared(CASES["parallel"].model())
    assert [layer.start for layer in tokens.layers] == [12, 12, 44, 44]
    assert len({layer.name for layer in tokens.layers}) == 4


def test_a_result_is_saved_and_runs_on_a_twin_that_is_declared_the_same(tmp_path: Path) -> None:
    case = CASES["parallel"]
    model = case.model()
    library = library_of(case, model)
    plans = (library.plan(0, (1,)), library.plan(1, (3,)))
    made = Compressed(Schedule(STAGES, ((1,), (3,))), plans, Sampling(4), fingerprint(model))
    with made.routed(model):
        expected = case.run(model)
    made.save(tmp_path / "made")
    twin, loaded = case.model(), load(tmp_path / "made")
    with pytest.raises(UnsupportedModel, match=r"pipe: expected .* declared, found a Tokens. Call diff_es.*declare"):
        loaded.apply(twin)
    case.declared(twin)
    dense = case.run(twin)
    with loaded.routed(twin):
        assert case.run(twin).equal(expected)
    loaded.apply(twin)
    assert case.run(twin).equal(expected)
    loaded.remove(twin)
    assert case.run(twin).equal(dense)
    assert not expected.equal(dense)


def test_the_anatomy_that_was_declared_is_what_everything_goes_by() -> None:
    case = CASES["parallel"]
    model = case.model()
    assert anatomy_of(model) == discover(model)
    anatomy = case.declared(model)
    assert anatomy_of(model) is anatomy
    assert anatomy_of(case.model()) == discover(model)
    assert discover(model).layers == ()


def own() -> Any:
    torch.manual_seed(0)
    pipe = DDIMPipeline(Own().eval().requires_grad_(False), DDIMScheduler())
    declare(pipe.unet, OWN, lambda: pipe.unet(torch.randn(2, 3, 8, 8), torch.tensor(5.0)), timestep="t")
    return pipe


def shown(pipe: Any, steps: int) -> Tensor:
    found: Tensor = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np").images
    return torch.as_tensor(found)


@pytest.mark.parametrize("levers", [Levers.PRUNE, Levers.BOTH])
def test_a_declared_denoiser_in_a_pipeline_is_compressed_saved_and_run(levers: Levers, tmp_path: Path) -> None:
    """By all that the library does: nothing asks discovery, which finds nothing in it."""
    pipe = own()
    dense = shown(pipe, 6)
    method = Method(Width(4, dense=()))
    small = search(sampling=Sampling(6, batch=4), levers=levers, stages=2, method=method, corrections=0, generations=1)
    fast = compress(pipe, 0.6, small)
    with fast.routed(pipe):
        expected = shown(pipe, 6)
    assert shown(pipe, 6).equal(dense)
    assert not expected.equal(dense)
    fast.save(tmp_path / "fast")
    with load(tmp_path / "fast").routed(own()) as twin:
        assert shown(twin, 6).equal(expected)
    undeclared = DDIMPipeline(deepcopy(pipe.unet), DDIMScheduler())
    with pytest.raises(DiffESError, match=r"diff_es\.declare|declare\(..., timestep="):
        load(tmp_path / "fast").apply(undeclared)


def test_a_copy_of_a_study_in_a_worker_goes_by_the_declaration() -> None:
    ready = prepare(own(), search(sampling=Sampling(4), stages=2, method=Method(Width(4, dense=()))))
    other = shipped(ready, ready.pipe).opened("cpu")
    assert other.pipe.unet is not ready.pipe.unet
    assert declared(other.pipe.unet) == declared(ready.pipe.unet) is not None


def test_a_cast_while_routed_casts_every_parameter() -> None:
    case = CASES["parallel"]
    model = case.model()
    library = library_of(case, model)
    plans = [library.plan(0, (1,)), library.plan(1, (2,))]
    with routed(model, STAGES, partial(Resident().open, model, library.anatomy, plans)):
        case.run(model)
        model.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


class Linear(nn.Module):
    """A block of pixels that adds a linear map of its channels; as wide and high as it has channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.mix(x)
        return found


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Linear(), Linear())

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        found: Tensor = self.blocks(x)
        return found


def test_a_block_of_pixels_is_skipped_along_its_channels_without_being_told() -> None:
    case = Case(Stack, (Residual("blocks.*"),), (6, 6, 6))
    model = case.model()
    anatomy = case.declared(model)
    library = Library(model, anatomy, gathered(case, model, anatomy), Method(Depth()), Reporter(quiet=True))
    plan = library.plan(0, (1,))
    assert len(plan.bypasses) == 1
    with routed(model, Stages(()), partial(Resident().open, model, anatomy, [plan])):
        skipped = case.run(model)
    dense = case.run(model)
    assert (skipped - dense).norm() < 0.05 * dense.norm()


KINDS: Any = {
    (kind, dimensions): getattr(nn, f"{kind}{dimensions}d")
    for kind in ("Conv", "ConvTranspose")
    for dimensions in (1, 2, 3)
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(st.data())
@bounded(max_examples=100, deadline=None, derandomize=True, database=None)
def test_what_taps_see_of_pixels_is_what_a_convolution_of_ones_adds_up(data: st.DataObject) -> None:
    kind, dimensions = data.draw(st.sampled_from(sorted(KINDS)))
    few = st.tuples(*[st.integers(1, 3)] * dimensions)
    sizes, kernel, stride, dilation = (data.draw(few) for _ in range(4))
    sizes = tuple(size + 3 for size in sizes)
    most = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(min(n - 1, m) for n, m in zip(data.draw(few), most, strict=True))
    extra: dict[str, Any] = {"padding": padding, "stride": stride}
    if kind == "Conv":
        extra["padding_mode"] = data.draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
        if data.draw(st.booleans()):
            extra |= {"padding": data.draw(st.sampled_from(["same", "valid"])), "stride": 1}
        sizes = tuple(size + (k - 1) * d for size, k, d in zip(sizes, kernel, dilation, strict=True))
    else:
        extra["output_padding"] = tuple(min(n - 1, s - 1) for n, s in zip(data.draw(few), stride, strict=True))
    module = KINDS[kind, dimensions](1, 1, kernel, dilation=dilation, bias=False, **extra)
    nn.init.ones_(module.weight)
    x = torch.ones(1, 1, *sizes, requires_grad=True)
    y = module(x)
    y.sum().backward()
    often, looks = often_seen(module, sizes, y.shape[2:])
    assert x.grad is not None
    assert often.equal(x.grad[0, 0])
    assert looks == y.numel() * module.weight.numel()
