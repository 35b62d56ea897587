"""Weight routing: one denoiser whose active weights are switched at stage boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from .errors import DiffESError
from .layers import Anatomy, Plan, Switch, Weights, realise
from .pipeline import on_timestep
from .schedule import Stages


class Routing:
    """A denoiser that runs each stage with its own weights, from :meth:`attach` to :meth:`detach`.

    The stage is read off the timestep of every denoiser call, so the sampler, the number of steps, the batch, the
    guidance and the start of the trajectory may change from call to call.

    Args:
        denoiser: what is routed.
        stages: the intervals of timesteps.
        weights: one for each stage; stages may share them.
    """

    def __init__(self, denoiser: nn.Module, stages: Stages, weights: Sequence[Weights]) -> None:
        assert len(weights) == len(stages)
        self._denoiser, self._stages, self._weights = denoiser, stages, tuple(weights)
        self._switch = Switch(denoiser)

    def attach(self) -> None:
        """Route from now on.

        Raises:
            DiffESError: the denoiser is routed already.
        """
        if self._denoiser in _ROUTED:
            remedy = "Leave the other `routed` context, or call `remove(pipe)`, first."
            found = "one that is routed already"
            raise DiffESError("denoiser", expected="a denoiser that is not routed", found=found, remedy=remedy)
        self._handle = on_timestep(self._denoiser, self._enter)
        _ROUTED[self._denoiser] = self

    def detach(self) -> None:
        """Restore the dense weights to the bit and leave nothing behind; a second time, do nothing."""
        if _ROUTED.get(self._denoiser) is not self:
            return
        self._handle.remove()
        self._switch.to(Weights())
        del _ROUTED[self._denoiser]

    def _enter(self, timestep: float) -> None:
        self._switch.to(self._weights[self._stages.index(timestep)])


_ROUTED: WeakKeyDictionary[nn.Module, Routing] = WeakKeyDictionary()


def routing_of(denoiser: nn.Module) -> Routing | None:
    """The routing attached to a denoiser, if any."""
    return _ROUTED.get(denoiser)


@contextmanager
def routed(denoiser: nn.Module, stages: Stages, weights: Sequence[Weights]) -> Iterator[Routing]:
    """Route inside a ``with`` block; everything is restored at its end, also after an exception."""
    routing = Routing(denoiser, stages, weights)
    routing.attach()
    try:
        yield routing
    finally:
        routing.detach()


def realise_all(denoiser: nn.Module, anatomy: Anatomy, plans: Sequence[Plan]) -> tuple[Weights, ...]:
    """The weights of every stage; stages of the same plan share theirs."""
    made = {id(plan): realise(denoiser, anatomy, plan) for plan in plans}
    return tuple(made[id(plan)] for plan in plans)
