"""Laws of the boundary to diffusers, for a pipeline of every supported class."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    TCDScheduler,
)
from tests.helpers.counting import counted
from tests.helpers.pipelines import CASES as ALL
from tests.helpers.pipelines import Case, flux, ltx, made, pixel_unet, qwen_image, sana, shown, stable_diffusion, wan
from tests.helpers.tiny import tiny
from torch import Tensor
from torch.utils._pytree import tree_map_only

from diff_es import DiffESError, Sampling, UnsupportedModel
from diff_es.evaluation.assemble import picture
from diff_es.layers import DENSE, discover
from diff_es.pipelines.encodings import Encodings, encoded_once
from diff_es.pipelines.families import call_arguments
from diff_es.pipelines.probes import Probe, bundled_prompts, make_probes
from diff_es.pipelines.sampling import decode, denoiser_of, sample, with_denoiser
from diff_es.pipelines.supported import SUPPORTED, check, check_denoiser
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.pipelines.tracing import Trace, first_call, trace
from diff_es.pruning.macs import MacCounter
from diff_es.routing.placements import Resident
from diff_es.routing.routing import routed
from diff_es.routing.stage_hook import on_stage
from diff_es.scoring.fidelity import ImageSSIM
from diff_es.scoring.metrics import snr_db
from diff_es.solvers.custom_timesteps import stepped
from diff_es.solvers.samplers import trajectory
from diff_es.trajectory.stages import Stages
from diff_es.trajectory.timesteps import placed

STEPS = 3
CASES = {
    name: replace(case, sampling=replace(case.sampling, num_inference_steps=STEPS), call={**case.call, "steps": STEPS})
    for name, case in ALL.items()
}
every_pipeline = pytest.mark.parametrize("name", CASES)
steppable = pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.steppable])
TEXT = [name for name, case in CASES.items() if case.sampling.guidance_scale]


def opened(name: str, seed: int = 0) -> tuple[Case, Any, tuple[Probe, ...]]:
    case = CASES[name]
    pipe = made(case.make)
    return case, pipe, make_probes(pipe, 2, seed, "test")


@cache
def lent(name: str) -> tuple[Case, Any, tuple[Probe, ...]]:
    """The same to all tests, none of which changes it."""
    return opened(name)


@cache
def traced(name: str) -> Trace:
    return trace(made(CASES[name].make), CASES[name].sampling)


def dense(pipe: Any, stages: Stages) -> Any:
    """What ``routed`` takes to prune nothing."""
    denoiser = denoiser_of(pipe)
    return denoiser, stages, partial(Resident().open, denoiser, discover(denoiser), [DENSE] * len(stages))


def users_own(case: Case, pipe: Any, probes: tuple[Probe, ...]) -> Tensor:
    conditions, seeds = [probe.condition for probe in probes], [probe.seed for probe in probes]
    return shown(pipe, conditions, seeds, **case.call).float()


def test_there_is_a_case_for_every_supported_class() -> None:
    assert {type(case.make()).__name__ for case in CASES.values()} | {"DiTPipeline"} == set(SUPPORTED)


@every_pipeline
def test_a_sample_is_what_the_users_own_call_gives(name: str) -> None:
    case, pipe, probes = opened(name)
    assert check(pipe) is pipe
    parts, configuration = dict(pipe.components), dict(pipe.config)
    hung = {name: vars(part).keys() for name, part in parts.items() if part is not None}
    latents = sample(pipe, probes, case.sampling)
    assert latents.shape[0] == 2
    assert latents.isfinite().all()
    assert (dict(pipe.components), dict(pipe.config)) == (parts, configuration)
    assert {name: vars(part).keys() for name, part in parts.items() if part is not None} == hung
    images = decode(pipe, latents)
    assert images.min() < images.max()
    assert torch.equal(images, users_own(case, pipe, probes))


@every_pipeline
def test_a_sample_depends_on_its_noise_and_its_prompt(name: str) -> None:
    case, pipe, probes = lent(name)
    both = sample(pipe, [Probe(probes[0].seed, probe.condition) for probe in probes], case.sampling)
    others = sample(pipe, [Probe(probes[1].seed, probe.condition) for probe in probes], case.sampling)
    assert not torch.equal(both[0], others[0])
    assert torch.equal(both[0], both[1]) == (probes[0].condition is None)


@pytest.mark.parametrize("make", [tiny, lambda: made(stable_diffusion)], ids=["DiT", "SD"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DDIMScheduler, {}),
        (DDPMScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
        (LCMScheduler, {}),
        (TCDScheduler, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_a_sample_does_not_depend_on_the_others_of_its_batch(make: Any, kind: Any, settings: dict[str, str]) -> None:
    """What a sampler adds on the way comes from the sample's own generator, guided or not."""
    pipe = make()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    probes = make_probes(pipe, 3, 0, "test")
    for guidance in (1.0, 4.0):
        whole = sample(pipe, probes, Sampling(3, guidance, 3))
        turned = sample(pipe, probes[::-1], Sampling(3, guidance, 2)).flip(0)
        assert float(snr_db(whole, turned).min()) > 90
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("name", TEXT)
def test_prompts_are_encoded_once(name: str) -> None:
    case, pipe, probes = opened(name)
    runs, encodings = [0], Encodings()

    def count(*_: Any) -> None:
        runs[0] += 1

    encoders = [part for key, part in pipe.components.items() if key.startswith("text_encoder") and part is not None]
    for encoder in encoders:
        encoder.register_forward_hook(count)
    plain, before = sample(pipe, probes, case.sampling), dict(vars(pipe))
    once, runs[0] = runs[0], 0
    assert once >= len(encoders)
    with encoded_once(pipe, encodings):
        for _ in range(2):
            assert torch.equal(sample(pipe, probes, case.sampling), plain)
        assert runs[0] == once
        sample(pipe, [Probe(1, "something else")] * 2, case.sampling)
        assert runs[0] > once
    assert vars(pipe).keys() == before.keys()


@every_pipeline
def test_stages_that_prune_nothing_change_nothing(name: str) -> None:
    case, pipe, probes = lent(name)
    plain = sample(pipe, probes, case.sampling)
    with routed(*dense(pipe, Stages.split(traced(name).timesteps, 3))):
        assert torch.equal(sample(pipe, probes, case.sampling), plain)


@every_pipeline
def test_a_trace_has_the_schedulers_timesteps_and_the_shapes_of_a_call(name: str) -> None:
    case, pipe, _ = opened(name)
    found = trace(pipe, case.sampling)
    assert found.calls == case.calls
    assert list(found.timesteps) == [t for t in pipe.scheduler.timesteps.tolist() for _ in range(case.calls)]
    assert len(set(found.timesteps)) == STEPS
    alone = Sampling(**{**vars(case.sampling), "batch": 1})
    real = first_call(pipe, alone)
    shapes = (tree_map_only(Tensor, lambda t: (t.shape, t.dtype), call) for call in (real, (found.args, found.kwargs)))
    one, other = shapes
    assert repr(one) == repr(other)


@every_pipeline
def test_counted_macs_are_those_of_real_calls(name: str) -> None:
    case, pipe, _ = lent(name)
    denoiser = denoiser_of(pipe)
    with counted(pipe) as calls:
        sample(pipe, make_probes(pipe, 1, 0, "trace"), case.sampling)  # Qwen-Image pads no prompt: lengths differ
    assert len(calls) == STEPS * case.calls
    assert MacCounter(denoiser, discover(denoiser), traced(name)).dense() == calls[0].macs


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.bfloat16) for name in CASES), *((name, torch.float32) for name in ("SD", "FLUX", "Wan"))],
)
def test_every_step_is_routed_to_its_own_stage(name: str, dtype: torch.dtype) -> None:
    case, pipe, probes = opened(name)
    pipe.to(dtype)
    for part in ("transformer", "unet", "text_encoder"):
        if pipe.components.get(part) is not None:
            pipe.components[part].to(dtype)
    own = tuple(dict.fromkeys(traced(name).timesteps))
    edges = Stages(own[1:])  # each boundary a timestep itself, as where steps are a choice
    entered = list[int]()
    handle = on_stage(denoiser_of(pipe), edges, entered.append)
    sample(pipe, probes, case.sampling)
    handle.remove()
    assert entered == [step for step in range(STEPS) for _ in range(case.calls)]


def test_timesteps_that_are_scaled_for_the_denoiser_come_back() -> None:
    for make in (flux, qwen_image, sana):
        pipe, heard = made(make), list[float]()
        sampling = Sampling(5, 1.0, 1, height=512, width=512) if make is sana else Sampling(5, 1.0, 1, None, 16, 16)
        if make is sana:
            pipe.transformer.register_to_config(timestep_scale=0.001)
        handle = on_timestep(denoiser_of(pipe), heard.append)
        sample(pipe, make_probes(pipe, 1, 0, "test"), sampling)
        handle.remove()
        assert heard == pytest.approx(pipe.scheduler.timesteps.tolist(), rel=1e-6)


@steppable
def test_chosen_timesteps_are_run(name: str) -> None:
    case, pipe, probes = lent(name)
    sampling = replace(case.sampling, num_inference_steps=4)  # two in the last stage
    plain = sample(pipe, probes, sampling)
    path = trajectory(pipe.scheduler, [t for t in pipe.scheduler.timesteps.tolist() for _ in range(case.calls)])
    assert len(path.timesteps) == 4
    stages, denoiser = path.stages(3), denoiser_of(pipe)
    own = stages.steps(path.timesteps)
    with stepped(pipe, placed(path, stages, own), 4):
        assert torch.equal(sample(pipe, probes, sampling), plain)
    for counts in ((2 * own[0], own[1], 0), (1, 1, 3 * own[2])):
        chosen, heard, entered = placed(path, stages, counts), list[float](), list[int]()
        assert all(a > b for a, b in pairwise(chosen))
        handles = on_timestep(denoiser, heard.append), on_stage(denoiser, stages, entered.append)
        with stepped(pipe, chosen, 4):
            result = sample(pipe, probes, sampling)
        for handle in handles:
            handle.remove()
        assert heard == pytest.approx([t for t in chosen for _ in range(case.calls)], rel=1e-6)
        assert tuple(entered.count(stage) for stage in range(3)) == tuple(n * case.calls for n in counts)
        assert result.isfinite().all()
        assert not torch.equal(result, plain)


def test_a_scheduler_without_chosen_timesteps_says_so() -> None:
    case, pipe, _ = opened("DDPM")
    with pytest.raises(DiffESError, match="scheduler: expected one that can take other timesteps"):
        trajectory(pipe.scheduler, trace(pipe, case.sampling).timesteps)


@every_pipeline
def test_another_denoiser_takes_the_place_of_the_own_one(name: str) -> None:
    case, pipe, probes = opened(name)
    other = with_denoiser(pipe, denoiser_of(made(case.make, seed=1)))
    assert type(other) is type(pipe)
    parts = pipe.components.keys() - {"transformer", "unet", "scheduler"}
    assert all(other.components[part] is pipe.components[part] for part in parts)
    assert other.scheduler.config == pipe.scheduler.config
    changed = sample(other, probes, case.sampling)
    assert not torch.equal(changed, sample(pipe, probes, case.sampling))
    assert torch.equal(
        sample(with_denoiser(other, denoiser_of(pipe)), probes, case.sampling), sample(pipe, probes, case.sampling)
    )


def test_timesteps_of_tokens_are_those_of_their_step() -> None:
    case, pipe, heard = CASES["Wan"], made(partial(wan, expand_timesteps=True)), list[float]()
    found, probes = trace(pipe, case.sampling), make_probes(pipe, 2, 0, "test")
    assert found.kwargs["timestep"].dim() == 2
    handle = on_timestep(pipe.transformer, heard.append)
    plain = sample(pipe, probes, case.sampling)
    handle.remove()
    assert heard == list(found.timesteps)
    with routed(*dense(pipe, Stages.split(found.timesteps, 3))):
        assert torch.equal(sample(pipe, probes, case.sampling), plain)


def test_videos_are_compared_frame_by_frame_and_shown_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, 4, 16, 16, generator=generator) for _ in range(2))
    by_frame = [ImageSSIM().closeness(one[:, :, i], other[:, :, i]) for i in range(4)]
    assert torch.allclose(ImageSSIM().closeness(one, other), torch.stack(by_frame).mean(0))
    assert ImageSSIM().closeness(one, one) == pytest.approx([1.0, 1.0])
    assert picture(one[0]).size == (64, 16)
    assert picture(one[0]).crop((16, 0, 32, 16)).tobytes() == picture(one[0, :, 1]).tobytes()


def test_a_decoder_that_takes_a_timestep_gets_the_pipelines_own() -> None:
    case, pipe = CASES["LTX"], made(partial(ltx, timed_decoder=True))
    probes = make_probes(pipe, 2, 0, "test")
    assert torch.equal(decode(pipe, sample(pipe, probes, case.sampling)), users_own(case, pipe, probes))


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # which SDXL's pipeline calls
def test_a_decoder_in_half_precision_is_run_as_the_pipeline_runs_it() -> None:
    case, pipe, probes = opened("SDXL")
    assert pipe.vae.config.force_upcast
    pipe.vae.half()
    latents = sample(pipe, probes, case.sampling)
    assert latents.dtype is torch.float32
    images = decode(pipe, latents)
    assert pipe.vae.dtype is torch.float16
    assert torch.equal(images, users_own(case, pipe, probes))


def test_guidance_reaches_the_denoiser_that_takes_it_as_an_input() -> None:
    seen = list[float | None]()
    for make in (flux, partial(flux, guidance_embeds=False)):
        pipe = made(make)
        _, kwargs = first_call(pipe, Sampling(5, 2.5, 1, height=16, width=16))
        seen.append(None if kwargs["guidance"] is None else float(kwargs["guidance"][0]))
    assert seen == [2.5, None]


def test_a_safety_checker_sees_nothing_and_stays() -> None:
    pipe, checker = made(stable_diffusion), torch.nn.Identity()
    vars(pipe)["safety_checker"] = checker  # would fail if it were called
    sample(pipe, make_probes(pipe, 1, 0, "test"), Sampling(2, 1.0, 1))
    assert pipe.safety_checker is checker


def test_probes_are_dealt_prompts_or_nothing() -> None:
    assert len(set(bundled_prompts())) == 64
    pipe, mine = made(stable_diffusion), ("a", "b", "c")
    assert [probe.condition for probe in make_probes(pipe, 5, 0, "test", mine)] == ["a", "b", "c", "a", "b"]
    bundled = make_probes(pipe, 20, 0, "test")
    assert {probe.condition for probe in bundled} <= set(bundled_prompts())
    assert len({probe.condition for probe in bundled}) > 10
    assert make_probes(pipe, 5, 0, "test") == bundled[:5]
    assert {probe.condition for probe in make_probes(made(CASES["DDPM"].make), 3, 0, "test")} == {None}
    with pytest.raises(DiffESError, match="prompts: expected none for a pipeline without text, found 3 for a DiTPipe"):
        make_probes(tiny(), 1, 0, "test", mine)


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("DDPM", {"negative_prompt": "x"}, "negative_prompt: expected none for a DDPMPipeline, found 'x'"),
        ("DDPM", {"height": 8}, "height: expected none for a DDPMPipeline, found 8"),
        ("SD", {"num_frames": 9}, "num_frames: expected none for a StableDiffusionPipeline, found 9"),
        ("FLUX", {"negative_prompt": "x"}, "expected none: guidance is an input of this denoiser"),
    ],
)
def test_what_a_pipeline_does_not_take_is_refused(name: str, asked: dict[str, Any], message: str) -> None:
    pipe = made(CASES[name].make)
    with pytest.raises(DiffESError, match=message):
        trace(pipe, Sampling(5, 1.0, 1, **asked))


def test_a_negative_prompt_is_asked_for_once_a_sample() -> None:
    pipe = made(stable_diffusion)
    assert call_arguments(pipe, ["a", "b"], Sampling(5, 2.0, negative_prompt="c"))["negative_prompt"] == ["c", "c"]


def test_other_pipelines_are_refused_by_name() -> None:
    image_to_image = made(stable_diffusion)
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(image_to_image)
    with pytest.raises(UnsupportedModel, match=r"expected one of DiTPipeline, .* found StableDiffusionImg2ImgPipeline"):
        check(pipe)
    assert check_denoiser(pipe) is image_to_image.unet
    two = made(wan)
    two.register_modules(transformer_2=two.transformer)
    with pytest.raises(UnsupportedModel, match="expected one denoiser, found transformer and transformer_2"):
        check(two)
    image_to_image.unet.train()
    with pytest.raises(UnsupportedModel, match=r"pipe\.unet: expected evaluation mode"):
        check(image_to_image)


def test_grey_images_are_shown_and_compared_as_others_are() -> None:
    pipe = DDIMPipeline(pixel_unet(1).eval(), DDIMScheduler())
    latents = sample(check(pipe), make_probes(pipe, 2, 0, "test"), Sampling(2, 0.0, 2))
    images = decode(pipe, latents)
    assert (latents.shape, images.shape) == ((2, 1, 8, 8), (2, 3, 8, 8))
    assert (images == images[:, :1]).all()
    assert picture(images[0]).size == (8, 8)


def test_one_side_of_an_image_is_asked_for_alone() -> None:
    """Stable Diffusion's pipeline takes its own size where either is left out."""
    pipe = made(stable_diffusion)
    usual = pipe.unet.config.sample_size * pipe.vae_scale_factor
    asked = call_arguments(pipe, ["a fox"], Sampling(2, 4.0, 1, height=2 * usual))
    assert (asked["height"], asked["width"]) == (2 * usual, usual)
    latents = sample(pipe, make_probes(pipe, 1, 0, "test"), Sampling(2, 4.0, 1, height=2 * usual))
    assert latents.shape[-2] == 2 * latents.shape[-1]
    plain = call_arguments(pipe, ["a fox"], Sampling(2, 4.0, 1))
    assert not {"height", "width"} & plain.keys()


def test_a_size_that_a_pipeline_refuses_is_refused_by_whoever_asks_first() -> None:
    pipe, sampling = made(stable_diffusion), Sampling(2, 4.0, 1, height=20, width=32)
    for ask in (first_call, trace):
        with pytest.raises(DiffESError, match=r"expected a trajectory, found .* divisible by 8.*Take another size"):
            ask(pipe, sampling)
