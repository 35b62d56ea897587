"""Adams-Bashforth's methods for steps of any size, in the time of flow matching; nothing is fitted.

The velocity is interpolated through the last few that were seen, by a polynomial in tau, which is integrated over the
step (Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, section III.5). The first steps, which have
seen fewer, are of lower order. In the variables of EDM it is DEIS's rhoAB (arXiv 2204.13902); on flows it is what
NeuralSolver (arXiv 2505.21114) begins with and is compared to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....pipelines.families import Pipeline, Sampling
from ....solvers.flow_time import FlowTime
from ....trajectory.timesteps import trailing
from .way import Fit, FittedWay, Multistep, Place, of_rows, path_of


def adams_bashforth(
    pipe: Pipeline, sampling: Sampling, calls: int, fit: Fit, order: int = 3, place: Place = trailing
) -> FittedWay:
    """Of an order, on steps placed by rule.

    Args:
        fit: for the signature's sake: nothing is fitted.
        order: of the polynomial plus one; 1 is Euler's method, which in these variables is DDIM's.

    Raises:
        DiffESError: a sampler whose steps others cannot be put in the place of, or more calls than it has timesteps.
    """
    timesteps = place(path_of(pipe, sampling), calls)
    return of_rows(pipe, sampling, f"adams-bashforth-{order}", timesteps, lambda stand: rows(stand, order))


def rows(stand: FlowTime, order: int) -> Multistep:
    """The solver's coefficients, which follow from where its steps stand, and may be differentiated by that."""
    tau = stand.tau
    steps = len(tau) - 1
    found = list[Tensor]()
    for step in range(steps):
        used = min(order, step + 1)
        first = step + 1 - used
        weights = integrated(tau[first : step + 1], tau[step + 1])
        found.append(torch.cat([tau.new_zeros(first), weights, tau.new_zeros(steps - step - 1)]))
    return Multistep(torch.ones(steps, dtype=tau.dtype), torch.stack(found))


def integrated(nodes: Tensor, end: Tensor) -> Tensor:
    """What values at k nodes weigh in the integral of their polynomial from the last node to an end: (k,).

    The weights integrate every power up to the (k - 1)-th exactly, which is a system of k equations.
    """
    length = end - nodes[-1]
    powers = torch.arange(len(nodes), dtype=nodes.dtype)
    places = (nodes - nodes[-1]) / length
    solved: Tensor = torch.linalg.solve(places[None] ** powers[:, None], 1 / (powers + 1))
    return length * solved
