"""The weights that stay make up for those that go: ridge regression on second moments.

A layer's output projection is y = W x + b with W (O, D) and D = G * width input columns in G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.arguments import checked
from ..utils.limits import Damping
from .moments import Moments, damped, double


class Solved(NamedTuple):
    """A compensated output projection: the columns that stay (int64, ascending), weight (O, K) and bias (O,), float64;
    and the error that is left of the dense one's output, relative to that, both of the damped H: of inputs of low rank,
    or beside one of far more power, it is more than what is really left."""

    kept: Tensor
    weight: Tensor
    bias: Tensor
    left: float


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
    ) -> list[Solved]:
        """The compensated weights for several numbers of kept columns at once.

        One Cholesky factor serves them all: with the column that goes last put first, the columns kept at any count
        are a prefix, and the factor of a leading block is the leading block of the factor. With the factor
        F = [[L, 0], [B, C]] of H, where L L^T is the damped H_KK and B L^T is H_RK, W' = W_K + W_R B L^-1, which leaves
        the error |W_R C|^2 of the output's |W F|^2: the columns of W F behind the first K.

        Args:
            weight, bias: (O, D) and (O,) of the dense output projection.
            moments: of its inputs.
            order: int64 (D,), the column that goes first first.
            counts: how many columns stay, each in 1 to D.

        Returns:
            for every count, what stays; in half precision weights are rounded already, and the bias suits these.
        """
        hessian = moments.hessian(centred=self.intercept)
        mean = moments.mean() if self.intercept else torch.zeros_like(hessian[0])
        last_first, kind = order.flip(0).to(hessian.device), weight.dtype
        weight, mean = double(weight).to(hessian.device)[:, last_first], mean[last_first]
        hessian = hessian[last_first][:, last_first]
        factor = torch.linalg.cholesky(damped(hessian, self.damping, moments.rounding()))
        del hessian  # as large as the factor
        dense_bias = torch.zeros_like(weight[:, 0]) if bias is None else double(bias).to(weight.device)
        scaled = (factor / factor.diagonal().max()).float()  # shares alone are at stake
        power = (weight.float() @ scaled).square().sum(0, dtype=torch.float64)  # of each column of W F
        total, results = power.sum().clamp_min(torch.finfo(torch.float64).tiny), list[Solved]()
        for count in counts:
            lost = weight[:, count:] @ factor[count:, :count]  # (O, K): W_R B
            made_up = torch.linalg.solve_triangular(factor[:count, :count], lost, upper=False, left=False)
            solved = weight[:, :count] + made_up
            if kind.itemsize < 4:  # as the layer will hold it
                solved = solved.to(kind).double()
            offset = dense_bias + weight @ mean - solved @ mean[:count]
            kept, ascending = last_first[:count].sort()
            left = float(power[count:].sum() / total)
            results.append(Solved(kept, solved[:, ascending], offset, left))
        return results


def output_error(
    weight: Tensor, bias: Tensor | None, moments: Moments, kept: Tensor, solved: tuple[Tensor, Tensor]
) -> float:
    """E|W x + b - W' x_K - b'|^2 over the inputs that the moments describe."""
    difference = double(weight).clone()
    difference[:, kept] -= double(solved[0])
    offset = -double(solved[1]) if bias is None else double(bias) - double(solved[1])
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
