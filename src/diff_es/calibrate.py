"""The dense model's own trajectories, sorted into the statistics of each stage; no data set is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Anatomy, Block, Layer
from .obs import Moments
from .pipeline import Pipeline, Probe, Sampling, denoiser_of, on_timestep, sample
from .progress import Reporter
from .schedule import Stages


@dataclass(frozen=True)
class Statistics:
    """Per stage, by name: the moments of each layer's output-projection input, and of each block's [input, residual].

    ``change[s]`` is the mean relative change of the denoiser's output from one step to the next in stage s.
    """

    stages: tuple[dict[str, Moments], ...]
    change: tuple[float, ...]

    def shared(self) -> dict[str, Moments]:
        """One set of statistics for the whole trajectory: the sum over the stages."""
        return {name: sum_moments([stage[name] for stage in self.stages]) for name in self.stages[0]}


def sum_moments(parts: Sequence[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class _Accumulator:
    """Running sums around the first batch's mean, float32 on the device of the data."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        self._count = 0

    def add(self, vectors: Tensor) -> None:
        x = vectors.detach().reshape(-1, vectors.shape[-1]).float()
        if self._sums is None:
            self._sums = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1]), x.mean(0)
        second, first, shift = self._sums
        x = x - shift
        second.addmm_(x.T, x)
        first += x.sum(0)
        self._count += len(x)

    def moments(self) -> Moments:
        assert self._sums is not None
        second, first, shift = self._sums
        return Moments(second, first, self._count, shift)


class _Change:
    """Relative change of the denoiser's output between neighbouring steps of a trajectory, by stage."""

    def __init__(self, stages: int) -> None:
        self._sums, self._counts = [0.0] * stages, [0] * stages
        self.before: Tensor | None = None

    def add(self, stage: int, output: Tensor) -> None:
        now = output.detach().float()
        if self.before is not None:
            self._sums[stage] += float((now - self.before).norm() / self.before.norm())
            self._counts[stage] += 1
        self.before = now

    def means(self) -> tuple[float, ...]:
        return tuple(total / max(count, 1) for total, count in zip(self._sums, self._counts, strict=True))


def calibrate(
    pipe: Pipeline,
    probes: Sequence[Probe],
    sampling: Sampling,
    stages: Stages,
    layers: Sequence[Layer],
    blocks: Sequence[Block],
    reporter: Reporter,
) -> Statistics:
    """Run the dense pipeline once over the probes with the user's own setting (section 2 of docs/method.md).

    Args:
        layers: layers whose output-projection inputs are gathered.
        blocks: blocks whose inputs and residuals are gathered.
    """
    denoiser, current = denoiser_of(pipe), [0]
    names = [layer.name for layer in layers] + [block.name for block in blocks]
    sums = [{name: _Accumulator() for name in names} for _ in range(len(stages))]
    change = _Change(len(stages))

    def of_layer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            sums[current[0]][name].add(args[0])

        return hook

    def of_block(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            sums[current[0]][name].add(torch.cat([hidden, output - hidden], -1))

        return hook

    def of_denoiser(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        change.add(current[0], output[0])

    def enter(timestep: float) -> None:
        current[0] = stages.index(timestep)

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would trace the hooks
        stack.callback(on_timestep(denoiser, enter).remove)
        stack.callback(denoiser.register_forward_hook(of_denoiser).remove)
        for layer in layers:
            module = denoiser.get_submodule(layer.output)
            stack.callback(module.register_forward_pre_hook(of_layer(layer.name)).remove)
        for block in blocks:
            module = denoiser.get_submodule(block.name)
            stack.callback(module.register_forward_hook(of_block(block.name), with_kwargs=True).remove)
        chunks = [probes[i : i + sampling.batch] for i in range(0, len(probes), sampling.batch)]
        with reporter.task("calibrate", len(chunks)) as task:
            for chunk in chunks:
                change.before = None
                sample(pipe, chunk, sampling)
                task.advance()
    gathered = tuple({name: part.moments() for name, part in stage.items()} for stage in sums)
    return Statistics(gathered, change.means())


def parts_of(anatomy: Anatomy, *, thin: bool, skip: bool) -> tuple[tuple[Layer, ...], tuple[Block, ...]]:
    """The layers and blocks that a ladder needs statistics of."""
    return (anatomy.layers if thin else ()), (anatomy.blocks if skip else ())
