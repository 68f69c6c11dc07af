"""Compute Pearson correlations along one axis as distances `1 - r`, which are finite even without variance."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING_ERRORS = 32
"""A standard deviation of at most this many rounding errors is treated as 0: values that are equal by definition differ
by such amounts after sums in different order, and their correlation would be noise."""


def correlation_distance(own: Tensor, theirs: Tensor, real: Tensor, dim: int) -> Tensor:
    """Sum `1 - r` over all correlations r between two arrays along `dim`: a scalar.

    With c the centred values divided by their norm, `1 - r` is `|c_own - c_theirs|^2 / 2`, which is exactly 0 for equal
    arrays. If neither array has variance, or if there are no real entries, r = 1. If only one array has variance, r = 0
    without a gradient.

    Args:
        own: logarithms of the values; minus infinity for the value 0 and for entries that are not real.
        theirs: like `own`.
        real: bool, broadcastable to both: true for entries that are used.
        dim: the axis.
    """
    own_direction, own_flat = _direction(own, real, dim)
    their_direction, their_flat = _direction(theirs, real, dim)
    distances = (own_direction - their_direction).square().sum(dim, keepdim=True) / 2
    return distances.masked_fill(own_flat ^ their_flat, 1).sum()


def _direction(logs: Tensor, real: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the centred values divided by their norm, or 0 without variance, and a mask of missing variance."""
    real = real.expand_as(logs)
    # Correlations are invariant to scale. Dividing by the largest value avoids underflow of the squares of small
    # probabilities, such as those of a key that no query attends to.
    unit = logs.detach().amax(dim, keepdim=True)
    values = (logs - unit.masked_fill(unit == -torch.inf, 0)).exp()
    count = real.sum(dim, keepdim=True).clamp_min(1)
    centred = (values - values.sum(dim, keepdim=True) / count).masked_fill(~real, 0)
    squares = centred.square().sum(dim, keepdim=True)
    smallest = (_ROUNDING_ERRORS * torch.finfo(values.dtype).eps) ** 2
    flat = squares.detach() <= smallest * values.detach().square().sum(dim, keepdim=True)
    length = squares.masked_fill(flat, 1).sqrt()  # a root of 0 would have an infinite gradient
    return (centred / length).masked_fill(flat, 0), flat
