"""A schedule with its plans and steps, put to work in a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pydantic import SkipValidation
from torch import nn

from ..layers import Plan, anatomy_of
from ..pipelines.families import Sampling, family_of
from ..pipelines.origin import Origin
from ..pipelines.own_sampler import OwnSampler
from ..pipelines.sampling import AnyPipeline
from ..pipelines.supported import check_denoiser
from ..routing.placements import Placed, Placement, Resident, Store, choose
from ..routing.routing import Routing, routing_of
from ..scoring.timing import Runner
from ..solvers.custom_timesteps import check_corrected, stepping, stepping_of
from ..trajectory.corrections import Corrections, fixed
from ..trajectory.stages import Schedule
from ..utils.arguments import checked
from ..utils.errors import ArtefactError, DiffESError
from .base import check_base

Piped = TypeVar("Piped", bound=AnyPipeline | nn.Module)


def applied_to(pipe: AnyPipeline | nn.Module) -> Routing | None:
    """What routes a pipeline's denoiser or, where another was put in its place, the one that it had."""
    routing, held = routing_of(check_denoiser(pipe)), stepping_of(pipe)
    return routing_of(held.denoiser) if routing is None and held is not None else routing


@dataclass(frozen=True)
class Routable:
    """What a pipeline is run with. The pipeline itself stays with the user."""

    schedule: Schedule
    plans: tuple[Plan, ...] = field(repr=False)  # one for each stage
    sampling: Sampling
    base: str  # fingerprint of the dense denoiser
    origin: Origin | None = field(default=None, repr=False)  # of the pipeline; None: it was not said
    placement: Placement | None = None  # where weights wait; None: by the memory that is free
    timesteps: tuple[float, ...] | None = None  # what the sampler takes in place of its own; None: its own
    corrections: Corrections = ()  # of the steps to these timesteps

    def __post_init__(self) -> None:
        if len(self.plans) != len(self.schedule.stages):
            expected, found = f"{len(self.schedule.stages)} plans, one for each stage", f"{len(self.plans)}"
            raise ArtefactError("artefact", expected=expected, found=found, remedy="Compress again.")
        if self.corrections and len(self.corrections) != len(self.timesteps or ()):
            expected = f"corrections of {len(self.timesteps or ())} steps"
            raise ArtefactError(
                "artefact", expected=expected, found=f"{len(self.corrections)}", remedy="Compress again."
            )

    def runner(self, name: str, sampling: Sampling, placement: Placement | None = None) -> Runner:
        """This result as a contender in a comparison, in a placement; default resident."""
        placed = placement or Resident()
        return Runner(name, sampling, self.schedule.stages, self.plans, placed, self.timesteps, self.corrections)

    @checked()
    @contextmanager
    def routed(self, pipe: SkipValidation[Piped], placement: Placed | None = None) -> Iterator[Piped]:
        """Run ``pipe`` with this result inside a ``with`` block; afterwards it is dense again, to the bit.

        Every pipeline that holds the same denoiser runs with its weights meanwhile, and calls of several threads take
        turns. A loop of your own (:class:`OwnSampler`) takes the place of a pipeline, and so does, where no steps were
        chosen, a denoiser that was declared (``diff_es.declare``).

        The pipeline is called as before, with the number of steps that the result was made for; where the search chose
        the steps, those are taken instead, and another number is refused.

        Args:
            placement: where the weights wait; default the result's own, or else by the memory that is free.

        Raises:
            ArtefactError: made for another base model, or for another placement.
            DiffESError: the pipeline is routed already, or its scheduler takes no chosen timesteps.
        """
        routing = self._begin(pipe, placement)
        try:
            yield pipe
        finally:
            routing.detach()

    @checked()
    def apply(self, pipe: SkipValidation[AnyPipeline | nn.Module], placement: Placed | None = None) -> None:
        """Run ``pipe`` with this result until :meth:`remove`; raises as :meth:`routed` does."""
        self._begin(pipe, placement)

    @checked()
    def remove(self, pipe: SkipValidation[AnyPipeline | nn.Module]) -> None:
        """Undo :meth:`apply`, whichever of the pipelines that share the denoiser it was told of.

        Raises:
            DiffESError: nothing is applied to this pipeline.
        """
        routing = applied_to(pipe)
        if routing is None:
            remedy = "Call apply(pipe) first; a `with routed(pipe)` block needs no remove."
            raise DiffESError("pipe", expected="a pipeline with a result applied", found="a dense one", remedy=remedy)
        routing.detach()

    @checked()
    def check(self, pipe: SkipValidation[AnyPipeline | nn.Module]) -> nn.Module:
        """The denoiser of a dense pipeline, or a declared one itself, that this was made for; raises as :meth:`routed`
        does."""
        denoiser: nn.Module = check_denoiser(pipe)
        if routing_of(denoiser) is not None or stepping_of(pipe) is not None:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            raise DiffESError("pipe", expected="a dense pipeline", found="one that is routed already", remedy=remedy)
        from_noise = isinstance(pipe, OwnSampler) or family_of(pipe) is not None  # not image to image, by a strength
        if self.timesteps is not None and not from_noise:
            remedy = (
                "Search levels alone (`--levers prune`): they hold wherever a pipeline starts. A denoiser by itself "
            )
            remedy += "takes no steps: give the OwnSampler with its loop."
            found = type(pipe).__name__
            raise DiffESError(
                "pipe", expected="one that takes the chosen steps from noise on", found=found, remedy=remedy
            )
        if self.timesteps is not None and self.corrections and not isinstance(pipe, OwnSampler | nn.Module):
            if self.origin is None:
                expected, remedy = "the origin, whose scheduler steps are corrected for", "Leave corrections out."
                raise ArtefactError("artefact", expected=expected, found="none", remedy=remedy)
            check_corrected(pipe.components["scheduler"], self.origin.scheduler, self.timesteps, self.sampling.steps)
        check_base(denoiser, self.plans, self.base)
        return denoiser

    def _begin(self, pipe: AnyPipeline | nn.Module, placement: Placement | None) -> Routing:
        """Route a pipeline and choose its steps, both or nothing."""
        denoiser = self.check(pipe)
        anatomy, place, chosen = anatomy_of(denoiser), placement or self.placement, None
        if self.timesteps is not None:
            chosen = stepping(pipe, self.timesteps, self.sampling.steps, fixed(self.corrections))

        def opened() -> Store:
            return (place or choose(denoiser, anatomy, self.plans)).open(denoiser, anatomy, self.plans)

        check = partial(check_base, denoiser, self.plans, self.base)
        ending = None if chosen is None else chosen.detach
        routing = Routing(denoiser, self.schedule.stages, opened, check, ending)
        routing.attach()
        try:
            if chosen is not None:
                chosen.attach()
        except BaseException:
            routing.detach()
            raise
        return routing
