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
from .moments import Moments, damped, where_doubles_are


@checked()
@dataclass(frozen=True)
class Magnitude:
    """By |W_g|^2, the squared norm of a group's columns; blind to the inputs."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        """As of every ranking: int64 (G,), the group that goes first first; weight (O, G * width)."""
        return grouped(column_squares(weight), width).argsort(stable=True)


@checked()
@dataclass(frozen=True)
class Activation:
    """By E|x_g|^2, the power of a group's inputs; blind to the weights."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        return grouped(moments.power(), width).argsort(stable=True)


@checked()
@dataclass(frozen=True)
class Wanda:
    """By the sum of |W_ij| (E x_j^2)^(1/2) over a group (Sun et al. 2023, arXiv 2306.11695, made structured)."""

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        power = moments.power()
        return grouped(_summed(weight.abs()).to(power.device) * power.sqrt(), width).argsort(stable=True)


@checked()
@dataclass(frozen=True)
class Obs:
    """Greedy structured Optimal Brain Surgeon (Hassibi & Stork 1993; the paper's section on second-order pruning).

    Repeatedly removes the group with the least tr(W_g ([H^-1]_gg)^-1 W_g^T), the error its removal leaves once the
    others have made up for it, then updates W and H^-1 as if it had never been there.

    Args:
        damping: added to H, relative to its mean diagonal.
        rounds: floor(groups / rounds) groups, but at least one, go at a time; fewer than twice ``rounds`` groups go one
            by one.
    """

    damping: Damping = 0.01
    rounds: Rounds = 128

    def order(self, weight: Tensor, moments: Moments, width: int) -> Tensor:
        hessian = damped(moments.hessian(centred=True), self.damping, moments.rounding())
        # float32 from here on: the order alone is at stake
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).float()
        weight = weight.float().to(inverse.device)
        groups = weight.shape[1] // width
        chunk = max(1, groups // self.rounds)
        left = _Left(inverse, weight.T @ weight, width, chunk)
        return torch.cat([left.remove(min(chunk, groups - start)) for start in range(0, groups, chunk)])


Ranking: TypeAlias = Obs | Wanda | Magnitude | Activation
"""Says in which order the groups of a layer go: one that settings can be saved with."""


class _Left:
    """H^-1 and W^T W of the columns that are left, as groups are removed one after another.

    Removing the columns R takes U K U^T off H^-1, with U = [H^-1]_:R and K = ([H^-1]_RR)^-1, and W_R K U^T off W, which
    takes A U^T + U A^T off W^T W, with A = (W^T W)_:R K - U K (W^T W)_RR K / 2. These products wait until many columns
    have gone, since applying them costs as much for many as for one; only the blocks of the groups on the diagonal,
    which decide what goes next, are kept up to date.

    Args:
        inverse, gram: (D, D), H^-1 and W^T W of all columns; D = G * width.
        chunk: the most groups that go at a time.
    """

    def __init__(self, inverse: Tensor, gram: Tensor, width: int, chunk: int) -> None:
        self._inverse, self._gram, self._width = inverse, gram, width
        self._room = max(_TOGETHER, len(inverse) // _PART, chunk * width)
        self._groups = torch.arange(len(inverse) // width, device=inverse.device)  # of these matrices
        self._begin()

    def _begin(self) -> None:
        """Nothing waits."""
        self._gone = torch.zeros_like(self._groups, dtype=torch.bool)
        self._blocks = _diagonal(self._inverse, self._width).clone(), _diagonal(self._gram, self._width).clone()
        self._products = self._inverse.new_empty(3, self._room, len(self._inverse))  # U, U K and A, transposed
        self._waiting = 0  # columns whose products these are

    def remove(self, count: int) -> Tensor:
        """The groups that are missed least, the least first: tr(W_g ([H^-1]_gg)^-1 W_g^T); now they are gone."""
        if self._waiting + count * self._width > self._room:
            self._apply()
        picks = self._scores().masked_fill_(self._gone, torch.inf).argsort(stable=True)[:count]
        self._gone[picks] = True
        self._note(_columns(picks, self._width))
        return self._groups[picks]

    def _scores(self) -> Tensor:
        inverse, gram = self._blocks
        if self._width == 1:
            return gram[:, 0, 0] / inverse[:, 0, 0]
        one = torch.eye(self._width, dtype=inverse.dtype, device=inverse.device)
        inverse = torch.where(self._gone[:, None, None], one, inverse)  # what is left of these is rounding
        scores: Tensor = torch.linalg.solve(inverse, gram).diagonal(dim1=1, dim2=2).sum(1)
        return scores

    def _note(self, columns: Tensor) -> None:
        """Let wait what the removal of columns takes off, but for the diagonal."""
        end = self._waiting + len(columns)
        before, scaled, half = self._products[:, : self._waiting]
        taken = torch.addmm(self._inverse[columns], scaled[:, columns].T, before, alpha=-1)  # these are symmetric
        gram = torch.addmm(self._gram[columns], half[:, columns].T, before, alpha=-1)
        gram.addmm_(before[:, columns].T, half, alpha=-1)
        block = taken[:, columns]
        scaled = _divided(taken, block)
        half = _divided(gram - gram[:, columns] @ scaled / 2, block)
        for place, part in zip(self._products, (taken, scaled, half), strict=True):
            place[self._waiting : end] = part
        own = [part.view(len(columns), -1, self._width).permute(1, 2, 0) for part in (taken, scaled, half)]
        cross = own[2] @ own[0].mT
        self._blocks[0].sub_(own[1] @ own[0].mT)
        self._blocks[1].sub_(cross).sub_(cross.mT)
        self._waiting = end

    def _apply(self) -> None:
        """Take off what waits, and leave out what has gone."""
        stay = _columns((~self._gone).nonzero()[:, 0], self._width)
        taken, scaled, half = self._products[:, : self._waiting, stay]
        self._inverse = self._inverse[stay][:, stay].addmm_(scaled.T, taken, alpha=-1)
        self._gram = self._gram[stay][:, stay].addmm_(torch.cat([half, taken]).T, torch.cat([taken, half]), alpha=-1)
        self._groups = self._groups[~self._gone]
        self._begin()


def _divided(rows: Tensor, block: Tensor) -> Tensor:
    """(C, D): the inverse of a symmetric block (C, C) times rows."""
    return rows / block if len(block) == 1 else torch.linalg.solve(block, rows)


_TOGETHER, _PART = 128, 9
"""Columns whose removal is applied at once: so many, or this part of all."""


def _diagonal(matrix: Tensor, width: int) -> Tensor:
    """(G, width, width): the blocks on the diagonal of (G * width, G * width)."""
    groups = len(matrix) // width
    return matrix.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def column_powers(weight: Tensor, moments: Moments) -> Tensor:
    """float64 (D,): |W_j|^2 E x_j^2, what each input alone gives of the output's power."""
    power = moments.power()
    return column_squares(weight).to(power.device) * power


def column_squares(weight: Tensor) -> Tensor:
    """float64 (D,): |W_j|^2."""
    return _summed(weight.float().square())


def _summed(rows: Tensor) -> Tensor:
    """float64 (D,): the sums of the columns of (O, D), without a copy of it; on the CPU where the device has none."""
    return where_doubles_are(rows).sum(0, dtype=torch.float64)


def grouped(scores: Tensor, width: int) -> Tensor:
    """(G,): the sums over the columns of each group."""
    return scores.view(-1, width).sum(1)


def _columns(groups: Tensor, width: int) -> Tensor:
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()
