"""Laws of routing: nothing pruned is nothing changed, what is pruned equals smaller networks, and no trace stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from tests.helpers.tiny import (
    CALL,
    assert_same,
    by_hand,
    images,
    opened,
    random_plan,
    slimmed,
    snapshot,
    stages_of,
    tiny,
)
from torch.utils._python_dispatch import TorchDispatchMode

from diff_es import DiffESError
from diff_es.layers import DENSE, Plan
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.routing.placements import Store
from diff_es.routing.routing import Routing, routed, routing_of
from diff_es.trajectory.stages import Stages

SAMPLERS = (
    {"scheduler": DDIMScheduler},
    {"scheduler": DPMSolverMultistepScheduler},
    {"scheduler": EulerDiscreteScheduler},
)
MODELS = (*SAMPLERS, {"sigma": True}, {"activation": "geglu"}, {"dtype": torch.bfloat16}, {"decoder": AutoencoderDC})


def mixed(pipe: DiTPipeline) -> tuple[Plan, ...]:
    """Three stages: thinned, dense, and thinned with a skipped block."""
    return (random_plan(pipe, 1), DENSE, random_plan(pipe, 2, skip=[1]))


def prepared(pipe: DiTPipeline) -> tuple[Any, Stages, Callable[[], Store]]:
    """Arguments of ``routed`` for the mixed plans."""
    return pipe.transformer, stages_of(pipe, 3), opened(pipe, mixed(pipe))


@pytest.mark.parametrize("changes", MODELS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_level_0_everywhere_is_bitwise_the_dense_pipeline(changes: dict[str, Any], guidance: float) -> None:
    pipe = tiny(**changes)
    dense = images(pipe, guidance=guidance)
    with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, [DENSE] * 3)):
        assert torch.equal(images(pipe, guidance=guidance), dense)
    assert torch.equal(images(pipe, guidance=guidance), dense)


@pytest.mark.parametrize("changes", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("steps", [5, 7])
def test_a_routed_run_equals_a_stitched_one_of_smaller_networks(
    changes: dict[str, Any], guidance: float, steps: int
) -> None:
    pipe = tiny(**changes)
    plans = mixed(pipe)
    networks = [slimmed(pipe.transformer, plan) for plan in plans]
    stages = stages_of(pipe, 3)
    pipe.scheduler.set_timesteps(steps)
    turns = [networks[stages.index(float(t))] for t in pipe.scheduler.timesteps]
    stitched = list(by_hand(pipe, turns, [3, 4], guidance))[-1]
    with routed(pipe.transformer, stages, opened(pipe, plans)):
        found = images(pipe, [3, 4], steps, guidance)
    expected = (pipe.vae.decode(stitched).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    dense = images(pipe, [3, 4], steps, guidance)
    assert (found - dense).abs().max() > 0.01, "the plans change nothing: the comparison is empty"


@pytest.mark.parametrize("changes", [{"activation": "geglu"}, {"sigma": True}, {"head_size": 24, "heads": 3}])
def test_the_step_of_a_stage_is_the_step_at_its_index(changes: dict[str, Any]) -> None:
    """On the trajectory that was split, stage s runs steps floor(s T / S) to floor((s + 1) T / S) - 1."""
    pipe = tiny(**changes)
    plans = mixed(pipe)
    turns = [slimmed(pipe.transformer, plans[stage]) for stage in (0, 0, 1, 1, 2, 2)]
    stitched = list(by_hand(pipe, turns, [3, 4], CALL.guidance))[-1]
    with routed(pipe.transformer, stages_of(pipe, 3), opened(pipe, plans)):
        found = images(pipe, [3, 4])
    torch.testing.assert_close(found, (pipe.vae.decode(stitched).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_leaving_restores_everything_and_leaves_nothing() -> None:
    pipe = tiny()
    arguments = prepared(pipe)
    before, dense = snapshot(pipe.transformer), images(pipe)
    with routed(*arguments):
        assert not torch.equal(images(pipe), dense)
        state = pipe.transformer.state_dict()
    assert all(torch.equal(before[f"value of {name}"], value) for name, value in state.items())
    assert len(state) == sum(name.startswith("value of ") for name in before)
    assert_same(before, snapshot(pipe.transformer))
    assert routing_of(pipe.transformer) is None
    assert torch.equal(images(pipe), dense)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_leaving_by_an_exception_in_mid_run_restores_everything(error: type[BaseException], step: int) -> None:
    pipe = tiny()
    arguments = prepared(pipe)
    before, dense, seen = snapshot(pipe.transformer), images(pipe), list[int]()

    def stop(*_: Any) -> None:
        seen.append(1)
        if len(seen) > step:
            raise error

    with pytest.raises(error), routed(*arguments):  # noqa: PT012
        handle = pipe.transformer.pos_embed.register_forward_hook(stop)
        try:
            images(pipe)
        finally:
            handle.remove()
    assert len(seen) == step + 1
    assert_same(before, snapshot(pipe.transformer))
    assert torch.equal(images(pipe), dense)
    with routed(*arguments):
        again = images(pipe)
    with routed(*prepared(tiny())), routed(*prepared(pipe)):
        assert torch.equal(images(pipe), again)


def test_a_run_cut_short_does_not_change_the_next_one() -> None:
    pipe = tiny()

    def stop(*_: Any) -> None:
        raise RuntimeError("stop")

    with routed(*prepared(pipe)):
        whole = images(pipe)
        handle = pipe.vae.decoder.register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="stop"):
            images(pipe, steps=4)
        handle.remove()
        assert torch.equal(images(pipe), whole)


def test_steps_batch_and_guidance_may_change_from_call_to_call() -> None:
    pipe = tiny()
    calls = [([1, 2], 6, 2.0), ([3], 9, 1.0), ([3, 4, 5], 3, 7.5), ([1, 2], 1, 1.0), ([1, 2], 6, 2.0)]
    fresh = []
    for labels, steps, guidance in calls:
        with routed(*prepared(pipe)):
            fresh.append(images(pipe, labels, steps, guidance))
    with routed(*prepared(pipe)):
        for (labels, steps, guidance), expected in zip(calls, fresh, strict=True):
            assert torch.equal(images(pipe, labels, steps, guidance), expected)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_late_start_runs_the_stage_of_its_timestep(first: int) -> None:
    """As image-to-image does: the trajectory begins at a later step, at whatever resolution the denoiser takes."""
    pipe = tiny()
    plans, stages = mixed(pipe), stages_of(pipe, 3)
    networks = [slimmed(pipe.transformer, plan) for plan in plans]
    pipe.scheduler.set_timesteps(6)
    latents, labels = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    with routed(pipe.transformer, stages, opened(pipe, plans)):
        for t in pipe.scheduler.timesteps[first:]:
            call = {"timestep": t.expand(2), "class_labels": labels}
            expected = networks[stages.index(float(t))](latents, **call).sample
            torch.testing.assert_close(pipe.transformer(latents, **call).sample, expected, atol=1e-5, rtol=0)


def test_interleaved_steps_of_two_pipelines_do_not_disturb_each_other() -> None:
    one, other, dense = tiny(), tiny(seed=1, heads=2), tiny(seed=2)

    def steps(pipe: DiTPipeline) -> Any:
        return by_hand(pipe, [pipe.transformer] * 6, [1, 2], 2.0)

    with routed(*prepared(one)):
        alone = list(steps(one))
    with routed(*prepared(other)):
        other_alone = list(steps(other))
    expected = list(zip(alone, other_alone, steps(dense), strict=True))
    with routed(*prepared(one)), routed(*prepared(other)):
        together = list(zip(steps(one), steps(other), steps(dense), strict=True))
    assert all(torch.equal(a, b) for x, y in zip(together, expected, strict=True) for a, b in zip(x, y, strict=True))


def test_two_samplers_may_take_turns_on_one_routed_denoiser() -> None:
    pipe = tiny()

    def steps(count: int, labels: list[int]) -> Any:
        return by_hand(pipe, [pipe.transformer] * count, labels, 2.0)

    with routed(*prepared(pipe)):
        alone = [list(steps(6, [1]))[-1], list(steps(9, [7, 8]))[-1]]
        turns = steps(9, [7, 8])
        first = [latents for latents, _ in zip(steps(6, [1]), turns, strict=False)]
        assert torch.equal(first[-1], alone[0])
        assert torch.equal(list(turns)[-1], alone[1])


def test_a_second_pipeline_is_untouched() -> None:
    pipe, bystander = tiny(), tiny()
    before, dense = snapshot(bystander.transformer), images(bystander)
    with routed(*prepared(pipe)):
        images(pipe)
        assert_same(before, snapshot(bystander.transformer))
        assert torch.equal(images(bystander), dense)


def test_routing_twice_is_refused_and_the_first_goes_on() -> None:
    pipe = tiny()
    arguments = prepared(pipe)
    with routed(*arguments):
        found = images(pipe)
        with (
            pytest.raises(DiffESError, match=r"denoiser: expected .* not routed, found .* routed already. Leave"),
            routed(*arguments),
        ):
            pass
        assert torch.equal(images(pipe), found)
    with routed(*arguments):
        assert torch.equal(images(pipe), found)


def test_attach_and_detach_are_what_the_context_does() -> None:
    pipe = tiny()
    arguments, before = prepared(pipe), snapshot(pipe.transformer)
    with routed(*arguments):
        expected = images(pipe)
    routing = Routing(*arguments)
    routing.attach()
    assert routing_of(pipe.transformer) is routing
    assert torch.equal(images(pipe), expected)
    routing.detach()
    assert_same(before, snapshot(pipe.transformer))


class Reads(TorchDispatchMode):
    """Counts how often a tensor is read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_denoiser_call_reads_the_timestep_once() -> None:
    pipe = tiny()
    latents, labels = torch.zeros(2, 4, 8, 8), torch.tensor([1, 2])
    arguments = prepared(pipe)

    @torch.no_grad()
    def reads(*timesteps: int) -> int:
        with Reads() as mode:
            for t in timesteps:
                pipe.transformer(latents, timestep=torch.full((2,), t), class_labels=labels)
        return mode.count

    dense = reads(999, 500, 400, 1)
    with routed(*arguments):
        assert reads(999, 500, 400, 1) == dense + 4


def test_a_probe_does_not_depend_on_its_batch(study: Any) -> None:
    probes = make_probes(study.pipe, 3, 0, "route")
    together = sample(study.pipe, probes, CALL)
    alone = torch.cat([sample(study.pipe, [probe], CALL) for probe in probes])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_denoiser_that_changes_while_routed_is_refused_and_comes_back_whole() -> None:
    """Where nobody can tell whether the weights still fit."""
    pipe = tiny()
    arguments = prepared(pipe)
    with routed(*arguments):
        images(pipe)
        pipe.to(torch.bfloat16)
        for _ in range(2):
            with pytest.raises(DiffESError, match=r"expected one as it was when it was routed, found"):
                images(pipe)
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}
    images(pipe)


def test_a_routed_pipeline_can_be_forgotten() -> None:
    pipe = tiny()
    arguments = prepared(pipe)
    Routing(*arguments).attach()
    gone = weakref.ref(pipe.transformer)
    del pipe, arguments
    gc.collect()
    assert gone() is None
