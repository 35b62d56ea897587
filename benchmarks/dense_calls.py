"""A transformer made ready for trying what might make pruning better: its levels, its own dense calls, and a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from diff_es import Levers, Method, Reporter, Sampling, Settings, Width
from diff_es.compression.study import Study, prepare
from diff_es.layers import Plan
from diff_es.pipelines.loading import load
from diff_es.pipelines.probes import make_probes
from diff_es.pipelines.sampling import denoiser_of, sample
from diff_es.pruning.granularity import Depth
from diff_es.routing.placements import Resident
from diff_es.routing.stage_hook import on_stage
from diff_es.scoring.fitness import Fitness

LAST, MODULATION = "proj_out_2", "norm1.linear"  # of DiTTransformer2DModel


@dataclass(frozen=True)
class Call:
    """One of the dense denoiser's own, and what its modules gave."""

    stage: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Mapping[str, Tensor]  # by module: its first input
    results: Mapping[str, Tensor]  # by module


@dataclass(frozen=True)
class Bench:
    """A model made ready, the dense calls of its calibration, and the judge."""

    study: Study
    calls: Sequence[Call]
    fitness: Fitness

    @property
    def denoiser(self) -> Any:
        return denoiser_of(self.study.pipe)

    @property
    def stages(self) -> range:
        return range(len(self.study.stages))

    def of(self, stage: int) -> list[Call]:
        return [call for call in self.calls if call.stage == stage]

    def score(
        self, plans: Sequence[Plan], weights: Mapping[str, Sequence[tuple[Tensor, Tensor]]] | None = None
    ) -> float:
        """Mean SNR in dB; where said, linear modules have other weights and biases, of each stage."""
        stage, hooks = [0], [on_stage(self.denoiser, self.study.stages, lambda now: stage.__setitem__(0, now))]
        for name, of_stages in (weights or {}).items():

            def other(module: nn.Module, args: tuple[Tensor, ...], result: Tensor, own: Any = of_stages) -> Tensor:
                return linear(args[0], *own[stage[0]])

            hooks.append(self.denoiser.get_submodule(name).register_forward_hook(other))
        score = self.fitness.of_plans(plans, Resident(), self.study.own, corrected=False)
        for hook in hooks:
            hook.remove()
        return score

    def evenly(self, levels: Sequence[int]) -> list[Plan]:
        """A level of each stage, the same in all blocks."""
        units = len(self.study.units)
        return [self.study.library.plan(stage, [level] * units) for stage, level in enumerate(levels)]


def made(model: str, sampling: Sampling, samples: int, noises: int, seed: int) -> Bench:
    """Calibrated on so many samples, whose calls are on record, and judged on so many noises."""
    method = Method(Width(dense=(), depth=Depth()))
    settings = Settings(sampling, levers=Levers.PRUNE, method=method, calibration_samples=samples, seed=seed)
    study = prepare(load(model, dtype=torch.float32), settings, Reporter())
    judged = replace(study, settings=replace(study.settings, held_out_noises=noises)).part(0)
    return Bench(study, recorded(study), judged)


def recorded(study: Study) -> list[Call]:
    """The dense calls of the calibration's samples, with what layers, blocks and the last projection took and gave."""
    denoiser, anatomy, calls, stage = denoiser_of(study.pipe), study.anatomy, list[Call](), [0]
    names = {LAST, *(layer.output for layer in anatomy.layers), *(block.name for block in anatomy.blocks)}
    names |= {name for name, _ in denoiser.named_modules() if name.endswith(MODULATION)}

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(stage[0], args, kwargs, {}, {}))

    def noted(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def note(module: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
            calls[-1].given[name], calls[-1].results[name] = args[0], result  # type: ignore[index]

        return note

    hooks = [on_stage(denoiser, study.stages, lambda now: stage.__setitem__(0, now))]
    hooks.append(denoiser.register_forward_pre_hook(begin, with_kwargs=True))
    hooks += [denoiser.get_submodule(name).register_forward_hook(noted(name)) for name in names]
    settings = study.settings
    probes = make_probes(study.pipe, study.calibration_samples, settings.seed, "calibration", settings.prompts)
    for start in range(0, len(probes), settings.sampling.batch):
        sample(study.pipe, probes[start : start + settings.sampling.batch], settings.sampling)
    for hook in hooks:
        hook.remove()
    return calls
