"""Sequential offload: every module's weights wait in host memory until its own call, those of stages too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import accelerate
import pytest
import torch
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, LITTLE, settings, tiny
from torch import Tensor, nn

from diff_es import Compact, Compressed, DiffESError, Resident, Run, Streamed, UnsupportedModel, Width, compress
from diff_es.layers import DENSE, Anatomy, Bypass, Cut, Plan, discover, named_parameters
from diff_es.pipelines.probes import Probe, make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pruning.method import Method
from diff_es.routing.placements import Placed, Stitched
from diff_es.routing.realise import output_of
from diff_es.routing.routing import routed
from diff_es.trajectory.stages import Stages

SHORT = replace(CALL, num_inference_steps=3)
ALL = {
    "DiT": (tiny, SHORT),
    **{name: (case.make, replace(case.sampling, num_inference_steps=3)) for name, case in CASES.items()},
}


def solved(denoiser: nn.Module, anatomy: Anatomy, seed: int, skipped: tuple[str, ...] = ()) -> Plan:
    """Random groups of every layer outside of the skipped blocks, with new output projections and biases."""
    g, cuts = torch.Generator().manual_seed(seed), dict[str, Cut]()
    gone = tuple(f"{name}." for name in skipped)
    for layer in anatomy.layers:
        if gone and layer.name.startswith(gone):
            continue
        if layer.follows is None:
            count = int(torch.randint(1, layer.groups, (), generator=g))
            kept = torch.randperm(layer.groups, generator=g)[:count].sort().values
        else:
            kept = cuts[layer.follows].kept
        dense = output_of(denoiser, layer).weight
        weight = torch.randn(len(dense), len(kept) * layer.width, *dense.shape[2:], generator=g) / 8
        cuts[layer.name] = Cut(kept, weight, torch.randn(len(dense), generator=g) / 8)
    bypasses = {
        block.name: Bypass(**{part: torch.randn(shape, generator=g) / 8 for part, shape in block.shapes().items()})
        for block in anatomy.blocks
        if block.name in skipped
    }
    return Plan(cuts, bypasses)


def plans_of(pipe: Any) -> list[Plan]:
    """Three stages: all layers thinner, none, and thinner again where the first block is not skipped."""
    denoiser, anatomy = denoiser_of(pipe), discover(denoiser_of(pipe))
    return [solved(denoiser, anatomy, 0), DENSE, solved(denoiser, anatomy, 1, (anatomy.blocks[0].name,))]


def under(pipe: Any, stages: Stages, plans: list[Plan], placement: Placed | None = None) -> Any:
    denoiser = denoiser_of(pipe)
    return routed(denoiser, stages, partial((placement or Resident()).open, denoiser, discover(denoiser), plans))


def offload(pipe: Any) -> None:
    """What ``enable_sequential_cpu_offload`` does, which names the CPU "cpu:0"; accelerate fails at that."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)


def hanging(denoiser: nn.Module) -> dict[str, Any]:
    """What hangs on the modules, but for parameters, which accelerate makes anew at every call."""
    state = dict[str, Any]()
    for name, module in denoiser.named_modules():
        own = {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
        state |= {f"{name}.{key}": value for key, value in own.items()}
        for key, hooks in vars(module).items():
            if isinstance(hooks, dict) and key.endswith("hooks"):
                state[f"{name}.{key}"] = list(hooks)
        if (hook := own.get("_hf_hook")) is not None:
            for i, one in enumerate(vars(hook).get("hooks", (hook,))):
                state[f"{name}|map {i}"] = id(one.weights_map)
        for leaf, parameter in module.named_parameters(recurse=False):
            state[f"{name}.{leaf}"] = (parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad)
    return state


def values(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in named_parameters(denoiser)}


def assert_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in some.items())


@pytest.mark.parametrize("name", ALL)
def test_it_changes_no_result_and_comes_back_whole(name: str) -> None:
    make, sampling = ALL[name]
    plain, pipe = made(make), made(make)
    probes, plans = make_probes(plain, 2, 0, "test"), plans_of(plain)
    dense, weights = sample(plain, probes, sampling), values(denoiser_of(plain))
    stages = Stages.split(plain.scheduler.timesteps.tolist(), 3)
    with under(plain, stages, plans):
        pruned = sample(plain, probes, sampling)
    assert not torch.equal(pruned, dense)
    offload(pipe)
    denoiser = denoiser_of(pipe)
    assert torch.equal(sample(pipe, probes, sampling), dense)
    before = hanging(denoiser)
    assert_equal(weights, values(denoiser))
    for _ in range(2):
        with under(pipe, stages, plans):
            assert torch.equal(sample(pipe, probes, sampling), pruned)
            assert all(parameter.is_meta for parameter in denoiser.parameters())
        assert hanging(denoiser) == before
        assert_equal(weights, values(denoiser))
        assert torch.equal(sample(pipe, probes, sampling), dense)
    pipe.remove_all_hooks()
    assert_equal(weights, values(denoiser))
    assert torch.equal(sample(pipe, probes, sampling), dense)


@pytest.fixture(scope="module")
def fast() -> Compressed:
    """Of the tiny DiT, with factored corrections: it runs under every placement."""
    return compress(
        tiny(), 0.6, settings(**LITTLE, sampling=SHORT, method=Method(Width(8, dense=()))), run=Run(placement=Compact())
    )


def drawn(pipe: Any) -> Tensor:
    return sample(pipe, [Probe(i, i) for i in (1, 2)], SHORT)


@pytest.mark.parametrize("placement", [None, Resident(), Streamed(), Compact()])
def test_a_result_runs_under_every_placement(fast: Compressed, placement: Placed | None) -> None:
    pipe, dense = tiny(), drawn(tiny())
    with fast.routed(pipe):
        pruned = drawn(pipe)
    offload(pipe)
    with fast.routed(pipe, placement):
        assert torch.equal(drawn(pipe), pruned)
    assert torch.equal(drawn(pipe), dense)
    fast.apply(pipe, placement)
    assert torch.equal(drawn(pipe), pruned)
    fast.remove(pipe)
    assert torch.equal(drawn(pipe), dense)


def test_an_exception_leaves_the_dense_model(fast: Compressed) -> None:
    pipe, dense = tiny(), drawn(tiny())
    offload(pipe)
    handle = pipe.transformer.transformer_blocks[1].ff.net[2].register_forward_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt), fast.routed(pipe):
        drawn(pipe)
    handle.remove()
    assert torch.equal(drawn(pipe), dense)
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_another_base_model_is_refused(fast: Compressed) -> None:
    pipe = tiny(seed=1)
    offload(pipe)
    with pytest.raises(DiffESError, match="hash of the base model"), fast.routed(pipe):
        pass


@pytest.mark.parametrize("placement", [Resident(), Streamed()])
def test_it_is_switched_on_and_off_while_routed(fast: Compressed, placement: Placed) -> None:
    pipe, dense = tiny(), drawn(tiny())
    with fast.routed(pipe, placement):
        pruned = drawn(pipe)
        offload(pipe)
        assert all(parameter.is_meta for parameter in pipe.transformer.parameters())
        assert torch.equal(drawn(pipe), pruned)
    assert torch.equal(drawn(pipe), dense)
    with fast.routed(pipe, placement):
        assert torch.equal(drawn(pipe), pruned)
        pipe.remove_all_hooks()
        assert torch.equal(drawn(pipe), pruned)
    assert torch.equal(drawn(pipe), dense)
    assert not any(parameter.is_meta for parameter in pipe.transformer.parameters())


def test_what_cannot_run_is_refused_by_name(fast: Compressed) -> None:
    pipe = tiny()
    offload(pipe)
    with pytest.raises(UnsupportedModel, match=r"pipe: .*found sequential offload\. Call pipe\.remove_all_hooks\(\)"):
        compress(pipe, 0.7, settings())
    with pytest.raises(DiffESError, match=r"Stitched: .*found sequential offload\. Compare without it"):
        fast.apply(pipe, Stitched())
    other = tiny()
    other.transformer.transformer_blocks[1].attn1.to("meta")
    message = r"expected weights in memory, found transformer_blocks\.1\.attn1\.to_q\.weight on the meta device"
    with pytest.raises(UnsupportedModel, match=message), fast.routed(other):
        pass
