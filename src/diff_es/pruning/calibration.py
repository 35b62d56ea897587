"""The dense model's own trajectories, sorted into the statistics of each stage; no data set is needed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..layers import (
    Anatomy,
    Block,
    Convolution,
    Layer,
    channel_dimension,
    check_evaluating,
    given_to,
    often_seen,
    submodule,
)
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.finite import check_finite
from ..pipelines.probes import Probe
from ..pipelines.sampling import denoiser_of, sample
from ..pipelines.timestep_hook import on_timestep
from ..routing.bypass import shortcut_of
from ..routing.realise import output_of
from ..routing.stage_hook import on_stage
from ..trajectory.stages import Stages
from ..utils.calls import Args, Kwargs
from ..utils.errors import DiffESError
from ..utils.progress import Reporter
from .moments import Moments


@dataclass(frozen=True)
class Statistics:
    """Per stage, by name: the moments of each layer's output-projection input, and of each block's [input, residual],
    which for a second stream are named as ``Block.streams`` says.

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
        """Add vectors (..., D)."""
        x = vectors.detach().reshape(-1, vectors.shape[-1]).float()
        second, first, shift = self._around(x)
        x = x - shift
        second.addmm_(x.T, x)
        first += x.sum(0)
        self._count += len(x)

    def add_pixels(self, images: Tensor, module: Convolution, outputs: Sequence[int]) -> None:
        """Add what the taps of a convolution see of images (N, D, H, W), or (N, D, L): each pixel as often as it is
        seen, and the zeros beside them, which are much of a small image.

        Args:
            outputs: the sizes of what comes out of it, without batch and channels.
        """
        often, looks = often_seen(module, images.shape[2:], outputs)
        x = images.detach().movedim(1, -1).reshape(-1, images.shape[1]).float()
        second, first, shift = self._around(x)
        x, zeros = x - shift, (looks - int(often.sum(dtype=torch.float64))) * len(images)
        weighted = x * often.flatten().repeat(len(images)).to(x.device)[:, None]
        second.addmm_(weighted.T, x).addmm_(shift[:, None], shift[None], alpha=zeros)
        first += weighted.sum(0) - zeros * shift
        self._count += looks * len(images)

    def _around(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._sums is None:
            self._sums = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1]), x.mean(0)
        return self._sums

    @property
    def empty(self) -> bool:
        return self._sums is None

    @property
    def finite(self) -> bool:
        """Whether no square overflowed; then no product did."""
        return self._sums is not None and bool(torch.isfinite(self._sums[0].diagonal()).all())

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
        if self.before is not None and self.before.shape == now.shape:
            change = float((now - self.before).norm() / self.before.norm())
            if math.isfinite(change):  # relative to an output that is nothing there is none
                self._sums[stage] += change
                self._counts[stage] += 1
        self.before = now

    def means(self) -> tuple[float, ...]:
        return tuple(total / max(count, 1) for total, count in zip(self._sums, self._counts, strict=True))


class Gatherer:
    """Hooks on a dense denoiser that sort what passes through it into the statistics of the stages.

    Used in a ``with`` block; every denoiser call inside belongs to the stage of its own timestep.

    Args:
        layers: layers whose output-projection inputs are gathered: of a convolution, one vector for each tap that
            looks at a pixel, or at the padding.
        blocks: blocks whose inputs and residuals are gathered, for each of their streams.
    """

    def __init__(self, denoiser: nn.Module, stages: Stages, layers: Sequence[Layer], blocks: Sequence[Block]) -> None:
        names = [layer.name for layer in layers] + [stream for block in blocks for stream in block.streams]
        self._denoiser, self._stages, self._layers, self._blocks = denoiser, stages, layers, blocks
        self._sums = [{name: _Accumulator() for name in names} for _ in range(len(stages))]
        self._change, self._stage, self._stack = _Change(len(stages)), 0, ExitStack()
        self._heard, self._calls = list[float](), [0] * len(stages)  # timesteps, and how many of each stage

    def __enter__(self) -> Gatherer:
        check_evaluating(self._denoiser)
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would trace the hooks
            stack.callback(on_stage(self._denoiser, self._stages, self._enter).remove)
            stack.callback(on_timestep(self._denoiser, self._heard.append).remove)
            stack.callback(self._denoiser.register_forward_hook(self._of_denoiser).remove)
            for layer in self._layers:
                module, hook = self._denoiser.get_submodule(layer.output), partial(self._of_layer, layer)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            for block in self._blocks:
                module = self._denoiser.get_submodule(block.name)
                watch = partial(self._of_block, block)
                stack.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """The next denoiser call is the first of a trajectory."""
        self._change.before = None

    def statistics(self) -> Statistics:
        """What has been gathered.

        Raises:
            DiffESError: a stage had no calls, a layer or block never ran in it, or its sums are not finite; the message
                names it.
        """
        for stage, sums in enumerate(self._sums):
            for name, part in sums.items():
                if part.empty:
                    found, remedy = self._missing(stage)
                    expected = "inputs in every stage"
                    raise DiffESError(f"calibration, {name}", expected=expected, found=found, remedy=remedy)
                if not part.finite:
                    remedy = "Search steps alone (`--levers steps`), for which nothing is calibrated."
                    expected, found = "inputs whose squares float32 holds", f"NaN or infinity in stage {stage}"
                    raise DiffESError(f"calibration, {name}", expected=expected, found=found, remedy=remedy)
        gathered = tuple({name: part.moments() for name, part in stage.items()} for stage in self._sums)
        return Statistics(gathered, self._change.means())

    def _missing(self, stage: int) -> tuple[str, str]:
        """What was found of a stage without inputs, and what to do."""
        found, own = f"none in stage {stage}", self._stages.boundaries
        if self._calls[stage] or not self._heard:
            return found, "Calibrate with calls in which it runs, such as those that use its adapter."
        heard = f"from {max(self._heard):g} to {min(self._heard):g}"
        found += f": all timesteps were {heard}, and stages are cut at {', '.join(f'{t:g}' for t in own)}"
        return found, (
            "Cut the stages in what the denoiser itself receives: Stages.split(its timesteps, count), from noise to "
            "image; where its time rises to the image, wrap it in a module that takes the time left."
        )

    def _enter(self, stage: int) -> None:
        self._stage = stage
        self._calls[stage] += 1

    def _of_denoiser(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._change.add(self._stage, _prediction(output))

    def _of_layer(self, layer: Layer, module: nn.Module, args: Args, kwargs: Kwargs, result: Tensor) -> None:
        sums, projection, given = (
            self._sums[self._stage][layer.name],
            output_of(self._denoiser, layer),
            given_to(args, kwargs),
        )
        channels = channel_dimension(projection, given)
        own = given.narrow(channels, layer.start, layer.size)
        if isinstance(projection, Convolution):
            batch = own if channels else own[None]
            sums.add_pixels(batch, projection, result.shape[channels + 1 :])
        else:
            sums.add(own)

    def _of_block(self, block: Block, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        plain = submodule(self._denoiser, block.name)
        names = list(inspect.signature(type(plain).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        results = dict(zip(block.returns, output, strict=True)) if block.returns else {"hidden_states": output}
        hidden = given[names[0]]
        shortcut = shortcut_of(self._denoiser, block)
        residual = results["hidden_states"] - (hidden if shortcut is None else shortcut(hidden))
        pairs = [(hidden, residual)]
        if block.context is not None:
            context = given["encoder_hidden_states"]
            pairs.append((context, results["encoder_hidden_states"] - context))
        for name, pair in zip(block.streams, pairs, strict=True):
            both = torch.cat(pair, 1).movedim(1, -1) if block.pixels else torch.cat(pair, -1)
            self._sums[self._stage][name].add(both)


def _prediction(output: Any) -> Tensor:
    """What a denoiser gives: a tensor, or the first one of several, by whatever name.

    Raises:
        DiffESError: there is none.
    """
    values = [getattr(output, part.name) for part in fields(output)] if is_dataclass(output) else output
    found = next((leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), None)
    if found is None:
        remedy = "Let its forward return its prediction, alone or first."
        raise DiffESError("denoiser", expected="to return a tensor", found=type(output).__name__, remedy=remedy)
    return found


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

    Raises:
        DiffESError: a run or what it gathers is not finite.
    """
    chunks = [probes[i : i + sampling.batch] for i in range(0, len(probes), sampling.batch)]
    with (
        Gatherer(denoiser_of(pipe), stages, layers, blocks) as gatherer,
        reporter.task("calibrate", len(chunks)) as task,
    ):
        for chunk in chunks:
            gatherer.begin()
            check_finite(pipe, chunk, sampling, sample(pipe, chunk, sampling))
            task.advance()
    return gatherer.statistics()


def parts_of(anatomy: Anatomy, *, thin: bool, skip: bool) -> tuple[tuple[Layer, ...], tuple[Block, ...]]:
    """The layers and blocks that a ladder needs statistics of."""
    return (anatomy.layers if thin else ()), (anatomy.blocks if skip else ())
