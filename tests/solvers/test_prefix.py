"""Laws of runs that go on from what earlier ones know: the same to the bit, for every sampler, with less of it run."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.tiny import CALL, calls_of, tiny
from torch import Tensor

from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pipelines.tracing import trace
from diff_es.solvers.custom_timesteps import stepped
from diff_es.solvers.prefix_cache import After, PrefixCache, Replay, Result
from diff_es.solvers.samplers import STEPPABLE, is_deterministic, trajectory
from diff_es.trajectory.corrections import Recording, fitting
from diff_es.trajectory.timesteps import trailing

SAMPLERS: dict[str, tuple[type, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DPM": (DPMSolverMultistepScheduler, {}),
    "DPM, third order": (DPMSolverMultistepScheduler, {"solver_order": 3}),
    "DPM, SDE": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler, ancestral": (EulerAncestralDiscreteScheduler, {}),
    "Heun": (HeunDiscreteScheduler, {}),
    "UniPC": (UniPCMultistepScheduler, {}),
    "UniPC, third order": (UniPCMultistepScheduler, {"solver_order": 3}),
    "DDPM": (DDPMScheduler, {}),
    "LCM": (LCMScheduler, {}),
    "TCD": (TCDScheduler, {}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_leaves_nothing_to_the_garbage_collector(name: str) -> None:
    """Which comes rarely: the tensors of many runs would wait for it, beyond the limit of what is known."""
    kind, options = SAMPLERS[name]
    pipe, cache = tiny(scheduler=kind, options=options), PrefixCache(1 << 20)
    replay = Replay(pipe, cache, lambda past, _: past)
    gone = weakref.ref(replay)
    gc.disable()
    try:
        with replay.attached():
            sample(pipe, make_probes(pipe, CALL.batch, 0, "test"), CALL)
        del replay
        assert gone() is None
    finally:
        gc.enable()


def run(pipe: DiTPipeline, cache: PrefixCache, *, whole: bool = False) -> tuple[Tensor, int, int]:
    """Final latents, the denoiser's runs, and the pipeline's calls of it.

    ``whole``: outputs depend on all timesteps.
    """
    probes = make_probes(pipe, CALL.batch, 0, "test")
    replay = Replay(pipe, cache, lambda past, everything: (past, everything if whole else ()))
    with calls_of(pipe.transformer) as calls, replay.attached():
        latents = sample(pipe, probes, CALL)
    return latents, replay.runs, calls[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_that_is_known_is_not_run(name: str) -> None:
    """Nor does it pass through the pipeline, but for its last step, where the sampler adds no noise."""
    kind, options = SAMPLERS[name]
    pipe, cache = tiny(scheduler=kind, options=options), PrefixCache(1 << 20)
    expected = sample(pipe, make_probes(pipe, CALL.batch, 0, "test"), CALL)
    before = set(vars(pipe.scheduler))
    first, runs, calls = run(pipe, cache)
    assert runs == calls == len(pipe.scheduler.timesteps)
    again, none, short = run(pipe, cache)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert none == 0
    goes_on = kind in STEPPABLE and is_deterministic(pipe.scheduler)
    assert short == (1 if goes_on else calls)
    assert len(pipe.scheduler.timesteps) == calls, "the scheduler's own timesteps are back"
    assert set(vars(pipe.scheduler)) == before


STEPPED = [name for name, (kind, _) in SAMPLERS.items() if kind in STEPPABLE]
CORRECTED = ["DDIM", "DPM", "DPM, third order", "Euler", "UniPC", "UniPC, third order"]


@pytest.mark.parametrize(("name", "corrected"), [*((name, False) for name in STEPPED), *((n, True) for n in CORRECTED)])
def test_runs_that_branch_off_go_on_from_there(name: str, corrected: bool) -> None:
    """As the first run of all gives it, whatever was run before; corrections are fitted anew behind the branch."""
    kind, options = SAMPLERS[name]
    pipe, cache, whole = tiny(scheduler=kind, options=options), PrefixCache(1 << 20), "third" in name
    path, probes = trajectory(pipe.scheduler, trace(pipe, CALL).timesteps), make_probes(pipe, CALL.batch, 0, "test")
    fine, few = trailing(path, 24), trailing(path, 6)
    recording = Recording(fine, path.end)
    if corrected:
        with stepped(pipe, fine, CALL.steps, recording):
            sample(pipe, probes, CALL)
    # one that differs at its end, one in the middle, one that is shorter, and the first again
    lists = [few, (*few[:-1], few[-1] - 1), (*few[:3], few[3] - 1, *few[4:]), few[:5], few]
    known = list[int]()
    for timesteps in lists:
        results = list[Any]()
        for store in (PrefixCache(0), cache):
            correct = fitting(recording, timesteps, path.end, 4) if corrected else None
            with stepped(pipe, timesteps, CALL.steps, correct) as stepping:
                latents, runs, _ = run(pipe, store, whole=whole)
                results.append((latents, stepping.corrections))
        known.append(runs)
        assert torch.equal(results[0][0], results[1][0])
        assert results[0][1] == results[1][1]
        assert len(results[1][1]) == (len(timesteps) if corrected else 0)
    assert known[-1] == 0
    if not whole:
        assert known[0] > known[2] > known[1] > known[3]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", CORRECTED)
def test_the_memory_of_known_steps_is_foretold(name: str, corrected: bool) -> None:
    """By a trajectory without arithmetic; the first and the last step may differ from the others."""
    kind, options = SAMPLERS[name]
    pipe, cache = tiny(scheduler=kind, options=options), PrefixCache(1 << 20)
    told, path = trace(pipe, CALL), trajectory(pipe.scheduler, trace(pipe, CALL).timesteps)
    fine, few = trailing(path, 12), trailing(path, 6)
    recording = Recording(fine, path.end)
    with stepped(pipe, fine, CALL.steps, recording if corrected else None):
        sample(pipe, make_probes(pipe, CALL.batch, 0, "test"), CALL)
    correct = fitting(recording, few, path.end, 4) if corrected else None
    with stepped(pipe, few, CALL.steps, correct):
        run(pipe, cache)
    each = told.output_bytes + told.left_bytes + corrected * told.start_bytes
    assert cache.held_bytes == pytest.approx(len(few) * CALL.batch * each, rel=0.15)


@pytest.mark.parametrize("name", ["DDIM", "DPM"])
def test_a_run_that_breaks_off_leaves_nothing_wrong(name: str) -> None:
    kind, options = SAMPLERS[name]
    pipe, cache = tiny(scheduler=kind, options=options), PrefixCache(1 << 20)
    expected = sample(pipe, make_probes(pipe, CALL.batch, 0, "test"), CALL)
    for broken in (2, 4):
        count = [0]

        def interrupt(*_: Any, count: list[int] = count, broken: int = broken) -> None:
            count[0] += 1
            if count[0] == broken:
                raise KeyboardInterrupt

        handle = pipe.transformer.pos_embed.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(pipe, cache)
        handle.remove()
        assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))
    latents, runs, calls = run(pipe, cache)
    assert torch.equal(latents, expected)
    assert runs == CALL.steps - 4  # one of the first attempt, three of the second
    assert calls == runs + 1


def test_memory_counts_whole_and_once_where_parts_of_it_are_held() -> None:
    cache, halves = PrefixCache(1 << 20), torch.zeros(8).chunk(2)
    for key, half in enumerate(halves):
        cache.enter(key)
        cache.hold(key, half)
    assert cache.held_bytes == 32


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=30), st.integers(0, 40))
def test_the_cache_holds_no_more_than_its_limit(added: list[tuple[int, int]], limit: int) -> None:
    """A tensor that several steps share counts once, and the latest steps stay."""
    cache, shared = PrefixCache(8 * limit), torch.zeros(2, dtype=torch.float64)
    for key, count in added:
        known = cache.enter(key)
        output, after = torch.zeros(count, dtype=torch.float64), After(Result(shared), {"held": [shared]})
        known.outputs.append(output)
        cache.hold(key, output)
        known.after[None] = after
        cache.hold(key, after)
        kept = [found for found in (cache.find(i) for i in range(6)) if found is not None]
        tensors = {id(t): t for found in kept for t in (*found.outputs, *([shared] if found.after else []))}
        assert sum(len(t) for t in tensors.values()) <= limit
        if limit == 40 and sum(size for _, size in added) < 30:
            assert any(found is known for found in kept)
