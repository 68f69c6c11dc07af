"""Intervals and tests of means and differences: against SciPy, against loops, and their coverage in simulations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from kdcore_evaluation.statistics.intervals import SampleValues, estimate_difference, estimate_mean, holm
from scipy import stats

COMPARISONS = 1000


def test_scores_alone_give_the_tests_of_scipy() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.8, 0.02, 5), draw.normal(0.78, 0.05, 5)
    columns = first[:, None], second[:, None]
    for found, expected in (
        (estimate_mean(columns[0]), stats.ttest_1samp(first, 0.0)),
        (estimate_difference(*columns, paired=True), stats.ttest_rel(first, second)),
        (estimate_difference(*columns, paired=False), stats.ttest_ind(first, second, equal_var=False)),
        (estimate_difference(columns[0], np.array([[0.7]]), paired=False, fixed=True), stats.ttest_1samp(first, 0.7)),
    ):
        assert found is not None
        assert found.p_value() == pytest.approx(expected.pvalue)
        if found.value != pytest.approx(first.mean() - 0.7):
            interval = expected.confidence_interval(0.95)
            assert found.interval == pytest.approx((interval.low, interval.high))
    mean = estimate_mean(columns[0])
    assert mean is not None
    assert mean.p_at_most(0.79) == pytest.approx(stats.ttest_1samp(first, 0.79, alternative="greater").pvalue)


def test_seeds_and_items_are_crossed_random_effects() -> None:
    """Mean squares by loops over cells; their expectations give the variance of the mean."""
    draw = np.random.default_rng(1)
    table = draw.normal(0, 1, (4, 1)) + draw.normal(0, 2, (1, 30)) + draw.normal(0, 0.5, (4, 30))
    grand = sum(float(value) for value in table.flat) / 120
    rows = [sum(table[i]) / 30 for i in range(4)]
    columns = [sum(table[:, j]) / 4 for j in range(30)]
    of_seeds = sum(30 * (row - grand) ** 2 for row in rows) / 3
    of_items = sum(4 * (column - grand) ** 2 for column in columns) / 29
    rest = sum((table[i, j] - rows[i] - columns[j] + grand) ** 2 for i, j in itertools.product(range(4), range(30))) / (
        3 * 29
    )
    variance = (of_seeds + of_items - rest) / 120
    freedom = variance / (of_seeds / 120 / 3 + (of_items - rest) / 120 / 29)
    found = estimate_mean(table)
    assert found is not None
    assert found.over == ("seeds", "items")
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert found.interval == pytest.approx(stats.t.interval(0.95, freedom, grand, math.sqrt(variance)))


def test_one_seed_is_a_bootstrap_of_the_studentised_mean() -> None:
    draw = np.random.default_rng(2)
    values = draw.exponential(size=40)
    found = estimate_mean(values[None])
    assert found is not None
    assert found.over == ("items",)
    errors = []
    for _ in range(20_000):
        drawn = draw.choice(values, 40)
        errors.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / math.sqrt(40)))
    error = values.std(ddof=1) / math.sqrt(40)
    low, high = (values.mean() - np.quantile(errors, tail) * error for tail in (0.975, 0.025))
    assert found.interval == pytest.approx((low, high), abs=0.1 * error)
    skew = found.interval[1] - values.mean() > 1.3 * (values.mean() - found.interval[0])
    assert skew, "the interval of skewed values is not symmetric"
    again = estimate_mean(values[None])
    assert again is not None
    assert again.interval == found.interval, "the same values give the same interval"


@pytest.mark.parametrize("swapped", [False, True])
def test_a_single_seed_has_the_variance_of_the_seeds_on_the_other_side(swapped: bool) -> None:
    several = np.random.default_rng(3).normal(0.8, 0.02, 6)
    sides = [np.array([[0.7]]), several[:, None]]
    found = estimate_difference(*(sides[::-1] if swapped else sides), paired=False)
    assert found is not None
    value = (several.mean() - 0.7) * (1 if swapped else -1)
    error = math.sqrt(several.var(ddof=1) * (1 + 1 / 6))
    assert found.interval == pytest.approx(stats.t.interval(0.95, 5, value, error))
    assert found.p_value() == pytest.approx(2 * stats.t.sf(abs(value) / error, 5))


def test_equal_scores_of_all_seeds_vary_by_their_answers() -> None:
    """Each seed answers a different half of the 40 items correctly."""
    draw = np.random.default_rng(4)
    values = np.stack([draw.permutation([1.0, 0.0] * 20) for _ in range(3)])
    found = estimate_mean(values)
    rest = values - values.mean(0) - 0.5 + values.mean()
    error = math.sqrt((rest**2).sum() / (2 * 39) / 120)
    assert found is not None
    assert values.mean(0).var(ddof=1) / 40 < error**2, "a draw whose items vary by the interaction alone"
    assert found.interval == pytest.approx(stats.t.interval(0.95, 2, 0.5, error))


@pytest.mark.parametrize(
    ("first", "second", "paired"),
    [
        ([[0.71], [0.74]], [[0.68], [0.71]], True),
        ([[0.1 + 0.2], [0.3]], [[0.1], [0.1]], False),
        ([[0.1 + 0.2], [0.3], [0.3]], [[0.1]], False),
        ([[1e6 + 1e-9 * number for number in range(40)]], [[0.0] * 40], False),
    ],
)
def test_rounding_errors_are_no_variation(first: list[list[float]], second: list[list[float]], paired: bool) -> None:
    assert estimate_difference(np.array(first), np.array(second), paired=paired) is None
    assert paired or estimate_mean(np.array(first)) is None


def test_small_scores_vary_as_large_ones_do() -> None:
    scores = np.array([[0.71], [0.74], [0.76]])
    large, small = estimate_mean(scores), estimate_mean(scores * 1e-12)
    assert large is not None
    assert small is not None
    assert small.p_value() == pytest.approx(large.p_value())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[0.5]], [[0.4]]),
        ([[1.0, 0.0]], [[1.0, 0.0]]),
        ([[0.5], [0.5]], [[0.4], [0.4]]),
        ([[1.0] + [0.0] * 9], [[0.0] * 10]),
    ],
)
def test_without_variation_nothing_is_estimated(first: list[list[float]], second: list[list[float]]) -> None:
    assert estimate_difference(np.array(first), np.array(second), paired=True) is None


def test_p_values_are_adjusted_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


Compared = tuple[SampleValues, SampleValues]


def coverage(comparisons: Iterable[Compared], truth: float, *, paired: bool = False) -> float:
    """Fraction of simulated comparisons whose interval contains the true difference."""
    covered = []
    for first, second in comparisons:
        found = estimate_difference(first, second, paired=paired)
        assert found is not None
        low, high = found.interval
        covered.append(low <= truth <= high)
    return sum(covered) / len(covered)


@pytest.mark.parametrize("seeds", [3, 6, 12])
def test_intervals_over_seeds_cover_the_truth(seeds: int) -> None:
    draw = np.random.default_rng((seeds, 3))

    def scores(mean: float, spread: float, count: int = seeds) -> SampleValues:
        return mean + draw.normal(0, spread, (COMPARISONS, count, 1))

    common = draw.normal(0, 0.01, (COMPARISONS, seeds, 1))
    both = zip(common + scores(0.80, 0.01), common + scores(0.78, 0.01), strict=True)
    found = {
        "paired": coverage(both, 0.02, paired=True),
        "Welch": coverage(zip(scores(0.80, 0.01), scores(0.78, 0.02), strict=True), 0.02),
        "Welch, equal": coverage(zip(scores(0.80, 0.01), scores(0.78, 0.01), strict=True), 0.02),
        "one against several": coverage(zip(scores(0.80, 0.01, 1), scores(0.78, 0.01), strict=True), 0.02),
    }
    print(f"{seeds} seeds: {found}")
    assert all(0.93 <= value <= 0.97 for value in found.values()), found


@pytest.mark.parametrize("seeds", [3, 6, 12])
@pytest.mark.parametrize(("spread", "strength"), [(0.0, 0.0), (0.01, 0.0), (0.03, 0.0), (0.0, 0.15), (0.03, 0.15)])
def test_intervals_over_seeds_and_items_cover_the_truth(seeds: int, spread: float, strength: float) -> None:
    """Right or wrong answers to 300 drawn items of different difficulty, by students that differ by seed.

    On half of the items, drawn at random, the first method is better than the second by twice the strength; on the
    other half, it is the other way round.
    """
    draw = np.random.default_rng((seeds, round(100 * spread), round(100 * strength)))

    easy = 0.2 + 0.55 * draw.beta(2, 1, (COMPARISONS, 1, 300))
    suited = strength * draw.choice([-1.0, 1.0], (COMPARISONS, 1, 300))
    sides = []
    for gain, own in ((0.05, suited), (0.02, -suited)):
        chances = easy + own + gain + draw.normal(0, spread, (COMPARISONS, seeds, 1))
        sides.append((draw.random((COMPARISONS, seeds, 300), dtype=np.float32) < chances).astype(float))
    first, second = sides
    found = {
        "paired": coverage(zip(first, second, strict=True), 0.03, paired=True),
        "unpaired": coverage(zip(first, second, strict=True), 0.03),
        "one against several": coverage(zip(first[:, :1], second, strict=True), 0.03),
    }
    print(f"{seeds} seeds, standard deviation {spread}, items {strength}: {found}")
    assert all(0.93 <= value <= 0.97 for value in found.values()), found


def test_intervals_over_items_of_one_seed_cover_the_truth() -> None:
    draw = np.random.default_rng(3)
    easy = 0.1 + 0.7 * draw.beta(2, 1, (400, 1, 300))
    sides = [(draw.random((400, 1, 300)) < easy + gain).astype(float) for gain in (0.05, 0.02)]
    found = coverage(zip(*sides, strict=True), 0.03, paired=True)
    print(f"1 seed, 300 items: {found}")
    assert 0.93 <= found <= 0.97
