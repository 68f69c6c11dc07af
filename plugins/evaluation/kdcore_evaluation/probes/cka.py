"""Debiased linear CKA (centred kernel alignment) of hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_DOMINANT = 10.0


class Similarities(NamedTuple):
    """CKA of T blocks with S blocks; NaN where states are constant.

    Attributes:
        all: (T, S) computed from all dimensions.
        without_dominant: (T, S) without the dominant dimensions of both blocks.
    """

    all: np.ndarray
    without_dominant: np.ndarray


@dataclass(frozen=True)
class _CentredStates:
    """States of a block, with precomputed values for the estimates.

    Attributes:
        states: (N, d) in their original precision.
        kept: (d,) bool, false for dominant dimensions.
        squares: (2, N) squared norms of the centred states, over all dimensions and over the kept dimensions.
        own: (2,) `_hsic` of the states with themselves.
    """

    states: Tensor
    kept: Tensor
    squares: Tensor
    own: Tensor

    @classmethod
    def of(cls, states: Tensor) -> _CentredStates:
        """Prepare the states (N, d) of a block."""
        kept, centred = ~dominant_dimensions(states), _centred(states)
        squares = torch.stack([centred.square().sum(1), centred[:, kept].square().sum(1)])
        return cls(states, kept, squares, _hsic(_norms(centred, centred, kept, kept), squares, squares))


def dominant_dimensions(states: Tensor) -> Tensor:
    """Return (d,) bool: the dimensions of states (N, d) whose variance exceeds 10 times the median of all dimensions.

    A few such dimensions dominate all similarities of an encoder that has them (arXiv 2109.04404).
    """
    variances = states.double().var(0, correction=0)
    return variances > _DOMINANT * variances.median()


def debiased_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> Similarities:
    """Compute the debiased linear CKA of all pairs of blocks, in float64 and without an (N, N) matrix.

    CKA is `HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))`, with the unbiased estimator of HSIC by Song et al. (JMLR 2012) as
    in arXiv 2405.01012: independent states have a CKA of about 0 for any number of tokens. CKA is invariant to shifts,
    rotations and uniform scaling of a block's states.

    Args:
        first: (N, d) states of T blocks, whose widths may differ.
        second: states of S blocks on the same N tokens; N must be at least 4.
    """
    values = np.full((2, len(first), len(second)), np.nan)
    others = [_CentredStates.of(states) for states in second]
    for row, one in enumerate(map(_CentredStates.of, first)):
        centred = _centred(one.states)
        for column, other in enumerate(others):
            norms = _norms(centred, _centred(other.states), one.kept, other.kept)
            cka = _hsic(norms, one.squares, other.squares) / (one.own * other.own).sqrt()
            values[:, row, column] = cka.cpu().numpy()
    return Similarities(*values)


def _centred(states: Tensor) -> Tensor:
    precise = states.double()
    return precise - precise.mean(0)


def _norms(first: Tensor, second: Tensor, kept: Tensor, also_kept: Tensor) -> Tensor:
    """Return the squared norm of `X'Y` over all dimensions, and over the dimensions kept in both: (2,)."""
    product = first.T @ second
    return torch.stack([product.square().sum(), product[kept][:, also_kept].square().sum()])


def _hsic(norms: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased estimate of HSIC for linear kernels, times n(n-3), which cancels in CKA.

    Song's estimator for kernels K and L with zero diagonals is `tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1`. For
    centred X and Y, K is `XX'` without its diagonal, so that `K1` is minus that diagonal.

    Args:
        norms: (2,) squared norms of `X'Y`.
        first: (2, N) squared norms of the rows of X.
        second: (2, N) squared norms of the rows of Y.
    """
    n = first.shape[1]
    sums = first.sum(1) * second.sum(1)
    return norms - n / (n - 2) * (first * second).sum(1) + sums / ((n - 1) * (n - 2))
