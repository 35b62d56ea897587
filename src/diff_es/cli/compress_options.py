"""The groups of options of ``diff-es compress``, each as the library takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ..compression.effort import Effort
from ..compression.settings import Levers
from ..pruning.budget import Budget
from ..pruning.compensation import Ridge
from ..pruning.granularity import Depth, Granularity, Ladder, Width
from ..pruning.importance import Obs, Ranking
from ..pruning.method import Method
from ..routing.placements import Compact, Saved, Streamed
from ..utils.errors import DiffESError
from .options import (
    PLACEMENTS,
    RANKINGS,
    AsJson,
    Config,
    InDtype,
    MeasureName,
    OnDevice,
    PlacementName,
    Prune,
    RankingName,
)


@dataclass(frozen=True)
class BudgetOptions:
    """What the result may cost."""

    title: ClassVar = "Budget"

    macs: Annotated[
        float | None, typer.Option(help="Share of the dense multiply-accumulates that may be spent; default 0.7.")
    ] = None
    speedup: Annotated[
        float | None, typer.Option(help="In its place, how many times faster the pipeline is to be on this device.")
    ] = None
    weights_gb: Annotated[
        float | None, typer.Option(help="The most GB of weights on the device; the others are streamed.")
    ] = None
    front: Annotated[str, typer.Option(help="Other shares to search along, such as 0.3,0.5; none by default.")] = ""

    def asked(self) -> Budget:
        """As the library takes it."""
        return Budget.of(None, self.macs, self.speedup, self.weights_gb)


@dataclass(frozen=True)
class SearchOptions:
    """How schedules are searched and judged."""

    title: ClassVar = "Search"

    effort: Annotated[
        Effort | None, typer.Option(help="How much denoiser work: it sets every size below that is not given.")
    ] = None
    hours: Annotated[
        float | None, typer.Option(help="In its place, the hours that it may take here, by the forecast.")
    ] = None
    levers: Annotated[
        Levers | None,
        typer.Option(help="What may change from stage to stage; default both, or prune where the sampler draws noise."),
    ] = None
    stages: Annotated[
        int | None,
        typer.Option(help="Stages that the trajectory is cut into; default 10, or one for each step."),
    ] = None
    measure: Annotated[MeasureName, typer.Option(help="What closeness to the dense model means.")] = MeasureName.SNR
    features: Annotated[
        str | None,
        typer.Option(
            help="Of --measure distribution or blend: module:attribute of a torch.nn.Module that describes images in "
            "[0, 1]; default the power of latents by octave."
        ),
    ] = None
    search_noises: Annotated[int | None, typer.Option(help="Noises that candidates are judged on; default 16.")] = None
    first_rung: Annotated[
        int | None,
        typer.Option(help="The first of them, after which the worse half drops out; 0: none; default half of them."),
    ] = None
    sensitivity_noises: Annotated[
        int | None,
        typer.Option(help="The first of them, on which sensitivities are measured; default by the number of units."),
    ] = None
    sensitivity_levels: Annotated[
        int, typer.Option(help="Levels of a unit that are measured; of one the others are foretold.")
    ] = 1
    generations: Annotated[int | None, typer.Option(help="Generations of the search; default 4.")] = None
    population: Annotated[int | None, typer.Option(help="Candidates per generation; default 13.")] = None
    survivors: Annotated[int, typer.Option(help="Best candidates so far, from which offspring are drawn.")] = 5
    crossover: Annotated[float, typer.Option(help="Share of offspring by crossover; the others are mutations.")] = 0.3
    switches: Annotated[
        int | None, typer.Option(help="The most level switches of a mutation; default by the number of choices.")
    ] = None
    timestep_generations: Annotated[
        int | None, typer.Option(help="Generations in which timesteps are moved; 1: none; default 3.")
    ] = None
    timestep_offspring: Annotated[int, typer.Option(help="Candidates in each of these.")] = 8
    finalists: Annotated[
        int | None,
        typer.Option(help="Best candidates that are judged again, beside rules of hand and random ones; default 3."),
    ] = None
    held_out_noises: Annotated[
        int | None,
        typer.Option(help="Noises that they are judged on, up to four times as many where they are close; default 10."),
    ] = None
    reference_multiple: Annotated[
        int | None,
        typer.Option(
            help="Times the user's own steps that the run takes which results are compared with; default 4, or 1 for "
            "fewer than ten steps."
        ),
    ] = None
    corrections: Annotated[
        int | None,
        typer.Option(help="The most directions along which steps are corrected; default 6 where they are a choice."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0
    table: Annotated[
        Path | None, typer.Option(help="Earlier result of the same settings, whose sensitivities are used again.")
    ] = None


@dataclass(frozen=True)
class PruningOptions:
    """What a level takes away, and how the rest makes up for it."""

    title: ClassVar = "Pruning"

    prune: Annotated[Prune, typer.Option(help="Whether levels thin layers, skip whole blocks, or either.")] = (
        Prune.WIDTH
    )
    units: Annotated[
        Granularity | None,
        typer.Option(help="What carries its own level; default block, or whole where blocks are ranked."),
    ] = None
    levels: Annotated[int | None, typer.Option(help="Levels of width; default 8.")] = None
    multiple: Annotated[
        int | None, typer.Option(help="Channels that stay come in multiples of it; default as the device likes.")
    ] = None
    ranking: Annotated[RankingName, typer.Option(help="How groups are ranked.")] = RankingName.OBS
    calibration_samples: Annotated[
        int | None, typer.Option(help="Samples that calibration runs; default by the size of layers, 64 to 256.")
    ] = None
    compensate: Annotated[bool, typer.Option(help="Whether the weights that stay are solved anew.")] = True
    damping: Annotated[float, typer.Option(help="Damping of the Hessian, relative to its mean diagonal.")] = 0.01
    stagewise: Annotated[bool, typer.Option(help="Whether each stage has statistics of its own.")] = True
    shared_order: Annotated[
        bool, typer.Option(help="Whether all stages give up groups in one order: less memory, less fidelity.")
    ] = False

    def method(self) -> Method:
        """As the library takes it."""
        ranking: Ranking = Obs(self.damping) if self.ranking is RankingName.OBS else RANKINGS[self.ranking]
        return Method(
            self._ladder(),
            ranking,
            Ridge(self.damping) if self.compensate else None,
            stagewise=self.stagewise,
            shared_order=self.shared_order,
            granularity=self.units,
        )

    def _ladder(self) -> Ladder:
        depth = Depth(bypass=self.compensate)
        if self.prune is not Prune.DEPTH:
            levels = 8 if self.levels is None else self.levels
            return Width(levels, self.multiple, depth=depth if self.prune is Prune.BOTH else None)
        if self.levels is not None or self.multiple is not None:
            found = f"{self.levels or self.multiple} beside --prune depth, whose levels are numbers of blocks"
            where = "--levels" if self.levels is not None else "--multiple"
            raise DiffESError(where, expected="none", found=found, remedy="Leave one of them out.")
        return depth


@dataclass(frozen=True)
class WeightOptions:
    """Where the weights of the stages wait when the result runs."""

    title: ClassVar = "Where weights wait"

    placement: Annotated[
        PlacementName, typer.Option(help="Where the weights of stages wait; auto: by the memory that is free.")
    ] = PlacementName.AUTO
    tolerance: Annotated[
        float | None,
        typer.Option(help="What leaving out parts of a correction may add to a layer's error (compact); default 0.1."),
    ] = None
    limit: Annotated[
        float | None,
        typer.Option(help="The most weights on the device, relative to the dense model's (streamed); default 1.15."),
    ] = None

    def chosen(self) -> Saved | None:
        """As the library takes it."""
        own = {PlacementName.COMPACT: ("--tolerance", self.tolerance), PlacementName.STREAMED: ("--limit", self.limit)}
        for name, (flag, value) in own.items():
            if value is not None and self.placement is not name:
                found = f"{value:g} beside --placement {self.placement.value}"
                remedy = f"Say --placement {name.value}, or leave it out."
                raise DiffESError(flag, expected="none", found=found, remedy=remedy)
        if self.tolerance is not None:
            return Compact(self.tolerance)
        return PLACEMENTS[self.placement] if self.limit is None else Streamed(self.limit)


@dataclass(frozen=True)
class MachineOptions:
    """What it runs on, and what is said of it."""

    title: ClassVar = "Machine"

    config: Config = None
    dtype: InDtype = None
    device: OnDevice = None
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="What statistics and weights of levels may take beside the model; more waits on disk; default half.",
        ),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped search.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing else.")] = False
    as_json: AsJson = False
