"""A denoiser with a loop of the user's own stands wherever a pipeline does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from tests.helpers.foreign import masked
from tests.helpers.own import TIMES, WORK, euler, fixed, guided, own, pixels, uncorrected, write_latents
from tests.helpers.tiny import assert_same, snapshot
from torch import Tensor, nn

from diff_es import (
    Blend,
    Compressed,
    DiffESError,
    ImagePSNR,
    Levers,
    OwnSampler,
    UnsupportedModel,
    compress,
    export,
    load,
)
from diff_es.compression.study import Study, prepare
from diff_es.evaluation.benchmark import compare
from diff_es.evaluation.evaluate import Extent, evaluated
from diff_es.evaluation.inspection import inspect
from diff_es.layers import DENSE, fingerprint
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import reopen
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pipelines.tracing import trace
from diff_es.pruning.declare import declare
from diff_es.scoring.fitness import Comparison, Fitness
from diff_es.search import Candidate
from diff_es.solvers.prefix_cache import PrefixCache
from diff_es.trajectory.stages import Schedule, Stages
from diff_es.utils.progress import Reporter

QUIET = Reporter(quiet=True)
LEAST = replace(
    WORK,
    search_noises=2,
    sensitivity_noises=1,
    held_out_noises=1,
    finalists=1,
    population=2,
    generations=1,
    timestep_generations=1,
)
OWN_TIMES = (0.9, 0.7, 0.4, 0.3)


@pytest.fixture(scope="module")
def found() -> tuple[OwnSampler, Compressed]:
    """A search of steps and levels at half of the compute."""
    sampler = own()
    return sampler, compress(sampler, 0.5, WORK)


def by_hand(sampler: OwnSampler, plans: Sequence[Any], times: tuple[float, ...] | None = None) -> Compressed:
    stages = Stages((0.65,))
    schedule = Schedule(stages, ((0,), (0,)))
    base = fingerprint(sampler.denoiser)
    return Compressed(schedule, tuple(plans), Sampling(len(TIMES)), base, timesteps=times)


class Listening:
    """A loop that writes down the times that it is given."""

    def __init__(self) -> None:
        self.heard = list[list[float]]()

    def __call__(self, denoiser: nn.Module, noise: Tensor, times: list[float]) -> Tensor:
        self.heard.append(times)
        return uncorrected(denoiser, noise, times)


def test_level_0_is_the_dense_loop_to_the_bit() -> None:
    sampler = own()
    dense, before = sampler.latents(range(3)), snapshot(sampler.denoiser)
    own_times = sampler.path.timesteps
    for times in (None, own_times):
        with by_hand(sampler, (DENSE, DENSE), times).routed(sampler):
            assert sampler.latents(range(3)).equal(dense)
    assert_same(before, snapshot(sampler.denoiser))


def test_a_call_is_the_loop_of_the_user_to_the_bit() -> None:
    sampler, noise = own(sample=uncorrected, corrects=False), torch.randn(2, 8, 8, 8)
    assert sampler(noise).equal(uncorrected(sampler.denoiser, noise, TIMES))


def test_routed_is_the_slim_network_in_the_same_loop() -> None:
    sampler = own()
    ready = prepare(sampler, replace(WORK, levers=Levers.PRUNE))
    plan = ready.library.plan(0, (2,) * len(ready.units))
    assert plan.cuts
    slim = masked(sampler.denoiser, ready.anatomy, plan)
    noise = torch.randn(2, 8, 8, 8)
    with by_hand(sampler, (plan, plan)).routed(sampler):
        result = sampler(noise)
    expected = euler(slim, noise, TIMES, lambda start, result: result)
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not torch.allclose(result, sampler(noise), rtol=1e-2)


@pytest.mark.parametrize("times", [(0.9, 0.7, 0.4, 0.3), (0.9, 0.55, 0.3), (0.8, 0.1)])
def test_chosen_times_are_handed_to_the_loop(times: tuple[float, ...]) -> None:
    loop = Listening()
    sampler = own(sample=loop, times=OWN_TIMES, corrects=False)
    held = tuple(float(np.float32(t)) if t in OWN_TIMES else t for t in times)  # as a schedule holds them
    with by_hand(sampler, (DENSE, DENSE), held).routed(sampler):
        result = sampler(torch.ones(1, 8, 8, 8))
    sampler(torch.ones(1, 8, 8, 8))
    assert loop.heard == [list(times), list(OWN_TIMES)]
    assert result.equal(uncorrected(sampler.denoiser, torch.ones(1, 8, 8, 8), times))


def test_whole_times_stay_whole() -> None:
    loop = Listening()
    sampler = own(sample=loop, times=range(900, -1, -300), corrects=False)
    assert (sampler.path.whole, sampler.path.end) == (True, -1)
    with by_hand(sampler, (DENSE, DENSE), (900.0, 450.0, 0.0)).routed(sampler):
        sampler(torch.ones(1, 8, 8, 8))
    assert loop.heard == [[900, 450, 0]]
    assert {type(t) for t in loop.heard[0]} == {int}


def test_a_search_keeps_its_budget_and_leaves_the_denoiser_as_it_was(found: tuple[OwnSampler, Compressed]) -> None:
    sampler, fast = found
    assert fast.report.macs_ratio <= 0.5
    assert fast.timesteps is not None
    steps = fast.schedule.stages.steps(fast.timesteps)
    ready = prepare(sampler, fast.report.settings)
    candidate = Candidate.of(fast.schedule.levels, steps, fast.timesteps)
    assert ready.macs.ratio(candidate) == fast.report.macs_ratio
    assert sampler.latents(range(2)).equal(own().latents(range(2)))


def test_the_promise_of_a_result_is_what_its_routing_gives(found: tuple[OwnSampler, Compressed]) -> None:
    """Scored anew through the loop itself, on the noises that it was reported on."""
    sampler, fast = found
    ready = prepare(sampler, fast.report.settings)
    assert ready.reference is not None
    probes = make_probes(sampler, 5 * WORK.held_out_noises, WORK.seed, "held-out")[4 * WORK.held_out_noises :]
    sampling = ready.settings.sampling
    with by_hand(sampler, (DENSE, DENSE), ready.reference).routed(sampler):
        goal = sample(sampler, probes, sampling)
    with fast.routed(sampler):
        result = sample(sampler, probes, sampling)
    scores = WORK.measure.closeness(goal, result)
    assert float(scores.mean()) == pytest.approx(fast.report.held_out_score, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # of Python 3.12
def test_a_saved_result_runs_the_same_in_a_new_process(tmp_path: Path, found: tuple[OwnSampler, Compressed]) -> None:
    sampler, fast = found
    fast.save(tmp_path / "fast")
    child = get_context("fork").Process(
        target=write_latents, args=(tmp_path / "fast", tmp_path / "latents.safetensors")
    )
    child.start()
    child.join(120)
    assert child.exitcode == 0
    with fast.routed(sampler):
        assert load_file(tmp_path / "latents.safetensors")["latents"].equal(sampler.latents(range(3), batch=3))
    other = own(seed=1)
    with pytest.raises(DiffESError, match="hash of the base model"), load(tmp_path / "fast").routed(other):
        pass


def test_steps_alone_and_a_speed_up(found: tuple[OwnSampler, Compressed]) -> None:
    sampler, _ = found
    work = replace(LEAST, levers=Levers.STEPS)
    fast = compress(sampler, 0.5, work)
    assert {level for row in fast.schedule.levels for level in row} == {0}
    assert len(fast.timesteps or ()) == 3
    assert len(fast.corrections) == 3
    quick = compress(sampler, speedup=1.05, settings=work)
    assert quick.report.measured_speedup is not None


def test_a_loop_without_times_is_pruned_alone() -> None:
    sampler = own(sample=fixed, times=None, corrects=False)
    work = replace(LEAST, levers=Levers.PRUNE)
    fast = compress(sampler, 0.6, work)
    assert fast.timesteps is None
    assert fast.report.macs_ratio <= 0.6
    assert fast.sampling.steps == len(TIMES)
    assert fast.report.steps == (3, 3)
    names = [row.contender for row in evaluated(sampler, fast, Extent(noises=2, rounds=1, batch=2, random=2)).rows]
    assert names == ["dense", "uniform", "mosaicdiff", "random", "diff-es"]


def test_conditions_guidance_noise_and_two_calls_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = partial(guided, scale=0.7)
    images = lambda latents: latents[:, :3] / 2 + 0.5  # noqa: E731
    sampler = own(sample=loop, times=None, corrects=False, conditions=(0, 2), decode=images)
    assert [probe.condition for probe in make_probes(sampler, 4, 0, "any")] == [0, 2, 0, 2]
    fast = compress(sampler, 0.6, replace(LEAST, levers=Levers.PRUNE, measure=ImagePSNR()))
    assert fast.report.steps == (3, 3), "however often each calls"
    rows = evaluated(sampler, fast, Extent(noises=2, rounds=1, batch=2, random=2)).rows
    assert all(row.psnr_db is not None for row in rows[1:])
    with fast.routed(sampler):
        first = sampler.latents((5, 6), (0, 2))
        assert first.equal(sampler.latents((5, 6), (0, 2)))
        assert not first.equal(sampler.latents((5, 6), (2, 2)))


def test_everything_that_compares(found: tuple[OwnSampler, Compressed]) -> None:
    sampler, fast = found
    rows = evaluated(sampler, fast, Extent(noises=2, rounds=1, batch=2, random=2)).rows
    names = ["dense", "fewer-steps", "trailing", "uniform", "mosaicdiff", "random", "diff-es"]
    assert [row.contender for row in rows] == names
    assert {row.psnr_db for row in rows} == {None}
    assert all(row.macs_ratio <= 0.5 for row in rows[1:])
    bench = compare(sampler, fast, [2], 1, QUIET)["rows"]
    places = [f"diff-es, {place}" for place in ("resident", "streamed", "compact", "stitched")]
    whole = any(cut.weight is not None for plan in fast.plans for cut in plan.cuts.values())
    assert {row["runner"] for row in bench} == {"dense", "routed at level 0", *places} - {whole and "diff-es, compact"}
    assert {row["name"] for row in inspect(sampler)["layers"]} == {
        "blocks.0.conv2",
        "blocks.1.conv2",
        "blocks.0",
        "blocks.1",
    }


def fitness(ready: Study, memory: int) -> Fitness:
    probes = make_probes(ready.pipe, 4, 0, "search")
    own = (ready.pipe, ready.library, ready.stages, probes, ready.settings.sampling, ready.settings.measure)
    return Fitness(*own, Comparison(ready.path, ready.reference, known=PrefixCache(memory)))


@pytest.mark.parametrize("loop", ["chosen", "guided"])
def test_calls_that_are_known_change_no_bit(loop: str) -> None:
    if loop == "chosen":
        ready = prepare(own(), WORK)
        candidates = [
            Candidate.of([levels] * 2, steps)
            for levels in ((0, 0), (1, 2), (3, 0))
            for steps in ((3, 3), (2, 3), (3, 1))
        ]
    else:
        ready = prepare(
            own(sample=guided, times=None, corrects=False, conditions=(1,)), replace(WORK, levers=Levers.PRUNE)
        )
        candidates = [Candidate.of(levels) for levels in (((0, 0), (1, 0)), ((0, 0), (2, 3)), ((1, 0), (1, 0)))]
    known, anew = fitness(ready, 1 << 30), fitness(ready, 0)
    scores = [[one(candidate) for candidate in candidates] for one in (known, anew)]
    assert scores[0] == scores[1]
    assert len(set(scores[0])) == len(candidates)
    assert known.calls < anew.calls


class Wrapped(nn.Module):
    """A model of diffusers behind a time of another kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(16, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, left: Tensor) -> Tensor:
        found: Tensor = self.unet(x, 1000 * left).sample
        return found


def wrapped_loop(denoiser: nn.Module, noise: Tensor, times: Sequence[float]) -> Tensor:
    x = noise
    for t in times:
        x = x - denoiser(x, torch.full((len(x),), t)) / len(times)
    return x


@pytest.mark.slow
def test_a_model_of_diffusers_that_is_wrapped_is_discovered() -> None:
    model = Wrapped().eval().requires_grad_(False)
    sampler = OwnSampler(model, wrapped_loop, noise=(3, 8, 8), times=TIMES)
    with pytest.raises(UnsupportedModel, match=r"OwnSampler.denoiser: .* declared, found a Wrapped. Call .*decl"):
        compress(sampler, 0.6, WORK)
    anatomy = declare(model, None, lambda: model(torch.randn(1, 3, 8, 8), torch.ones(1)), timestep="left")
    assert all(layer.name.startswith("unet.") for layer in anatomy.layers)
    assert len(anatomy.layers) > 4
    fast = compress(sampler, 0.6, replace(LEAST, levers=Levers.PRUNE))
    assert fast.report.macs_ratio <= 0.6
    with fast.routed(sampler):
        pruned = sampler.latents(range(2))
    assert not pruned.equal(sampler.latents(range(2)))


@pytest.mark.slow
def test_a_model_of_diffusers_needs_no_declaration() -> None:
    model = Wrapped().unet.eval().requires_grad_(False)

    def loop(denoiser: nn.Module, noise: Tensor, times: Sequence[int]) -> Tensor:
        x = noise
        for t in times:
            x = x - denoiser(x, t).sample / len(times)
        return x

    fast = compress(OwnSampler(model, loop, noise=(3, 8, 8), times=range(900, 0, -150)), 0.6, LEAST)
    assert fast.report.macs_ratio <= 0.6
    assert all(t == int(t) for t in fast.timesteps or ())


def nothing(denoiser: nn.Module, noise: Tensor) -> Tensor:
    return noise


def shifted(denoiser: nn.Module, noise: Tensor, times: Sequence[float]) -> Tensor:
    return uncorrected(denoiser, noise, [t * 1000 for t in times])


def forgetful(denoiser: nn.Module, noise: Tensor, times: Sequence[float], correct: Any) -> Tensor:
    return uncorrected(denoiser, noise, times)


def in_place(denoiser: nn.Module, noise: Tensor, times: Sequence[float], correct: Any) -> Tensor:
    x = noise.clone()
    for t in times:
        x = correct(x, x.sub_(0.1 * denoiser(x, noise_level=torch.full((len(x),), t))[0]))
    return x


def rising(denoiser: nn.Module, noise: Tensor) -> Tensor:
    return uncorrected(denoiser, noise, TIMES[::-1])


NO_TIMES: dict[str, Any] = {"sample": fixed, "times": None, "corrects": False}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (NO_TIMES, {}, r"OwnSampler.times: expected a loop whose steps are a choice.*found none. .*--levers prune"),
        (
            {**NO_TIMES, "sample": nothing},
            {"levers": Levers.PRUNE},
            r"OwnSampler.sample: .* calls the denoiser that it is",
        ),
        ({**NO_TIMES, "sample": rising}, {"levers": Levers.PRUNE}, r"timesteps: expected descending ones"),
        (
            {"sample": shifted, "corrects": False},
            {},
            r"OwnSampler.times: expected the times as the denoiser receives",
        ),
        ({"sample": forgetful}, {}, r"correct: expected \d+ calls, one a step, found 0"),
        ({"sample": in_place}, {}, r"correct: expected a step's start and its result, found one tensor"),
        ({}, {"measure": ImagePSNR()}, r"measure: expected one of latents, for there are no images, found ImagePSNR"),
        ({}, {"measure": Blend("tests.helpers.features:colours")}, r"measure: expected one of latents, .* found Blend"),
        (
            {},
            {"sampling": Sampling(num_inference_steps=7)},
            r"num_inference_steps: expected 6, as the loop",
        ),
        (
            {},
            {"sampling": Sampling(guidance_scale=2.0)},
            r"guidance_scale: expected none for a loop of",
        ),
        ({}, {"sampling": Sampling(height=64)}, r"height: expected none for a loop of your own, found 64"),
        ({}, {"prompts": ("a cat",)}, r"prompts: expected none for a pipeline without text"),
    ],
)
def test_what_a_loop_does_not_take_is_refused(changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffESError, match=message):
        compress(own(**changes), 0.6, replace(WORK, **{"levers": Levers.BOTH, **settings}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": fixed}, r"OwnSampler.sample: expected a function of \(denoiser, noise, times, correct\)"),
        ({"times": None}, r"OwnSampler.times: expected a loop whose steps can be corrected"),
        ({"times": (1.0, 0.5, 0.5)}, r"timesteps: expected strictly descending ones"),
        ({"times": (1.0, 0.5, 0.0)}, r"OwnSampler.times: expected times above the end, 0, found 0"),
        ({"times": ()}, r"OwnSampler.times: expected"),
        ({"noise": (8, 0)}, r"OwnSampler.noise\[1\]: expected a whole number"),
        ({"conditions": (1.5,)}, r"OwnSampler.conditions"),
        ({"sample": 3}, r"OwnSampler.sample: expected callable"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffESError, match=message):
        own(**changes)


def test_a_call_says_what_is_wrong_with_it() -> None:
    sampler = own(sample=guided, times=None, corrects=False, conditions=(0, 1))
    with pytest.raises(DiffESError, match=r"noise: expected \(N, 8, 8, 8\), found \(2, 8, 8\)"):
        sampler(torch.ones(2, 8, 8))
    with pytest.raises(DiffESError, match=r"conditions: expected 2, found 0"):
        sampler(torch.ones(2, 8, 8, 8))


def test_what_a_result_needs_of_a_loop(found: tuple[OwnSampler, Compressed], tmp_path: Path) -> None:
    sampler, fast = found
    with fast.routed(sampler), pytest.raises(DiffESError, match="expected a dense pipeline"), fast.routed(sampler):
        pass
    with (
        pytest.raises(DiffESError, match=r"one that takes the chosen steps .* give the OwnSampler"),
        fast.routed(sampler.denoiser),
    ):
        pass
    assert fast.corrections
    plain = OwnSampler(sampler.denoiser, uncorrected, noise=(8, 8, 8), times=TIMES)
    with (
        pytest.raises(DiffESError, match=r"OwnSampler: expected a loop whose steps can be corrected"),
        fast.routed(plain),
    ):
        pass
    with pytest.raises(UnsupportedModel, match=r"found OwnSampler. Use the loader"):
        export(fast, sampler, tmp_path / "exported")
    assert fast.origin is not None
    with pytest.raises(UnsupportedModel, match=r"found a loop of the user's own. Use it from Python"):
        reopen(fast.origin)


def test_a_trace_hears_the_loop_and_runs_the_denoiser_once() -> None:
    sampler, runs = own(sample=guided, times=None, corrects=False, conditions=(1,)), list[int]()
    sampler.denoiser.blocks[0].register_forward_hook(lambda *_: runs.append(1))  # type: ignore[union-attr,index]
    traced = trace(sampler, Sampling(len(TIMES)))
    assert (len(runs), traced.calls, traced.real) == (1, 2, True)
    assert traced.timesteps == pytest.approx([t for t in TIMES for _ in range(2)])


def test_denoisers_of_one_kind_do_not_share_a_stepping() -> None:
    first, second = own(), own()
    with by_hand(first, (DENSE, DENSE), (0.9, 0.5)).routed(first):
        assert second.latents(range(2)).equal(own().latents(range(2)))
        assert not first.latents(range(2)).equal(second.latents(range(2)))
    assert first.latents(range(2)).equal(second.latents(range(2)))


def test_pixels_are_what_they_were() -> None:
    assert fingerprint(pixels()) == fingerprint(pixels()) != fingerprint(pixels(1))
