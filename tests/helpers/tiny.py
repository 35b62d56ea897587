"""Tiny DiT pipelines of random weights, made from diffusers' own classes, and what tests do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

from diff_es import Method, Sampling, Settings, Width
from diff_es.compression.settings import Levers
from diff_es.layers import Bypass, Cut, Plan, discover
from diff_es.pruning.granularity import Granularity
from diff_es.pruning.statistics import Statistics
from diff_es.routing.placements import Placement, Resident, Store
from diff_es.trajectory.stages import Stages

HEADS, SIZE, BLOCKS, HIDDEN = 3, 8, 3, 24
"""Of a lone :func:`denoiser`."""
CALL = Sampling(num_inference_steps=6, guidance_scale=2.0, batch=2)
EIGHT = Method(Width(8, dense=()), granularity=Granularity.WHOLE)


@dataclass(frozen=True)
class Shape:
    """Everything that makes one tiny pipeline different from another."""

    heads: int = 4
    head_size: int = 4
    layers: int = 2
    patch: int = 2
    sigma: bool = False  # whether the denoiser also gives a variance, as DiT-XL does
    activation: str = "gelu-approximate"
    scheduler: type = DDIMScheduler
    options: dict[str, Any] = field(default_factory=dict)  # of the scheduler
    dtype: torch.dtype = torch.float32
    decoder: type = AutoencoderKL
    names: tuple[str, ...] = ()  # of the classes
    seed: int = 0


def denoiser(activation: str = "gelu-approximate", bias: bool = True) -> DiTTransformer2DModel:
    """Without a pipeline: (N, 4, 8, 8) in and out, 16 tokens, three blocks of three heads."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=SIZE,
        in_channels=4,
        num_layers=BLOCKS,
        sample_size=8,
        patch_size=2,
        activation_fn=activation,
        attention_bias=bias,
        num_embeds_ada_norm=1000,
    )
    for parameter in model.parameters():  # fresh networks of this kind are near the identity
        nn.init.normal_(parameter, std=0.25)
    return model.eval().requires_grad_(False)


def tiny(**changes: Any) -> DiTPipeline:
    """8x8 latents of 4 channels, 16x16 images; the same arguments always give the same weights."""
    shape = replace(Shape(), **changes)
    transformer = DiTTransformer2DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_size,
        in_channels=4,
        out_channels=8 if shape.sigma else 4,
        num_layers=shape.layers,
        sample_size=8,
        patch_size=shape.patch,
        activation_fn=shape.activation,
        num_embeds_ada_norm=1000,
    )
    options = {"clip_sample": False} if shape.scheduler is DDIMScheduler else {}
    scheduler = shape.scheduler(beta_end=0.002, **options, **shape.options)  # so little noise that every step counts
    vae = _decoder(shape.decoder)
    generator = torch.Generator().manual_seed(shape.seed)
    for part in (transformer, vae):
        _randomise(part.eval(), generator)
    pipe = DiTPipeline(transformer, vae, scheduler, id2label=dict(enumerate(shape.names)) or None)
    pipe.set_progress_bar_config(disable=True)
    return pipe if shape.dtype is torch.float32 else pipe.to(shape.dtype)


def _decoder(kind: type) -> nn.Module:
    if kind is AutoencoderDC:
        blocks = {f"{side}_block_types": ("ResBlock", "ResBlock") for side in ("encoder", "decoder")}
        widths = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
        depths = {f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")}
        scales = {f"{side}_qkv_multiscales": ((), ()) for side in ("encoder", "decoder")}
        return AutoencoderDC(latent_channels=4, attention_head_dim=8, **blocks, **widths, **depths, **scales)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=1.0,
    )


def _randomise(part: nn.Module, generator: torch.Generator) -> None:
    """No weight stays zero: diffusers' own start leaves some gates shut."""
    for parameter in part.parameters():
        spread = 0.2 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        noise = torch.randn(parameter.shape, generator=generator) * spread
        keep = parameter.dim() < 2 and bool((parameter == 1).all())  # the scale of a norm
        parameter.data.copy_(parameter.data + noise if keep else noise)


def settings(**changes: Any) -> Settings:
    """A search of a second among levels alone: 3 stages of 2 steps, 4 levels, 2 generations of 4."""
    small = Settings(
        sampling=CALL,
        stages=3,
        levers=Levers.PRUNE,
        method=Method(
            Width(4, dense=()), granularity=Granularity.WHOLE
        ),  # no timing: its findings may differ from run to run
        calibration_samples=4,
        search_noises=2,
        first_rung=0,
        finalists=2,
        held_out_noises=2,
        population=4,
        generations=2,
        front=(),
    )
    return replace(small, **changes)


LITTLE: dict[str, Any] = {
    "calibration_samples": 2,
    "search_noises": 1,
    "held_out_noises": 1,
    "finalists": 1,
    "population": 3,
    "generations": 1,
}
"""Settings of the least search, for tests that need a result, whichever it is."""


def joint(**changes: Any) -> Settings:
    """The same among steps and levels, against twice the user's own steps; the worse half drops out after one probe."""
    small = {
        "levers": Levers.BOTH,
        "reference_multiple": 2,
        "first_rung": 1,
        "timestep_generations": 2,
        "timestep_offspring": 2,
    }
    return settings(**{**small, **changes})


def noises(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed * 1000 + i) for i in range(count)]


def images(pipe: DiTPipeline, labels: Sequence[int] = (1, 2), steps: int = 6, guidance: float = 2.0) -> Tensor:
    """What a user of the pipeline gets, (N, 3, 16, 16)."""
    shown = pipe(
        class_labels=list(labels),
        guidance_scale=guidance,
        num_inference_steps=steps,
        generator=noises(len(labels)),
        output_type="pt",
    ).images
    assert shown.float().isfinite().all()
    return shown


def stages_of(pipe: DiTPipeline, count: int, sampling: Sampling = CALL) -> Stages:
    scheduler = deepcopy(pipe.scheduler)
    scheduler.set_timesteps(sampling.steps)
    return Stages.split(scheduler.timesteps.tolist(), count)


def opened(pipe: DiTPipeline, plans: Sequence[Plan], placement: Placement | None = None) -> Callable[[], Store]:
    """What ``routed`` takes; by default with all weights on the device."""
    denoiser = pipe.transformer
    return partial((placement or Resident()).open, denoiser, discover(denoiser), plans)


def random_plan(pipe: DiTPipeline, seed: int, skip: Sequence[int] = ()) -> Plan:
    """About half of the groups of every layer that is not skipped, with new random output projections."""
    generator = torch.Generator().manual_seed(seed)
    anatomy, cuts = discover(pipe.transformer), dict[str, Cut]()
    gone = {anatomy.blocks[i].name for i in skip}
    for layer in anatomy.layers:
        if layer.name.rpartition(".")[0] not in gone:
            kept = torch.randperm(layer.groups, generator=generator)[: layer.groups // 2 + 1].sort().values
            width = pipe.transformer.get_submodule(layer.output).out_features
            weight = torch.randn(width, len(kept) * layer.width, generator=generator) * layer.groups**-0.5
            cuts[layer.name] = Cut(kept, weight, torch.randn(width, generator=generator) * 0.1)
    bypasses = {
        block.name: Bypass(torch.randn(block.width, block.width, generator=generator) * 0.1, torch.ones(block.width))
        for block in anatomy.blocks
        if block.name in gone
    }
    return Plan(cuts, bypasses)


def slimmed(denoiser: Any, plan: Plan) -> nn.Module:
    """A copy whose linear layers are really smaller, built without the code under test."""
    copy, names = deepcopy(denoiser), [f"transformer_blocks.{i}" for i in range(len(denoiser.transformer_blocks))]
    for name, block in zip(names, copy.transformer_blocks, strict=True):
        attention, first, second = block.attn1, block.ff.net[0], block.ff.net[2]
        if cut := plan.cuts.get(f"{name}.attn1"):
            size = attention.inner_dim // attention.heads
            rows = torch.cat([torch.arange(size) + head * size for head in cut.kept.tolist()])
            for leaf in ("to_q", "to_k", "to_v"):
                setattr(attention, leaf, _linear(getattr(attention, leaf), rows))
            attention.to_out[0] = _replaced(attention.to_out[0], rows, cut)
            attention.heads = len(cut.kept)
        if cut := plan.cuts.get(f"{name}.ff"):
            hidden = second.in_features
            halves = first.proj.out_features // hidden
            first.proj = _linear(first.proj, torch.cat([cut.kept + half * hidden for half in range(halves)]))
            block.ff.net[2] = _replaced(second, cut.kept, cut)
        if name in plan.bypasses:
            block.forward = _straight(plan.bypasses[name])
    return copy


def _linear(dense: nn.Linear, rows: Tensor) -> nn.Linear:
    small = nn.Linear(dense.in_features, len(rows), bias=dense.bias is not None, dtype=dense.weight.dtype)
    small.load_state_dict({name: value[rows] for name, value in dense.state_dict().items()})
    return small


def _replaced(dense: nn.Linear, columns: Tensor, cut: Cut) -> nn.Linear:
    small = nn.Linear(len(columns), dense.out_features, dtype=dense.weight.dtype)
    weight = dense.weight[:, columns] if cut.weight is None else cut.weight
    small.load_state_dict({"weight": weight, "bias": dense.bias if cut.bias is None else cut.bias})
    return small


def _straight(bypass: Bypass | None) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, **others: Any) -> Tensor:
        return hidden_states if bypass is None else hidden_states + (hidden_states @ bypass.weight.T + bypass.bias)

    return forward


@torch.no_grad()
def by_hand(
    pipe: DiTPipeline, networks: Sequence[nn.Module], labels: Sequence[int], guidance: float
) -> Iterator[Tensor]:
    """The pipeline's sampler spelt out, network i at step i; yields the latents after every step."""
    scheduler, count = deepcopy(pipe.scheduler), len(labels)
    noise = [torch.randn((4, 8, 8), generator=generator) for generator in noises(count)]
    latents, classes = torch.stack(noise), torch.tensor(labels)
    scheduler.set_timesteps(len(networks))
    if guidance > 1:
        latents, classes = latents.repeat(2, 1, 1, 1), torch.cat([classes, torch.full((count,), 1000)])
    for t, network in zip(scheduler.timesteps, networks, strict=True):
        if guidance > 1:
            latents = latents[:count].repeat(2, 1, 1, 1)
        scaled = scheduler.scale_model_input(latents, t)
        output = network(scaled, timestep=t.expand(len(scaled)), class_labels=classes).sample[:, :4]
        if guidance > 1:
            with_class, without = output[:count], output[count:]
            output = (without + guidance * (with_class - without)).repeat(2, 1, 1, 1)
        latents = scheduler.step(output, t, scaled).prev_sample
        yield latents[:count]


def snapshot(denoiser: nn.Module) -> dict[str, Any]:
    """Everything that hangs on a network's modules, and the value of every weight."""
    state = {f"value of {name}": value.clone() for name, value in denoiser.state_dict().items()}
    for name, module in denoiser.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                state |= {f"{name}.{key}[{entry!r}]": found for entry, found in value.items()}
            state[f"{name}.{key}"] = len(value) if isinstance(value, dict) else value
    return state


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The same attributes, hooks and parameter objects as before, and bitwise the same weights."""
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key.startswith("value of "):
            assert torch.equal(value, after[key]), key
        elif isinstance(value, Tensor | nn.Module):
            assert value is after[key], key
        else:
            assert value == after[key], key


def assert_same_plans(some: Sequence[Plan], others: Sequence[Plan]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.cuts.keys() == other.cuts.keys()
        assert one.bypasses.keys() == other.bypasses.keys()
        pairs = [(one.cuts[name], other.cuts[name]) for name in one.cuts]
        pairs += [(one.bypasses[name], other.bypasses[name]) for name in one.bypasses]  # type: ignore[misc]
        for a, b in pairs:
            values = zip(vars(a).values(), vars(b).values(), strict=True) if a is not None else [(a, b)]
            assert all(x is y or torch.equal(x, y) for x, y in values)


def assert_same_statistics(one: Statistics, other: Statistics) -> None:
    """To the bit, and in the same order."""
    assert one.change == other.change
    for here, there in zip(one.stages, other.stages, strict=True):
        assert list(here) == list(there)
        for name in here:
            assert here[name].count == there[name].count
            for key in ("second", "first", "shift"):
                assert torch.equal(getattr(here[name], key), getattr(there[name], key))


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[int]]:
    """How often a module is called. A denoiser is called whether it runs or not; what is within it tells if it did."""
    calls = [0]

    def hook(*_: Any) -> None:
        calls[0] += 1

    handle = module.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()
