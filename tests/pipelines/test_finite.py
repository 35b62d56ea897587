"""Models whose numbers overflow: refused before ranking, by the name of what overflows; candidates are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tests.compression.test_steps_alone import SMALL, Heard
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, joint, settings, tiny
from torch import Tensor

from diff_es import DiffESError, Method, Ridge, Run, Settings, Width, compress
from diff_es.compression.settings import Levers
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import sample
from diff_es.pruning.compensation import Solved
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.moments import Moments
from diff_es.scoring.fidelity import ImagePSNR

SAMPLING = CASES["SD"].sampling
METHOD = Method(Width(4, dense=()), granularity=Granularity.WHOLE)
FEW = {"population": 3, "generations": 1, "timestep_generations": 1}
LEVERS = {"prune": settings, "steps": lambda **given: joint(**{"levers": Levers.STEPS, **given}), "both": joint}
LATE = {"rank", "rank and compensate", "measure sensitivity", "evolution"}


class Halfway(DDIMScheduler):
    """Gives no numbers below timestep 300."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **others: Any) -> Any:
        result = super().step(model_output, timestep, sample, **others)
        return (result[0] * float("nan" if timestep < 300 else 1), *result[1:])


def _zero_snr(pipe: Any) -> None:
    options = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **options)


def _half(pipe: Any) -> None:
    pipe.unet.conv_in.weight.data.mul_(3e4)
    pipe.to(torch.float16)


def _between_modules(pipe: Any) -> None:
    """Queries and keys are numbers; their product is none."""
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    for layer in (attention.to_q, attention.to_k):
        layer.weight.data.mul_(1e25)


def _weights(pipe: Any) -> None:
    pipe.unet.mid_block.resnets[0].conv1.weight.data[0, 0] = float("nan")
    pipe.text_encoder.final_layer_norm.bias.data[0] = float("inf")


def _scheduler(pipe: Any) -> None:
    pipe.scheduler = Halfway.from_config(pipe.scheduler.config)


def _decoder(pipe: Any) -> None:
    pipe.vae.decoder.conv_in.weight.data.fill_(1e30)
    pipe.vae.decoder.conv_out.weight.data.fill_(1e38)


BROKEN: dict[str, tuple[Callable[[Any], None], str, dict[str, Any]]] = {
    "zero terminal SNR": (
        _zero_snr,
        r"step of DDIMScheduler from timestep 999\. Set rescale_betas_zero_snr to False",
        {},
    ),
    "float16": (_half, r"unet\.conv_in, at timestep 801 in float16\. Use float32 or bfloat16", {}),
    "attention": (
        _between_modules,
        r"unet\.mid_block\.attentions\.0\.transformer_blocks\.0\.attn1, at timestep 801",
        {},
    ),
    "weights": (
        _weights,
        r"weights (?=.*unet\.mid_block\.resnets\.0\.conv1\.weight)(?=.*text_encoder\.final_layer_norm\.bias)",
        {},
    ),
    "scheduler": (_scheduler, r"step of Halfway from timestep 201", {}),
    "decoder": (
        _decoder,
        r"decoder's images of finite latents, in float32\. Compare latents",
        {"measure": ImagePSNR()},
    ),
}


def chosen(lever: str, **changes: Any) -> Settings:
    return LEVERS[lever](sampling=SAMPLING, prompts=("a fox", "a hat"), method=METHOD, **changes)


@pytest.mark.parametrize(
    ("name", "lever"),
    [*((name, "prune") for name in BROKEN), ("zero terminal SNR", "steps"), ("float16", "both")],
)
def test_it_is_named_before_anything_is_ranked(name: str, lever: str) -> None:
    spoil, found, changes = BROKEN[name]
    pipe, reporter = made(CASES["SD"].make), Heard()
    spoil(pipe)
    with pytest.raises(DiffESError, match=rf"dense model's result: expected finite numbers, found NaN.* {found}"):
        compress(pipe, 0.8, chosen(lever, **changes), run=Run(reporter=reporter))
    assert not set(reporter.tasks) & (LATE | {"calibrate"})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


def test_what_the_message_says_helps() -> None:
    pipe = made(CASES["SD"].make)
    _zero_snr(pipe)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=False)
    _half(pipe)
    pipe.to(torch.bfloat16)
    few = replace(chosen("steps", **SMALL), sampling=replace(SAMPLING, num_inference_steps=3))
    assert compress(pipe, 0.8, few).timesteps


def test_a_later_noise_or_prompt_that_overflows() -> None:
    pipe, reporter = made(CASES["SD"].make), Heard()
    embeddings = pipe.text_encoder.embeddings.token_embedding.weight.data
    embeddings[pipe.tokenizer("z").input_ids[1]] = 3e38  # a weight that is a number, of one prompt alone
    with pytest.raises(DiffESError, match="expected finite numbers, found NaN or infinity from"):
        compress(pipe, 0.8, replace(chosen("prune"), prompts=("a fox", "a hat", "z z z")), run=Run(reporter=reporter))
    assert reporter.tasks[-1] == "calibrate"


def test_inputs_whose_squares_overflow_are_named() -> None:
    pipe = tiny()
    for block in pipe.transformer.transformer_blocks:
        block.ff.net[0].proj.weight.data.mul_(1e25)
        block.ff.net[2].weight.data.mul_(1e-25)
    with pytest.raises(DiffESError, match=r"calibration, transformer_blocks\.0\.ff: .*stage 0\. .*--levers steps"):
        compress(pipe, 0.8, settings())
    assert compress(pipe, 0.8, joint(**SMALL)).timesteps


@pytest.mark.parametrize("lever", ["prune", "steps"])
def test_a_model_that_does_nothing_is_compressed(lever: str) -> None:
    """As DiT begins its training: all outputs are 0, and their relative change is no number."""
    pipe = tiny()
    for parameter in pipe.transformer.proj_out_2.parameters():
        parameter.data.zero_()
    compress(pipe, 0.8, LEVERS[lever](**SMALL | {"levers": Levers(lever)}))


@dataclass(frozen=True)
class Exploding(Ridge):
    """Compensation whose weights are beyond all numbers from the third level on."""

    def solve(
        self, weight: Tensor, bias: Tensor | None, moments: Moments, order: Tensor, counts: Sequence[int]
    ) -> list[Solved]:
        solved = super().solve(weight, bias, moments, order, counts)
        limit = 0.7 * len(order)
        return [
            one._replace(weight=one.weight * (1e38 if count < limit else 1))
            for one, count in zip(solved, counts, strict=True)
        ]


def test_candidates_that_overflow_are_bad_ones() -> None:
    fast = compress(tiny(), 0.8, settings(method=replace(METHOD, compensation=Exploding()), **FEW))
    assert fast.report.held_out_score > 0
    rows = fast.schedule.levels
    assert max(level for row in rows for level in row) <= 1
    probes = make_probes(tiny(), 2, 0, "test")
    with fast.routed(pipe := tiny()):
        assert sample(pipe, probes, CALL).isfinite().all()


@pytest.mark.parametrize(
    "kind",
    [
        CMStochasticIterativeScheduler,
        DDIMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_more_steps_than_training_timesteps_are_refused(kind: type) -> None:
    pipe = tiny()
    pipe.scheduler, most = kind(num_train_timesteps=40), 40
    pipe.transformer.pos_embed.register_forward_pre_hook(lambda *_: 1 / 0)
    sampling = replace(CALL, num_inference_steps=most + 1)
    with pytest.raises(DiffESError, match=rf"steps: expected at most 40, the timesteps of {kind.__name__}, found 41"):
        compress(pipe, 0.8, settings(sampling=sampling))
    with pytest.raises(DiffESError, match="steps: expected at most 40"):
        sample(pipe, make_probes(pipe, 1, 0, "test"), sampling)


def test_a_scheduler_that_the_pipeline_cannot_call_is_refused() -> None:
    pipe = made(CASES["SD"].make)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    message = r"5 steps with FlowMatchEulerDiscreteScheduler: expected a trajectory, found AttributeError.*scheduler"
    with pytest.raises(DiffESError, match=message):
        compress(pipe, 0.8, chosen("prune"))
