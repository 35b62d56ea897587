"""The dense model's own trajectories, sorted into the statistics of each stage; no data set is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..execution import Crew, Work
from ..execution.shipping import shipped
from ..layers import (
    Block,
    Convolution,
    Layer,
    channel_dimension,
    check_evaluating,
    given_to,
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
from .accumulator import Accumulator, Change
from .statistics import Statistics, joined, spilled
from .wanted import Part, Wanted, parts_within, shared_out


class Enough(Exception):
    """Of a trajectory, what is gathered is there: the rest need not be run."""


class Gatherer:
    """Hooks on a dense denoiser that sort what passes through it into the statistics of the stages.

    Used in a ``with`` block; every denoiser call inside belongs to the stage of its own timestep.

    Args:
        wanted: what can be gathered.
        part: what to gather of it, in order; None: all.
        brief: whether to raise :class:`Enough` where a trajectory leaves the last stage of ``part``.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        stages: Stages,
        wanted: Wanted,
        part: Part | None = None,
        *,
        brief: bool = False,
    ) -> None:
        self._denoiser, self._stages, self._layers, self._blocks = denoiser, stages, wanted.layers, wanted.blocks
        part = part or tuple((stage, name) for stage in range(len(stages)) for name in wanted.names)
        powers = wanted.powers
        self._sums: list[dict[str, Accumulator]] = [{} for _ in range(len(stages))]
        for stage, name in part:
            self._sums[stage][name] = Accumulator(squares=name in powers)
        self._last = part[-1][0] if brief else len(stages)
        self._change, self._stage, self._stack = Change(len(stages)), 0, ExitStack()
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
        if stage > self._last:
            raise Enough
        self._stage = stage
        self._calls[stage] += 1

    def _of_denoiser(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._change.add(self._stage, _prediction(output))

    def _of_layer(self, layer: Layer, module: nn.Module, args: Args, kwargs: Kwargs, result: Tensor) -> None:
        sums = self._sums[self._stage].get(layer.name)
        if sums is None:
            return
        projection, given = output_of(self._denoiser, layer), given_to(args, kwargs)
        channels = channel_dimension(projection, given)
        own = given.narrow(channels, layer.start, layer.size)
        if isinstance(projection, Convolution):
            batch = own if channels else own[None]
            sums.add_pixels(batch, projection, result.shape[channels + 1 :])
        else:
            sums.add(own)

    def _of_block(self, block: Block, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        if not any(name in self._sums[self._stage] for name in block.streams):
            return
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
            if name in self._sums[self._stage]:
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


class Piece(NamedTuple):
    """Some of the statistics, and whether their runs end with the last stage of it."""

    part: Part
    brief: bool


@dataclass(frozen=True)
class Runs:
    """The dense pipeline's runs, and what can be gathered of them."""

    pipe: Pipeline
    chunks: Sequence[Sequence[Probe]]
    sampling: Sampling
    stages: Stages
    wanted: Wanted

    def gathered(self, piece: Piece, done: Callable[[], None] = lambda: None) -> Statistics:
        """A part of the statistics, of all samples; ``done()`` is called after each batch."""
        denoiser = denoiser_of(self.pipe)
        with Gatherer(denoiser, self.stages, self.wanted, piece.part, brief=piece.brief) as gatherer:
            for chunk in self.chunks:
                gatherer.begin()
                with suppress(Enough):
                    check_finite(self.pipe, chunk, self.sampling, sample(self.pipe, chunk, self.sampling))
                done()
        return gatherer.statistics()


def calibrate(
    pipe: Pipeline,
    probes: Sequence[Probe],
    sampling: Sampling,
    stages: Stages,
    wanted: Wanted,
    reporter: Reporter,
    memory: int | None = None,
    crew: Crew | None = None,
) -> Statistics:
    """Run the dense pipeline over the probes with the user's own setting (section 2 of docs/method.md).

    Args:
        wanted: what is gathered.
        memory: bytes that the sums may take. Where they take more, the same runs are repeated, each time for a part of
            the sums and as far as its stages go; what is gathered waits on disk. It comes out the same to the bit.
        crew: who gathers; None: this process. Several workers gather a part each (:func:`_of_workers`).

    Raises:
        DiffESError: a run or what it gathers is not finite; or one layer's sums alone take more than ``memory``.
        StorageError: the temporary folder has no room for what waits.
    """
    chunks = [probes[i : i + sampling.batch] for i in range(0, len(probes), sampling.batch)]
    runs, parts = Runs(pipe, chunks, sampling, stages, wanted), parts_within(memory, len(stages), wanted.sizes())
    if crew is not None and crew.size > 1:
        return _of_workers(runs, memory, reporter, crew)
    with reporter.task("calibrate", len(chunks) * len(parts)) as task:
        # the last one's trajectories end as a user's do
        found = (runs.gathered(Piece(part, brief=part is not parts[-1]), task.advance) for part in parts)
        return next(found) if len(parts) == 1 else spilled(len(stages), wanted.names, found)


def _of_workers(runs: Runs, memory: int | None, reporter: Reporter, crew: Crew) -> Statistics:
    """The same by workers, to the bit: a piece is a part of the statistics of all samples, not all statistics of a part
    of the samples.

    Moments of samples add up as well, but in float32 another order of sums has another last bit, and a schedule may
    depend on it. And those of a batch are as many bytes as those of all, with DiT-XL/2 25 GB. With the bundled
    transformer they are 312 MB, which take 4.3 s of one core to travel and be added, for each of 7 batches, each of
    which runs for 7.5 s. Here they travel once. The price is that runs are repeated: of two workers each takes 0.74 of
    the time of one, of four 0.62 (with the U-Net 0.79 and 0.81).
    """
    sizes, count = runs.wanted.sizes(), len(runs.stages)
    here = memory is None or 3 * count * sum(sizes.values()) <= memory  # in a worker, on the way, and in this process
    if memory is None or here:
        (whole,) = parts_within(None, count, sizes)
        parts = shared_out(whole, crew.size)
    else:  # workers may be on this machine
        parts = parts_within(max(memory // (2 * crew.size), *sizes.values()), count, sizes)
    pieces = [Piece(part, brief=part is not parts[-1]) for part in parts]
    work = Work(runs.gathered, lambda: shipped(runs, runs.pipe), _gathering)
    with reporter.task("calibrate", len(pieces)) as task:

        def answers() -> Iterator[Statistics]:
            for _, found in crew.answers(work, pieces):
                yield found
                task.advance()

        return (joined if here else spilled)(count, runs.wanted.names, answers())


def _gathering(runs: Runs) -> Callable[[Piece], Statistics]:
    """What a worker answers with."""
    return runs.gathered
