"""A multistep solver whose steps and coefficients are fitted by gradient, through the whole run of the model.

The final latents of a few noises are brought near to those of the finely stepped run, by Adam on all that a linear
multistep solver is made of: where its steps stand, what each keeps of the state, and what each takes of every velocity
so far. The model is left as it is. Of its run only the states are kept; every call of the denoiser is made once more
on the way back.

From differentiable solver search (NeuralSolver, arXiv 2505.21114, section 5) are coefficients on all velocities so far,
relative to a step's length, and the steps as a softmax of their lengths. From BNS (arXiv 2403.01329) are a general
solver's weight on the state, which need not be 1, the variables of a flow, the beginning at a solver that is known
already, the loss, which is the mean logarithm of the squared distance to the fine run's end, and that the best on other
noises is kept. From S4S (arXiv 2502.17423) is that the beginning may be any schedule, another method's too.

Not taken are NeuralSolver's loss over the states on the way, S4S's perceptual one and its noises that move within a
ball: closeness to one and the same run is what is asked for. Added are that coefficients follow steps that move, as
Adams-Bashforth's do; that schedulers whose timesteps are integers take rounded ones, and the gradient passes the
rounding as if there were none; and the calls of the denoiser that are made once more. Rates and numbers of iterations
are chosen for few noises and minutes, not taken from the papers, which have thousands and hours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from ....layers import time_reader
from ....pipelines.families import Pipeline, Sampling
from ....pipelines.probes import Probe
from ....pipelines.sampling import denoiser_of, intercepted, of_class, sample
from ....pipelines.timestep_hook import handed
from ....solvers.flow_time import FlowTime, flow_time, solved
from ....trajectory.timesteps import Timesteps, Trajectory
from ....utils.arguments import checked
from ....utils.errors import DiffESError
from ....utils.limits import Count, Tolerance
from ..dense import latents_of
from .adams_bashforth import rows
from .gits import gits
from .way import Fit, FittedWay, Multistep, Stopwatch, decibel, fine_run, path_of

Start: TypeAlias = Callable[[Pipeline, Sampling, int, Fit], FittedWay]

_ORDER, _SLOWER = 3, 0.1
"""Of the method whose coefficients say how all follow a moving step; and how far steps and the states' weights move in
comparison with those of velocities, since all that follows moves with them."""


@checked("")
@dataclass(frozen=True)
class Descent:
    """How a solver is fitted by gradient.

    Args:
        iterations: of Adam, each with a run of some noises, forth and back.
        rate: at first; it falls evenly to none.
        noises: of an iteration, all in turn; as many as there are, if that is fewer.
        every: so many iterations the solver is tried on other noises.
    """

    iterations: Count = 60
    rate: Tolerance = 0.005
    noises: Count = 8
    every: Count = 10


def by_gradient(
    pipe: Pipeline,
    sampling: Sampling,
    calls: int,
    fit: Fit,
    descent: Descent = Descent(),
    start: Start = gits,
) -> FittedWay:
    """A solver fitted by gradient, from one that is known already.

    Args:
        start: makes the solver that it begins with, linear and of as many calls.

    Raises:
        DiffESError: as ``start`` does, or a pipeline without a decoder.
    """
    return descended(pipe, start(pipe, sampling, calls, fit), fit, descent)


def descended(pipe: Pipeline, start: FittedWay, fit: Fit, descent: Descent) -> FittedWay:
    """What a way comes to by gradient, the best on noises of which it was not fitted; at worst itself.

    Raises:
        DiffESError: a way whose solver is not linear, or a pipeline without a decoder.
    """
    check(pipe, start)
    clock, path = Stopwatch(), path_of(pipe, start.sampling)
    count = min(descent.noises, fit.noises)
    batch = replace(start.sampling, batch=count)
    probes, others = fit.probes(pipe, "fitting"), fit.probes(pipe, "validation")
    goal, judge = (fine_run(pipe, start.sampling, path, fit, one).latents for one in (probes, others))
    variables = Variables.at(start)
    adam = torch.optim.Adam(variables.all, lr=descent.rate)
    rate = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, descent.iterations)
    best, best_db = start, float(decibel(judge, latents_of(pipe, replace(start, sampling=batch), others)))
    for iteration in range(1, descent.iterations + 1):
        adam.zero_grad()
        turn = [(iteration * count + one) % fit.noises for one in range(count)]
        with frozen(denoiser_of(pipe)):  # on the way back too, where calls are made once more
            placed = variables.placed(pipe, path)
            loss = -decibel(goal[turn], differentiable(pipe, batch, [probes[one] for one in turn], placed))
            loss.backward()
        adam.step()
        rate.step()
        if iteration % descent.every == 0 or iteration == descent.iterations:
            found = variables.placed(pipe, path).way(batch)
            found_db = float(decibel(judge, latents_of(pipe, found, others)))
            if found_db > best_db:
                best, best_db = found, found_db
    seconds = start.fit_seconds + clock.seconds
    return replace(
        best,
        name=f"gradient, from {start.name}",
        sampling=start.sampling,
        fit_noises=max(start.fit_noises, fit.noises) + fit.noises,  # of one purpose, the first are the same
        fit_seconds=seconds,
    )


def check(pipe: Pipeline, start: FittedWay) -> None:
    """Whether a way can be fitted by gradient; raises as :func:`descended` does."""
    if not isinstance(start.advance, Multistep):
        remedy = "Begin with Adams-Bashforth's method, GITS, or corrected steps."
        raise DiffESError("start", expected="a linear multistep solver", found=start.name, remedy=remedy)
    if "vae" not in pipe.components:
        remedy = "Take a solver that is fitted without gradients."
        found = f"a {type(pipe).__name__}, which turns them into images at once"
        raise DiffESError("pipe", expected="a pipeline that decodes its latents", found=found, remedy=remedy)


@dataclass(frozen=True)
class Placed:
    """A solver that may be differentiated by all that it is made of."""

    exact: Tensor  # timesteps, (n,) in float64
    time: FlowTime
    solver: Multistep

    def way(self, sampling: Sampling) -> FittedWay:
        """The same as it is, to sample with."""
        time = replace(self.time, signal=self.time.signal.detach(), noise=self.time.noise.detach())
        solver = Multistep(self.solver.keeps.detach(), self.solver.weights.detach())
        return FittedWay("gradient", sampling, time, solver)


@dataclass(frozen=True)
class Variables:
    """What is fitted: of each of n steps the logarithm of its length, and what is added to the start's solver."""

    time: FlowTime
    solver: Multistep
    lengths: Tensor  # what is added to the logarithm, in tenths, (n,)
    keeps: Tensor  # in tenths, (n,)
    weights: Tensor  # relative to a step's length, (n, n)

    @classmethod
    def at(cls, start: FittedWay) -> Variables:
        """Where nothing is added yet."""
        assert isinstance(start.advance, Multistep)
        n = start.steps
        zeros = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((n,), (n,), (n, n)))
        return cls(start.time, start.advance, *zeros)

    @property
    def all(self) -> list[Tensor]:
        return [self.lengths, self.keeps, self.weights]

    def placed(self, pipe: Pipeline, path: Trajectory) -> Placed:
        """The solver that they make, in which nothing added is the start's to the bit."""
        own = torch.tensor([*self.time.timesteps, path.end], dtype=torch.float64)
        lengths = torch.softmax((own[:-1] - own[1:]).log() + _SLOWER * self.lengths, 0)
        smooth = own[0] - (own[0] - own[-1]) * torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
        timesteps = settled(path, smooth.tolist())
        exact = torch.tensor(timesteps, dtype=torch.float64) + (smooth - smooth.detach())
        time = flow_time(pipe.scheduler, timesteps, exact)
        moved = rows(time, _ORDER).weights - rows(self.time, _ORDER).weights
        added = time.tau.diff()[:, None] * self.weights.tril()
        solver = Multistep(self.solver.keeps + _SLOWER * self.keeps, self.solver.weights + moved + added)
        return Placed(exact, time, solver)


def settled(path: Trajectory, wanted: Sequence[float]) -> Timesteps:
    """The nearest timesteps that the sampler can take, with room for those that follow."""
    if not path.whole:
        return tuple(float(torch.tensor(t, dtype=torch.float32)) for t in wanted)
    found = list[float]()
    for left, t in zip(reversed(range(len(wanted))), wanted, strict=True):
        highest = found[-1] - 1 if found else path.timesteps[0]
        found.append(float(min(max(round(t), path.lowest + left), highest)))
    return tuple(found)


def differentiable(pipe: Pipeline, sampling: Sampling, probes: Sequence[Probe], placed: Placed) -> Tensor:
    """The final latents of noises, (N, ...), differentiable by all that a solver is made of.

    The pipeline's own call runs, but for what keeps gradients from it. The denoiser is to be :func:`frozen` until the
    way back is done.
    """
    denoiser, read = denoiser_of(pipe), time_reader(denoiser_of(pipe))
    kind = type(pipe)
    open_kind = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__call__": inspect.unwrap(kind.__call__)})

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step = pipe.scheduler.chosen_run.steps
            given, exact = read(args, kwargs), handed(denoiser, placed.exact[step])
            shifted = given.float() + (exact - exact.detach()).to(given.device, torch.float32)
            args, kwargs = tree_map_only(Tensor, lambda one: shifted if one is given else one, (args, kwargs))
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return call

    with (
        solved(pipe, placed.time, sampling.steps, placed.solver),
        of_class(pipe, open_kind),
        intercepted(denoiser, again),
        torch.enable_grad(),
    ):
        return sample(pipe, probes, sampling)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """With weights that no gradient is kept of."""
    kept = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in kept:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in kept:
            parameter.requires_grad_(True)
