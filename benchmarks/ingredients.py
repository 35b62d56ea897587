"""What might make pruning itself better, each by itself, at equal levels: the last table of docs/tables/few-steps.md.

    python benchmarks/ingredients.py --model bundled-turbo --steps 4 --guidance 1
    python benchmarks/ingredients.py --model bundled --steps 20 --guidance 2

For a transformer of diffusers' DiT class. Every row is a schedule as the library makes it, and with one thing changed:
mean SNR in dB of the final latent against the dense one, on noises that calibration never saw. Schedules are of one
level in all blocks and stages; "uneven" has the deepest level in the first half of the stages and level 1 after it.

effect: groups go in the order of what their absence does to the denoiser's output, not to their layer's: the rows of a
layer's projection are weighed by the mean squared gradient of the output, along random directions.
received: projections are fitted once more, layer by layer, from what they receive in the pruned network to what the
dense one gives (GPTAQ, arXiv 2504.02692), pulled towards what they were.
last: the projection that the network ends with is fitted in the same way, each stage its own.
run: a run of blocks is skipped with one linear map for all of it, in place of as many single ones with one each.
recalled: what a skipped block adds is fitted from its input and from what it added a step before, where it ran; means
over blocks and steps of the SNR of what it gives, not of images.
modulation: the projections of timestep and class are replaced by ones of low rank, of a stage's own; nothing is pruned.
narrow: the least of the dimensions of queries and keys go, by what each adds to their product; nothing else is pruned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from common import CalibrationSamples, Guidance, Model, Noises, Seed, Steps, header, options, row
from dense_calls import LAST, MODULATION, Bench, made
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from diff_es import Sampling
from diff_es.layers import Bypass, Cut, Layer, Plan, as_matrix
from diff_es.pruning.accumulator import Accumulator
from diff_es.pruning.compensation import Ridge, regress
from diff_es.pruning.importance import Obs
from diff_es.pruning.solving import solved
from diff_es.routing.realise import output_of, realise, weight_of
from diff_es.routing.switch import Switch


@dataclass(frozen=True)
class Options:
    model: Model = "bundled-turbo"
    steps: Steps = 4
    guidance: Guidance = 1.0
    levels: Annotated[tuple[int, ...], "of all stages"] = (2, 4)
    ingredients: Annotated[tuple[str, ...], "the rows; default all"] = ()
    calibration_samples: CalibrationSamples = 128
    noises: Noises = 48
    seed: Seed = 0


def main() -> None:
    asked = options(Options, __doc__)
    bench = made(
        asked.model, Sampling(asked.steps, asked.guidance), asked.calibration_samples, asked.noises, asked.seed
    )
    count, half = len(bench.stages), len(bench.stages) // 2
    shapes = {f"level {level}": [level] * count for level in asked.levels}
    shapes["uneven"] = [7] * half + [1] * (count - half)
    header("model", "ingredient", "schedule", "without (dB)", "with (dB)")
    for name in asked.ingredients or INGREDIENTS:
        for told, before, after in INGREDIENTS[name](bench, shapes):
            row(asked.model, name, told, f"{before:.2f}", f"{after:.2f}")


Rows = Iterator[tuple[str, float, float]]
Shapes = Mapping[str, Sequence[int]]


def effect(bench: Bench, shapes: Shapes) -> Rows:
    powers = _gradient_powers(bench)
    for told, levels in shapes.items():
        plans, changed = bench.evenly(levels), list[Plan]()
        for stage, plan in enumerate(plans):
            cuts = dict[str, Cut]()
            for layer in _cut(bench, plan):
                output, kept = output_of(bench.denoiser, layer), len(plan.cuts[layer.name].kept)
                weight, moments = as_matrix(weight_of(output, layer)), bench.study.library.moments(stage, layer.name)
                order = Obs().order(weight * powers[stage][layer.name].sqrt()[:, None], moments, layer.width)
                (found,) = solved(Ridge(), output, layer, moments, layer.columns(order), [kept])
                groups = order[-kept:].sort().values
                cuts[layer.name] = Cut(groups, found.weight.to(weight), found.bias.to(weight))
            changed.append(Plan(cuts))
        yield told, bench.score(plans), bench.score(changed)


def _gradient_powers(bench: Bench) -> list[dict[str, Tensor]]:
    """(O,) of each stage and layer: the mean square of the gradient of the denoiser's output, along random signs."""
    found, generator = list[dict[str, Tensor]](), torch.Generator().manual_seed(0)
    for stage in bench.stages:
        powers = {layer.name: torch.zeros(()) for layer in bench.study.anatomy.layers}
        hooks = [
            bench.denoiser.get_submodule(layer.output).register_forward_hook(partial(_on_gradient, powers, layer.name))
            for layer in bench.study.anatomy.layers
        ]
        for call in bench.of(stage)[:_FEW]:
            with torch.enable_grad():
                result = bench.denoiser(*call.args, **_graded(call.kwargs))[0]
                result.backward(torch.randint(0, 2, result.shape, generator=generator).to(result) * 2 - 1)
        for hook in hooks:
            hook.remove()
        found.append(powers)
    bench.denoiser.zero_grad(set_to_none=True)
    return found


def _on_gradient(powers: dict[str, Tensor], name: str, module: nn.Module, args: object, result: Tensor) -> None:
    def add(gradient: Tensor) -> None:
        powers[name] = powers[name] + gradient.flatten(0, -2).square().mean(0)

    result.register_hook(add)


def _graded(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    copies = {name: one.clone() for name, one in kwargs.items() if isinstance(one, Tensor) and one.is_floating_point()}
    return {**kwargs, **{name: one.requires_grad_() for name, one in copies.items()}}


def received(bench: Bench, shapes: Shapes) -> Rows:
    for told, levels in shapes.items():
        plans, changed = bench.evenly(levels), list[Plan]()
        for stage, plan in enumerate(plans):
            for layer in _cut(bench, plan):
                cut = plan.cuts[layer.name]
                assert cut.weight is not None
                weight, bias = _refitted(bench, stage, plan, layer.output, cut.weight)
                plan = replace(plan, cuts={**plan.cuts, layer.name: replace(cut, weight=weight, bias=bias)})
            changed.append(plan)
        yield told, bench.score(plans), bench.score(changed)


def last(bench: Bench, shapes: Shapes) -> Rows:
    module = bench.denoiser.get_submodule(LAST)
    for told, levels in shapes.items():
        plans = bench.evenly(levels)
        fitted = [_refitted(bench, stage, plan, LAST, module.weight.detach()) for stage, plan in enumerate(plans)]
        yield told, bench.score(plans), bench.score(plans, {LAST: fitted})


def _refitted(bench: Bench, stage: int, plan: Plan, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(O, K) and (O,): ridge regression of what a module gives in the dense network on what it receives in the pruned
    one, towards ``weight``."""
    sums = [torch.zeros(weight.shape[1] + 1, len(weight) + weight.shape[1] + 1, dtype=torch.float64)]

    def add(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        inputs = args[0].flatten(0, -2).double()
        rows = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        sums[0] += rows.T @ torch.cat([rows, target.flatten(0, -2).double()], 1)

    switch = Switch(bench.denoiser)
    switch.to(realise(bench.denoiser, bench.study.anatomy, plan))
    hook = bench.denoiser.get_submodule(name).register_forward_hook(add)
    with torch.no_grad():
        for call in bench.of(stage):
            target = call.results[name]
            bench.denoiser(*call.args, **call.kwargs)
    hook.remove()
    switch.put({})
    second = sums[0] / sums[0][-1, len(weight[0])]
    mean, wanted = second[:-1, weight.shape[1]], second[-1, weight.shape[1] + 1 :]
    hessian = second[:-1, : weight.shape[1]] - mean[:, None] * mean
    cross = second[:-1, weight.shape[1] + 1 :].T - wanted[:, None] * mean
    pull = _PULL * hessian.diagonal().mean()
    damped = hessian + pull * torch.eye(len(hessian), dtype=hessian.dtype)
    found = torch.linalg.solve(damped, (cross + pull * weight.double()).T).T
    return found.to(weight), (wanted - found @ mean).to(weight)


def run(bench: Bench, shapes: Shapes) -> Rows:
    blocks, skipped = bench.study.anatomy.blocks, len(bench.study.units[0].options) - 1
    for length in (2, 3):
        single, runs = list[Plan](), list[Plan]()
        for stage in bench.stages:
            errors = [(_skipping(bench, stage, index, 1)[1], index) for index in range(len(blocks))]
            least = sorted(index for _, index in sorted(errors)[:length])
            levels = [skipped if index in least else 0 for index in range(len(blocks))]
            single.append(bench.study.library.plan(stage, levels))
            found = [_skipping(bench, stage, index, length) for index in range(len(blocks) - length + 1)]
            runs.append(min(found, key=lambda one: one[1])[0])
        yield f"{length} blocks", bench.score(single), bench.score(runs)


def _skipping(bench: Bench, stage: int, first: int, length: int) -> tuple[Plan, float]:
    """One linear map in place of a run of blocks, and the error that it leaves relative to the run's output."""
    names = [block.name for block in bench.study.anatomy.blocks[first : first + length]]
    calls = bench.of(stage)
    sums, power = Accumulator(), 0.0
    for call in calls:
        before, after = call.given[names[0]], call.results[names[-1]]
        sums.add(torch.cat([before, after - before], -1))
        power += float(after.square().sum(-1).mean()) / len(calls)
    weight, bias, left = regress(sums.moments(), before.shape[-1], Ridge().damping)
    bypass = Bypass(weight.float(), bias.float())
    return Plan(bypasses={**dict.fromkeys(names), names[0]: bypass}), left / power


def recalled(bench: Bench, shapes: Shapes) -> Rows:
    length, found = len(set(bench.study.trace.timesteps)), (list[float](), list[float]())
    for block in bench.study.anatomy.blocks:
        for step in range(1, length):
            sums, power = (Accumulator(), Accumulator()), 0.0
            for start in range(step, len(bench.calls), length):
                before, now = bench.calls[start - 1], bench.calls[start]
                inputs, output = now.given[block.name], now.results[block.name]
                added = before.results[block.name] - before.given[block.name]
                sums[0].add(torch.cat([inputs, output - inputs], -1))
                sums[1].add(torch.cat([inputs, added, output - inputs], -1))
                power += float(output.square().sum(-1).mean()) * length / len(bench.calls)
            for one, size, ratios in zip(sums, (inputs.shape[-1], 2 * inputs.shape[-1]), found, strict=True):
                ratios.append(10 * math.log10(power / regress(one.moments(), size, Ridge().damping)[2]))
    yield "one block", statistics.mean(found[0]), statistics.mean(found[1])


def modulation(bench: Bench, shapes: Shapes) -> Rows:
    names = [name for name, _ in bench.denoiser.named_modules() if name.endswith(MODULATION)]
    dense = [Plan()] * len(bench.stages)
    for rank in (4, 16, 64):
        low = {name: [_of_rank(bench, stage, name, rank) for stage in bench.stages] for name in names}
        yield f"rank {rank}", bench.score(dense), bench.score(dense, low)


def _of_rank(bench: Bench, stage: int, name: str, rank: int) -> tuple[Tensor, Tensor]:
    """Of a linear module: reduced-rank regression on what it receives in a stage."""
    module = bench.denoiser.get_submodule(name)
    inputs = torch.cat([call.given[name] for call in bench.of(stage)]).double()
    mean, weight = inputs.mean(0), module.weight.detach().double()
    spread = (inputs - mean) @ weight.T
    _, _, directions = torch.linalg.svd(spread, full_matrices=False)
    projection = directions[:rank].T @ directions[:rank]
    low = projection @ weight
    return low.float(), (module.bias.detach() + (weight - low) @ mean).float()


def narrow(bench: Bench, shapes: Shapes) -> Rows:
    dense, attention = (
        [Plan()] * len(bench.stages),
        [one for one in bench.denoiser.modules() if isinstance(one, Attention)],
    )
    for share in (4, 2):
        kept = {one: deepcopy(one.state_dict()) for one in attention}
        before = bench.score(dense)
        for module in attention:
            pair = (module.to_q, module.to_k)
            powers = [torch.cat([one.weight, one.bias[:, None]], 1).detach().square().sum(1) for one in pair]
            products = (powers[0] * powers[1]).view(module.heads, -1)
            least = products.argsort(1)[:, : products.shape[1] // share]
            rows = (least + torch.arange(module.heads)[:, None] * products.shape[1]).flatten()
            for one in pair:
                one.weight.data[rows], one.bias.data[rows] = 0, 0
        yield f"1/{share} of each head", before, bench.score(dense)
        for module, state in kept.items():
            module.load_state_dict(state)


def _cut(bench: Bench, plan: Plan) -> list[Layer]:
    """In the order in which they run."""
    return [layer for layer in bench.study.anatomy.layers if layer.name in plan.cuts]


_FEW, _PULL = 4, 0.1
"""Calls of a stage that gradients are taken of; how much a weight is pulled towards what it was, relative to the mean
power of its inputs."""

INGREDIENTS: dict[str, Callable[[Bench, Shapes], Rows]] = {
    "effect": effect,
    "received": received,
    "last": last,
    "run": run,
    "recalled": recalled,
    "modulation": modulation,
    "narrow": narrow,
}


if __name__ == "__main__":
    main()
