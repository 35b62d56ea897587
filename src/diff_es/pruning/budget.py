"""Budgets as users say them, and the prices that go with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import torch
from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict

from ..pipelines.denoiser import device_of
from ..pipelines.encodings import Encodings, encoded_once
from ..pipelines.families import Pipeline, Sampling
from ..pipelines.probes import make_probes
from ..pipelines.sampling import decode, denoiser_of, intercepted, sample
from ..pipelines.tracing import first_call
from ..utils import limits
from ..utils.arguments import checked
from ..utils.errors import BudgetOutOfReach, DiffESError
from ..utils.malloc import Kept
from ..utils.progress import Reporter
from .costs import Costs
from .granularity import Unit, bare
from .latency import nanoseconds, plan_ratios
from .macs import MacCounter

_PATIENCE = 3.0
"""Seconds for which a level's price is measured more often than it has to be."""


@checked(kind=BudgetOutOfReach)
@dataclass(frozen=True)
class MacsRatio:
    """At most so much of the dense trajectory's multiply-accumulates.

    Args:
        ratio: above 0, at most 1.
    """

    ratio: limits.Share = 0.7

    def __str__(self) -> str:
        return f"{self.ratio:g} of the MACs"


@checked(kind=BudgetOutOfReach)
@dataclass(frozen=True)
class Speedup:
    """The whole pipeline is so many times faster than now, on this device at the user's own setting.

    Args:
        times: from 1 on.
    """

    times: limits.Speedup

    def __str__(self) -> str:
        return f"{self.times:g}x as fast"


@checked(kind=BudgetOutOfReach)
@dataclass(frozen=True)
class WeightMemory:
    """At most so much memory of the device for weights while a stage runs; their library waits elsewhere (streamed).

    Args:
        gigabytes: of 10^9 bytes.
    """

    gigabytes: limits.Gigabytes

    def __str__(self) -> str:
        return f"{self.gigabytes:g} GB of weights"

    @property
    def bytes(self) -> float:
        """How many bytes that is."""
        return self.gigabytes * 1e9


@checked(kind=BudgetOutOfReach)
@dataclass(frozen=True)
class Budget:
    """What a schedule may cost, and what its weights may take besides."""

    compute: MacsRatio | Speedup = field(default_factory=MacsRatio)
    memory: WeightMemory | None = None

    @classmethod
    @checked(kind=BudgetOutOfReach)
    def of(
        cls,
        budget: limits.Share | MacsRatio | Speedup | WeightMemory | Budget | None = None,
        macs: limits.Share | None = None,
        speedup: limits.Speedup | None = None,
        weights_gb: limits.Gigabytes | None = None,
    ) -> Budget:
        """As users say it: an object, or a number by name.

        Args:
            budget: a number is a :class:`MacsRatio`.

        Raises:
            BudgetOutOfReach: numbers of no sense, or two budgets of one kind.
        """
        said = list[MacsRatio | Speedup | WeightMemory]()
        if isinstance(budget, Budget):
            said += [budget.compute, *filter(None, [budget.memory])]
        elif isinstance(budget, MacsRatio | Speedup | WeightMemory):
            said.append(budget)
        elif budget is not None:
            said.append(MacsRatio(budget))
        said += [] if macs is None else [MacsRatio(macs)]
        said += [] if speedup is None else [Speedup(speedup)]
        said += [] if weights_gb is None else [WeightMemory(weights_gb)]
        compute = [one for one in said if not isinstance(one, WeightMemory)]
        memory = [one for one in said if isinstance(one, WeightMemory)]
        for several in (compute, memory):
            if len(several) > 1:
                expected = "a share of MACs or a speed-up" if several is compute else "one limit of memory"
                found, remedy = " and ".join(map(str, several)), "Leave one of them out."
                raise BudgetOutOfReach("budget", expected=expected, found=found, remedy=remedy)
        return cls(compute[0] if compute else MacsRatio(), memory[0] if memory else None)

    def to_json(self) -> dict[str, float | None]:
        """JSON values."""
        macs = self.compute.ratio if isinstance(self.compute, MacsRatio) else None
        speedup = self.compute.times if isinstance(self.compute, Speedup) else None
        return {"macs": macs, "speedup": speedup, "weights_gb": None if self.memory is None else self.memory.gigabytes}

    @classmethod
    def from_json(cls, data: Mapping[str, float | None]) -> Budget:
        """What :meth:`to_json` wrote; raises as :meth:`of` does."""
        return cls.of(None, data.get("macs"), data.get("speedup"), data.get("weights_gb"))


class MeasuredPrices(BaseModel):
    """What was measured: nanoseconds of a denoiser call that belong to no unit, by ``[unit][level]``, and the rest."""

    model_config = ConfigDict(frozen=True)

    fixed: Annotated[int, Strict(), Field(ge=0)]
    options: tuple[tuple[Annotated[int, Strict(), Field(ge=0)], ...], ...]
    other: Annotated[float, Strict(), AllowInfNan(False), Field(ge=0)]


_ANEW = "Search anew in another folder, where prices are measured again."


@dataclass(frozen=True)
class Prices:
    """What sampler steps cost on this device, measured, and what a pipeline call costs beside them."""

    costs: Costs  # whole nanoseconds
    other: float  # ns of a pipeline call outside of its steps: prompts and the decoder

    @property
    def measured(self) -> MeasuredPrices:
        """For :meth:`restored`."""
        return MeasuredPrices(fixed=self.costs.fixed, options=self.costs.options, other=self.other)

    @classmethod
    def restored(cls, found: MeasuredPrices, counted: Costs) -> Prices:
        """What was measured earlier, for the steps of ``counted``.

        Raises:
            DiffESError: it was, for other units.
        """
        levels, own = [len(row) for row in found.options], [len(row) for row in counted.options]
        if levels != own:
            raise DiffESError("prices", expected=f"levels {own} of units", found=f"{levels}", remedy=_ANEW)
        return cls(replace(counted, fixed=found.fixed, options=found.options), found.other)

    @property
    def dense(self) -> float:
        """ns of a pipeline call in the user's own setting."""
        return self.other + self.costs.dense

    def share(self, speedup: float) -> float:
        """The share of the steps' time that a speed-up of the pipeline leaves.

        Raises:
            BudgetOutOfReach: none that any schedule can keep; the message says the best.
        """
        share = (self.dense / speedup - self.other) / self.costs.dense
        least = self.costs.cheapest / self.costs.dense
        if share < least * (1 - 1e-9):
            expected = f"at most {math.floor(self.best * 100) / 100}x, which the cheapest schedule gives"
            remedy = "Ask for less, take larger batches, or fewer sampler steps."
            raise BudgetOutOfReach("speedup", expected=expected, found=f"{speedup}x", remedy=remedy)
        return min(max(share, least), 1.0)

    @property
    def best(self) -> float:
        """The most that any schedule can gain."""
        return self.dense / (self.other + self.costs.cheapest)


def measured_prices(
    pipe: Pipeline, counter: MacCounter, units: Sequence[Unit], counted: Costs, sampling: Sampling, reporter: Reporter
) -> Prices:
    """Time a denoiser call at every level of every unit, interleaved with the dense one, and what else a pipeline does.

    Units that cost the same are timed together: what one of them saves may be lost in the noise of a whole call, and
    its error would count as often as there are units. What a call takes inside of the pipeline is the pipeline's time
    less that of a run whose denoiser answers at once; what the rest of a step takes is a part of such a run whose
    prompts were encoded before. Encoding them takes as long for any number of steps, and so does decoding. The weights'
    values do not matter, and the pipeline is as it was afterwards.
    """
    denoiser = denoiser_of(pipe)
    args, kwargs = first_call(pipe, sampling)
    run = partial(denoiser, *args, **kwargs)
    rounds, ratios, alike = 7, list[list[float]](), counter.alike(units)
    timed = sum(len(units[index].options) - 1 for index in set(alike))
    with closing(Kept(device_of(denoiser))), torch.no_grad(), reporter.task("time levels", rounds + timed) as task:
        answer = run()
        for index, first in enumerate(alike):
            if first < index:
                ratios.append(ratios[first])
                continue
            same = [unit for unit, other in zip(units, alike, strict=True) if other == index]
            ratios.append([1.0])
            for level in range(1, len(same[0].options)):
                plan = bare(counter.anatomy, same, level)
                seen = plan_ratios(denoiser, counter.anatomy, plan, run, rounds, _PATIENCE)
                ratios[-1].append(1 - (1 - statistics.median(seen)) / len(same))
                task.advance()
        whole, idle, known, decoding = (list[float]() for _ in range(4))
        probes, latents, encodings = make_probes(pipe, sampling.batch, 0, "timing"), torch.empty(0), Encodings()

        def drawn() -> None:
            nonlocal latents
            latents = sample(pipe, probes, sampling)

        for _ in range(rounds):
            whole.append(nanoseconds(device_of(denoiser), drawn))
            decoding.append(nanoseconds(device_of(denoiser), lambda: decode(pipe, latents)))
            with intercepted(denoiser, lambda _: lambda *args, **kwargs: answer):
                idle.append(nanoseconds(device_of(denoiser), drawn))
                with encoded_once(pipe, encodings):
                    known.append(nanoseconds(device_of(denoiser), drawn))
            task.advance()
    steps, rest = sum(counted.steps), statistics.median(known[1:])
    encoding = max(0.0, statistics.median(a - b for a, b in zip(idle[1:], known[1:], strict=True)))
    dense = max(1.0, statistics.median(a - b for a, b in zip(whole[1:], idle[1:], strict=True)) / steps)
    table = [tuple(max(1, round(dense * ratio)) for ratio in row) for row in ratios]
    costs = Costs.tabled(table, counted.steps, counted.choices)
    costs = replace(costs, fixed=costs.fixed + round(rest / steps))
    return Prices(costs, statistics.median(decoding[1:]) + encoding)


def within_memory(costs: Costs, counter: MacCounter, units: Sequence[Unit], limit: float) -> Costs:
    """Without the levels whose weights take more than ``limit`` bytes of the device while they run.

    Raises:
        DiffESError: units finer than the denoiser, whose weights add up.
        BudgetOutOfReach: even the deepest level takes more.
    """
    if len(units) != 1:
        remedy = "Take one level for the whole denoiser (--units whole)."
        raise DiffESError("weights", expected="one unit", found=f"{len(units)}", remedy=remedy)
    sizes = [counter.weight_bytes(units[0], level) for level in range(len(units[0].options))]
    if min(sizes) > limit:
        expected, remedy = f"at least {min(sizes) / 1e9:.3f} GB, which the deepest level takes", "Ask for more."
        raise BudgetOutOfReach("weights", expected=expected, found=f"{limit / 1e9:.3f} GB", remedy=remedy)
    return replace(costs, barred=frozenset(level for level, size in enumerate(sizes) if size > limit))
