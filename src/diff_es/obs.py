"""The linear algebra of ranking and compensation: pure functions of weights and second moments.

A layer's output projection is y = W x + b with W (O, D) and D = G * width input columns in G groups. Everything below
asks what the layer's inputs x look like, through their moments over a stage, and what y loses when groups go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .arguments import checked
from .limits import Damping, Rounds


@dataclass(frozen=True)
class Moments:
    """Sums over the vectors x (D,) that a layer received; they add up over batches, workers and stages.

    They are taken around ``shift`` (None: around 0), so that float32 loses nothing of a small spread around a large
    mean.
    """

    second: Tensor  # (D, D), sum of (x - shift)(x - shift)^T
    first: Tensor  # (D,), sum of x - shift
    count: int
    shift: Tensor | None = None  # (D,)

    def __add__(self, other: Moments) -> Moments:
        moved = other.around(self.shift)
        return Moments(self.second + moved.second, self.first + moved.first, self.count + other.count, self.shift)

    def around(self, shift: Tensor | None) -> Moments:
        """The same sums taken around another point."""
        here = torch.zeros_like(self.first) if self.shift is None else self.shift
        there = torch.zeros_like(self.first) if shift is None else shift
        step = here - there  # x - there = (x - here) + step
        cross = torch.outer(step, self.first)
        second = self.second + cross + cross.T + self.count * torch.outer(step, step)
        return Moments(second, self.first + self.count * step, self.count, shift)

    def mean(self) -> Tensor:
        """(D,) float64."""
        offset = _double(self.first) / self.count
        return offset if self.shift is None else offset + _double(self.shift)

    def power(self) -> Tensor:
        """(D,) float64: the mean square of each input."""
        return self._covariance().diagonal() + self.mean().square()

    def rounding(self, inputs: int | None = None) -> Tensor:
        """What rounding of the sums may leave of a covariance that is really zero."""
        spread = _double(self.second.diagonal()) / self.count
        return 64 * torch.finfo(self.second.dtype).eps * spread[:inputs].mean()

    def hessian(self, *, centred: bool) -> Tensor:
        """(D, D) float64: E[x x^T], or the covariance where an intercept takes care of the mean."""
        covariance, mean = self._covariance(), self.mean()
        return covariance if centred else covariance + torch.outer(mean, mean)

    def _covariance(self) -> Tensor:
        offset = _double(self.first) / self.count
        return _double(self.second) / self.count - torch.outer(offset, offset)


def _double(tensor: Tensor) -> Tensor:
    """float64; on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def damped(hessian: Tensor, damping: float, floor: float | Tensor = 0.0) -> Tensor:
    """H + (damping * mean(diag H) + floor) * I; for an input that is always zero, I."""
    scale = damping * hessian.diagonal().mean().clamp_min(0) + floor
    ridge = torch.where(scale > 0, scale, torch.ones_like(scale))
    return hessian + ridge * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)


# ------------------------------------------------------------------------------------------------------- ranking


@checked()
@dataclass(frozen=True)
class Magnitude:
    """By |W_g|^2, the squared norm of a group's columns; blind to the inputs."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        """As of every ranking: int64 (G,), the group that goes first first; weight (O, G * width)."""
        return _grouped(_double(weight).square().sum(0), width).argsort(stable=True)


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
        return _grouped(_double(weight).abs().sum(0) * moments.power().sqrt(), width).argsort(stable=True)


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


# -------------------------------------------------------------------------------------------------- compensation


@checked()
@dataclass(frozen=True)
class Ridge:
    """Re-solve the kept weights: ridge regression of the dense layer's output on the kept inputs.

    The ridge pulls towards the dense weights, so that inputs which know nothing of the removed ones change nothing:
    W' = W_K + W_R H_RK (H_KK + damping * mean(diag H) I)^-1, b' = b + W mu - W' mu_K.

    Minimising error + damping * mean(diag H) * |W' - W_K|^2, it never leaves a larger error than doing nothing.

    Args:
        damping: relative to the mean diagonal of H.
        intercept: whether the mean of what was removed goes into the bias (H is then the covariance).
    """

    damping: Damping = 0.01
    intercept: bool = True

    def solve(
        self, weight: Tensor, bias: Tensor | None, moments: Moments, order: Tensor, counts: Sequence[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The compensated weights for several numbers of kept columns at once.

        One Cholesky factor serves them all: with the column that goes last put first, the columns kept at any count
        are a prefix, and the factor of a leading block is the leading block of the factor.

        Args:
            weight, bias: (O, D) and (O,) of the dense output projection.
            moments: of its inputs.
            order: int64 (D,), the column that goes first first.
            counts: how many columns stay, each in 1 to D.

        Returns:
            for every count: the kept columns (int64, ascending), weight (O, count) and bias (O,), float64.
        """
        hessian = moments.hessian(centred=self.intercept)
        mean = moments.mean() if self.intercept else torch.zeros_like(hessian[0])
        last_first = order.flip(0).to(hessian.device)
        weight, mean = _double(weight).to(hessian.device)[:, last_first], mean[last_first]
        hessian = hessian[last_first][:, last_first]
        factor = torch.linalg.cholesky(damped(hessian, self.damping, moments.rounding()))
        dense_bias = torch.zeros_like(weight[:, 0]) if bias is None else _double(bias).to(weight.device)
        results = []
        for count in counts:
            lost = hessian[:count, count:] @ weight[:, count:].T  # (K, O): H_KR W_R^T
            solved = weight[:, :count] + torch.cholesky_solve(lost, factor[:count, :count]).T
            offset = dense_bias + weight @ mean - solved @ mean[:count]
            kept, ascending = last_first[:count].sort()
            results.append((kept, solved[:, ascending], offset))
        return results


def output_error(
    weight: Tensor, bias: Tensor | None, moments: Moments, kept: Tensor, solved: tuple[Tensor, Tensor]
) -> float:
    """E|W x + b - W' x_K - b'|^2 over the inputs that the moments describe."""
    difference = _double(weight).clone()
    difference[:, kept] -= _double(solved[0])
    offset = -_double(solved[1]) if bias is None else _double(bias) - _double(solved[1])
    second, mean = moments.hessian(centred=False), moments.mean()
    quadratic = (difference @ second * difference).sum()
    return float(quadratic + 2 * offset @ (difference @ mean) + offset.square().sum())


def regress(moments: Moments, inputs: int, damping: float) -> tuple[Tensor, Tensor, float]:
    """Ridge regression, with intercept, of the rest of a vector on its first ``inputs`` entries.

    Returns:
        weight (R, inputs), bias (R,), and the mean squared error that stays, all float64.
    """
    covariance, mean = moments.hessian(centred=True), moments.mean()
    factor = torch.linalg.cholesky(damped(covariance[:inputs, :inputs], damping, moments.rounding(inputs)))
    weight = torch.cholesky_solve(covariance[:inputs, inputs:], factor).T
    bias = mean[inputs:] - weight @ mean[:inputs]
    cross = covariance[inputs:, :inputs]
    error = covariance[inputs:, inputs:].diagonal().sum() - 2 * (weight * cross).sum()
    error = error + (weight @ covariance[:inputs, :inputs] * weight).sum()
    return weight, bias, max(float(error), 0.0)
