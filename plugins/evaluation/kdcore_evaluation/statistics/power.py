"""Compute the differences that a comparison can detect, before training."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

POWER = 0.8
ALPHA = 0.05


def detectable_difference(parts: Sequence[tuple[float, int]], *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the true difference that a two-sided t test detects with a given power.

    Args:
        parts: variance of each independent component of the estimated difference, and its degrees of freedom.
        alpha: level of the test.
        power: probability of a p-value below `alpha`.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance / sum(part / own for part, own in parts)  # as for intervals
    bound = float(t.ppf(1 - alpha / 2, freedom))

    def missing(shift: float) -> float:
        return float(nct.sf(bound, freedom, shift)) - power

    # The probability of finding the opposite sign is below alpha / 2 * (1 - power), so it is neglected.
    largest = bound
    while missing(largest) < 0:
        largest *= 2
    return float(brentq(missing, 0.0, largest)) * sqrt(variance)
