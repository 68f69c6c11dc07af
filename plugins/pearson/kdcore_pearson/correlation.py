"""Pearson correlations along one axis, as distances `1 - r` that stay numbers whatever comes."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING_ERRORS = 32
"""A spread that is this many rounding errors of the values, or less, is no spread: numbers that are equal by definition
come out of sums in different order with such differences, and their correlation would be that of noise."""


def correlation_distance(own: Tensor, theirs: Tensor, real: Tensor, dim: int) -> Tensor:
    """Sum of `1 - r` over all correlations r between two arrays along `dim`: a scalar.

    With c the centred values divided by their length, `1 - r` is `|c_own - c_theirs|^2 / 2`, which is exactly 0 for
    equal arrays. Values without variance on both sides have r = 1, as have slots with no real entry; values without
    variance on one side have r = 0, without gradient.

    Args:
        own: logarithms of the values; minus infinity for the value 0 and for entries that are not real.
        theirs: likewise.
        real: bool, broadcastable to both: which entries enter.
        dim: the axis.
    """
    own_direction, own_flat = _direction(own, real, dim)
    their_direction, their_flat = _direction(theirs, real, dim)
    distances = (own_direction - their_direction).square().sum(dim, keepdim=True) / 2
    return distances.masked_fill(own_flat ^ their_flat, 1).sum()


def _direction(logs: Tensor, real: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Centred values divided by their length, 0 where they have no variance; and where that is, with `dim` kept."""
    real = real.expand_as(logs)
    # A correlation does not change with the unit. In units of the largest value nothing underflows, though the squares
    # of the probabilities of a key that no query looks at would.
    unit = logs.detach().amax(dim, keepdim=True)
    values = (logs - unit.masked_fill(unit == -torch.inf, 0)).exp()
    count = real.sum(dim, keepdim=True).clamp_min(1)
    centred = (values - values.sum(dim, keepdim=True) / count).masked_fill(~real, 0)
    squares = centred.square().sum(dim, keepdim=True)
    smallest = (_ROUNDING_ERRORS * torch.finfo(values.dtype).eps) ** 2
    flat = squares.detach() <= smallest * values.detach().square().sum(dim, keepdim=True)
    length = squares.masked_fill(flat, 1).sqrt()  # a root of 0 would have an infinite gradient
    return (centred / length).masked_fill(flat, 0), flat
