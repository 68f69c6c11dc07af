"""Confidence intervals and tests of means and differences over seeds and test items.

A sample is an array (n, m): n seeds, and m values of test items whose mean is a score; m is 1 if only scores are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
"""Probability with which an interval covers the true value."""

_ROUNDING = 1e-9
"""Standard errors below this fraction of the scores are treated as rounding errors of equal scores."""

_RESAMPLES = 4999
_CHUNK = 250

SampleValues = NDArray[np.float64]


class ErrorDistribution(Protocol):
    """Distribution of (estimate - true value) / standard error."""

    def cdf(self, value: float) -> float:
        """Return the probability of a value of at most `value`."""

    def ppf(self, probability: float) -> float:
        """Return the value that is not exceeded with the given probability."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of means with its error.

    Attributes:
        value: the mean or difference.
        standard_error: standard error of the value.
        errors: distribution of the studentised error.
        over: what varies: `seeds`, `items` or both.
    """

    value: float
    standard_error: float
    errors: ErrorDistribution
    over: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds that contain the true value with the probability `LEVEL`."""
        tail = (1 - LEVEL) / 2
        low = self.value - self.standard_error * self.errors.ppf(1 - tail)
        high = self.value - self.standard_error * self.errors.ppf(tail)
        return float(low), float(high)

    def p_value(self) -> float:
        """Return the two-sided p-value of the hypothesis that the true value is 0."""
        below = self.errors.cdf(self.value / self.standard_error)
        return float(min(1.0, 2 * min(below, 1 - below)))

    def p_at_most(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the true value is at most `bound`."""
        return float(1 - self.errors.cdf((self.value - bound) / self.standard_error))


def estimate_mean(sample: SampleValues) -> Estimate | None:
    """Estimate the mean of a sample (n, m).

    For several seeds, the error is Student's t over seeds. With test items, there are two crossed random effects; the
    degrees of freedom are the harmonic mean of the values for seeds and for items, weighted by their parts of the
    variance. For a single seed, the error is a bootstrap-t over items.

    Returns:
        The estimate; None without variation, as for a single score.
    """
    return _estimate([(1.0, sample)], _rounding(sample), fixed=False)


def estimate_difference(
    first: SampleValues, second: SampleValues, *, paired: bool, fixed: bool = False
) -> Estimate | None:
    """Estimate the difference of the means of two samples (n, m) and (k, m) on the same m items.

    A single row compared with k rows of variance s^2 is treated as a draw from a distribution with the same variance,
    so that the variance of the difference is s^2 (1 + 1/k) with k - 1 degrees of freedom.

    Args:
        first: the first sample.
        second: the second sample.
        paired: whether row i of both samples has the same seed (n = k); otherwise the variances of the seeds are added,
            as in Welch's test.
        fixed: whether a single row comes from a fixed model, which has no variance over seeds.

    Returns:
        The estimate; None without variation beyond rounding errors.
    """
    rounding = _rounding(first, second)
    if paired:
        return _estimate([(1.0, first - second)], rounding, fixed=False)
    return _estimate([(1.0, first), (-1.0, second)], rounding, fixed=fixed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing by Holm's step-down method."""
    count, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _rounding(*samples: SampleValues) -> float:
    """Return the largest standard error that rounding of the samples' scores can cause."""
    return _ROUNDING * max(float(np.abs(sample.mean(1)).max()) for sample in samples)


def _estimate(sides: Sequence[tuple[float, SampleValues]], rounding: float, *, fixed: bool) -> Estimate | None:
    """Estimate the sum of signed means of samples whose seeds are independent and whose items are the same."""
    value = sum(sign * sample.mean() for sign, sample in sides)
    by_item = np.sum([sign * sample.mean(0) for sign, sample in sides], axis=0)
    several = [sample for _, sample in sides if len(sample) > 1]
    items = by_item.size
    if not several:
        return _bootstrap_t(by_item, rounding) if items > 1 else None
    drawn = 1 if len(several) < len(sides) and not fixed else 0  # a single row has the variance of a single seed
    factors = [drawn + 1 / len(sample) for sample in several]
    of_seeds = [float(sample.mean(1).var(ddof=1)) * factor for sample, factor in zip(several, factors, strict=True)]
    # The interaction of seeds and items is part of both variances, so it is subtracted once.
    shared = [_interaction(sample) * factor / items for sample, factor in zip(several, factors, strict=True)]
    excess = max(float(by_item.var(ddof=1)) / items - sum(shared), 0.0) if items > 1 else 0.0
    variance = sum(of_seeds) + excess
    if not np.sqrt(variance) > rounding:  # seeds whose scores are equal vary by this interaction at least
        of_seeds, variance = shared, sum(shared)
    if not np.sqrt(variance) > rounding:
        return None
    # Seeds vary at least as much as their interaction with items; a smaller variance of one side is due to chance.
    least = [max(pair) for pair in zip(of_seeds, shared, strict=True)]
    total = sum(least) or 1.0
    welch = sum((one / total) ** 2 / (len(sample) - 1) for one, sample in zip(least, several, strict=True))
    # With squared parts (Satterthwaite), the few seeds would count too little, because the parts are also estimates.
    freedom = variance / (sum(of_seeds) * welch + excess / max(items - 1, 1))
    over = ("seeds", "items") if items > 1 else ("seeds",)
    return Estimate(float(value), float(np.sqrt(variance)), StudentT(freedom), over)


def _interaction(sample: SampleValues) -> float:
    """Return the residual mean square of a sample (n, m) after seed and item effects; 0 if only scores are known."""
    freedom: int = (sample.shape[0] - 1) * (sample.shape[1] - 1)
    if not freedom:
        return 0.0
    rest = sample - sample.mean(0) - sample.mean(1, keepdims=True) + sample.mean()
    return float((rest**2).sum()) / freedom


def _bootstrap_t(values: SampleValues, rounding: float) -> Estimate | None:
    """Estimate the mean of items (m,) by a bootstrap of the studentised mean."""
    error = float(values.std(ddof=1)) / np.sqrt(values.size)
    if not error > rounding:
        return None
    centred, counts = np.unique(values - values.mean(), return_counts=True)
    draw, found = np.random.default_rng(0), []
    for start in range(0, _RESAMPLES, _CHUNK):
        rows = draw.multinomial(values.size, counts / values.size, size=min(_CHUNK, _RESAMPLES - start))
        means = rows @ centred / values.size
        variances = np.maximum(rows @ centred**2 / values.size - means**2, 0.0) / (values.size - 1)
        found.append(means / np.sqrt(np.where(variances > 0, variances, np.nan)))
    errors = np.sort(np.concatenate(found))  # NaN is last
    usable = errors[: np.isfinite(errors).sum()]
    if len(usable) < len(errors) * LEVEL:  # hardly any item differs, so resamples without variation are frequent
        return None
    return Estimate(float(values.mean()), float(error), Resampled(usable), ("items",))


@dataclass(frozen=True)
class StudentT:
    """Student's t distribution.

    Attributes:
        freedom: degrees of freedom.
    """

    freedom: float

    def cdf(self, value: float) -> float:
        """Return the probability of a value of at most `value`."""
        return float(special.stdtr(self.freedom, value))

    def ppf(self, probability: float) -> float:
        """Return a quantile."""
        return float(special.stdtrit(self.freedom, probability))


@dataclass(frozen=True)
class Resampled:
    """An empirical distribution.

    Attributes:
        values: (b,) sorted values.
    """

    values: SampleValues

    def cdf(self, value: float) -> float:
        """Return the probability of a value of at most `value`; it is never exactly 0 or 1."""
        return (float(np.searchsorted(self.values, value, side="right")) + 0.5) / (len(self.values) + 1)

    def ppf(self, probability: float) -> float:
        """Return a quantile, rounded outwards to one of the values."""
        count = len(self.values) + 1
        rank = np.floor(probability * count) if probability < 0.5 else np.ceil(probability * count)
        return float(self.values[int(np.clip(rank, 1, count - 1)) - 1])
