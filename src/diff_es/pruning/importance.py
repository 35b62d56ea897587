"""In which order the groups of a layer go: rankings by weights and second moments.

A layer's output projection is y = W x + b with W (O, D) and D = G * width input columns in G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..utils.arguments import checked
from ..utils.limits import Damping, Rounds
from .moments import Moments, damped, double


@checked()
@dataclass(frozen=True)
class Magnitude:
    """By |W_g|^2, the squared norm of a group's columns; blind to the inputs."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        """As of every ranking: int64 (G,), the group that goes first first; weight (O, G * width)."""
        return _grouped(double(weight).square().sum(0), width).argsort(stable=True)


@checked()
@dataclass(frozen=True)
class Activation:
    """By E|x_g|^2, the power of a group's inputs; blind to the weights."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        return _grouped(moments.power(), width).argsort(stable=True)


@checked()
@dataclass(frozen=True)
class Wanda:
    """By the sum of |W_ij| (E x_j^2)^(1/2) over a group (Sun et al. 2023, arXiv 2306.11695, made structured)."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        return _grouped(double(weight).abs().sum(0) * moments.power().sqrt(), width).argsort(stable=True)


@checked()
@dataclass(frozen=True)
class Obs:
    """Greedy structured Optimal Brain Surgeon (Hassibi & Stork 1993; the paper's section on second-order pruning).

    Repeatedly removes the group with the least tr(W_g ([H^-1]_gg)^-1 W_g^T), the error its removal leaves once the
    others have made up for it, then updates W and H^-1 as if it had never been there.

    Args:
        damping: added to H, relative to its mean diagonal.
        rounds: floor(groups / rounds) groups, but at least one, go at a time; up to twice ``rounds`` groups go one by
            one.
    """

    damping: Damping = 0.01
    rounds: Rounds = 1024

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        # float32 from here on: the order alone is at stake, and the loop is bound by memory
        inverse = torch.linalg.inv(damped(moments.hessian(centred=True), self.damping, moments.rounding())).float()
        weight = weight.float().to(inverse.device).clone()
        groups = weight.shape[1] // width
        chunk = max(1, groups // self.rounds)
        alive, order = torch.arange(groups, device=weight.device), list[Tensor]()
        while len(alive):
            gone = _obs_scores(weight, inverse, alive, width).argsort(stable=True)[:chunk]
            removed = _columns(alive[gone], width)
            order.append(alive[gone])
            alive = alive[_without(gone, len(alive))]
            # block form of the OBS update: eliminate the removed columns from W and from H^-1
            update = torch.linalg.solve(inverse[removed][:, removed], inverse[removed])
            weight.addmm_(weight[:, removed], update, alpha=-1)
            inverse.addmm_(inverse[:, removed], update, alpha=-1)
        return torch.cat(order)


Ranking: TypeAlias = Obs | Wanda | Magnitude | Activation
"""Says in which order the groups of a layer go: one that settings can be saved with."""


def _obs_scores(weight: Tensor, inverse: Tensor, alive: Tensor, width: int) -> Tensor:
    """(len(alive),): tr(W_g ([H^-1]_gg)^-1 W_g^T) of the groups that are left."""
    if width == 1:
        return weight.square().sum(0)[alive] / inverse.diagonal()[alive]
    groups = len(inverse) // width
    blocks = inverse.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (G, width, width)
    columns = weight.T.view(groups, width, -1)[alive]  # (len(alive), width, O)
    scores: Tensor = (torch.linalg.solve(blocks[alive], columns) * columns).sum((1, 2))
    return scores


def _without(picks: Tensor, count: int) -> Tensor:
    """A mask of ``count`` that leaves out ``picks``."""
    mask = torch.ones(count, dtype=torch.bool, device=picks.device)
    mask[picks] = False
    return mask


def _grouped(scores: Tensor, width: int) -> Tensor:
    return scores.view(-1, width).sum(1)


def _columns(groups: Tensor, width: int) -> Tensor:
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()
