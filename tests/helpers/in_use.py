"""Results made by hand for the pipelines of ``tests.helpers``, and what tests do to a pipeline that runs one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from tests.helpers.families import random_plan
from tests.helpers.pipelines import CASES, made, shown
from tests.helpers.tiny import images, tiny
from torch import Tensor

from diff_es import Compressed
from diff_es.layers import Cut, Plan, discover
from diff_es.layers.fingerprint import fingerprint
from diff_es.pipelines.families import Sampling
from diff_es.pipelines.loading import origin_of
from diff_es.pipelines.sampling import denoiser_of
from diff_es.pipelines.tracing import trace
from diff_es.routing.realise import output_of, realise
from diff_es.routing.switch import Switch
from diff_es.trajectory.stages import Schedule, Stages

STAGES = 3
STEPS = 3  # of which every stage has one
FAMILIES = ("DiT", "SD", "SDXL", "SD3", "FLUX", "PixArt-Sigma", "Wan")


def made_of(name: str) -> Any:
    """A tiny pipeline of a family, the same every time; none of its parameters asks for a gradient."""
    pipe = tiny() if name == "DiT" else made(CASES[name].make)
    denoiser_of(pipe).requires_grad_(False)
    return pipe


def sampling_of(name: str) -> Sampling:
    return Sampling(STEPS, 2.0, 2) if name == "DiT" else replace(CASES[name].sampling, num_inference_steps=STEPS)


@cache
def stages_of(name: str) -> Stages:
    """Traced once for all tests."""
    return Stages.split(trace(made_of(name), sampling_of(name)).timesteps, STAGES)


def image_of(name: str, pipe: Any, seed: int = 1, **more: Any) -> Tensor:
    """What its user gets."""
    if name == "DiT":
        return images(pipe, [1], steps=STEPS, **more)
    return shown(pipe, ["a fox"], [seed], STEPS, **{**CASES[name].call, **more})


def result_of(name: str, pipe: Any, plans: Sequence[Plan] | None = None) -> Compressed:
    """Three stages, in each of them other groups of every layer, with output projections of their own."""
    denoiser = denoiser_of(pipe)
    anatomy = discover(denoiser)
    plans = plans or [random_plan(denoiser, anatomy, seed) for seed in range(STAGES)]
    schedule = Schedule(stages_of(name), ((1,),) * STAGES)
    return Compressed(schedule, tuple(plans), sampling_of(name), fingerprint(denoiser), origin_of(pipe))


def halves(name: str, pipe: Any) -> list[Plan]:
    """Other halves of all groups in each stage: every stage has the shapes of every other."""
    denoiser, plans = denoiser_of(pipe), list[Plan]()
    for seed in range(STAGES):
        generator, cuts = torch.Generator().manual_seed(seed), dict[str, Cut]()
        for layer in discover(denoiser).layers:
            kept = torch.randperm(layer.groups, generator=generator)[: max(1, layer.groups // 2)].sort().values
            if layer.follows is not None and layer.follows in cuts:
                kept = cuts[layer.follows].kept
            dense = output_of(denoiser, layer).weight
            weight = torch.randn(len(dense), len(kept) * layer.width, *dense.shape[2:], generator=generator) / 4
            cuts[layer.name] = Cut(kept, weight)
        plans.append(Plan(cuts))
    return plans


def slim_of(pipe: Any, plan: Plan) -> Any:
    """A pipeline of its own whose denoiser has become the smaller network for good."""
    slim = deepcopy(pipe)
    denoiser = denoiser_of(slim)
    Switch(denoiser).to(realise(denoiser, discover(denoiser), plan))
    return slim


def in_threads(jobs: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """What the jobs give, all at the same time."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def ip_adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """The weights of an IP-Adapter for images embedded in 16 numbers, as its files hold them."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    width, tokens = unet.config.cross_attention_dim, 4
    image = {"proj.weight": random(width * tokens, 16), "proj.bias": random(width * tokens)}
    image |= {"norm.weight": 1 + random(width), "norm.bias": random(width)}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    layers = dict[str, Tensor]()
    for i, name in enumerate(names):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        layers |= {f"{2 * i + 1}.to_{leaf}_ip.weight": random(inner, width) for leaf in ("k", "v")}
    return {"image_proj": image, "ip_adapter": layers}


def load_ip_adapter(pipe: Any) -> None:
    state = ip_adapter(pipe.unet)
    pipe.load_ip_adapter(state, subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    pipe.unet.requires_grad_(False)
