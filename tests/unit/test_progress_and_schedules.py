"""Budget, order of samples, learning rate."""

from __future__ import annotations

import numpy as np
import pytest

from kdcore import Progress
from kdcore.schedulers.linear import Linear
from kdcore.training.loop.monitor import time_left
from kdcore.training.loop.sampling import SampleOrder


def test_the_budget_is_used_up_by_whichever_limit_comes_first() -> None:
    assert Progress(5, 90.0, 10, 100.0).fraction == 0.9
    assert not Progress(9, 99.9, 10, 100.0).finished
    assert Progress(10, 0.0, 10, 100.0).finished
    assert Progress(0, 100.0, None, 100.0).finished


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero() -> None:
    scheduler = Linear(Linear.Config(warmup=0.2))
    factors = [scheduler.factor(Progress(step, 0.0, 10, None)) for step in range(11)]
    expected = [1 / 3, 2 / 3, *((10 - step) / 8 for step in range(2, 11))]
    np.testing.assert_allclose(factors, expected, atol=1e-12)


def test_the_rate_follows_time_where_time_is_the_budget() -> None:
    scheduler = Linear(Linear.Config(warmup=0.1))
    factors = [scheduler.factor(Progress(0, seconds, None, 100.0)) for seconds in (5.0, 10.0, 55.0, 100.0)]
    np.testing.assert_allclose(factors, [0.5, 1.0, 0.5, 0.0], atol=1e-12)


def test_each_epoch_is_a_new_permutation_that_depends_on_the_seed_alone() -> None:
    samples, epochs = SampleOrder(7, seed=1).take(0, 21)
    assert epochs.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    for epoch in range(3):
        assert sorted(samples[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert samples[:7].tolist() != samples[7:14].tolist()
    later, _ = SampleOrder(7, seed=1).take(5, 9)
    assert later.tolist() == samples[5:14].tolist()
    other, _ = SampleOrder(7, seed=2).take(0, 21)
    assert other.tolist() != samples.tolist()


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(1, 10.0, 4, None), "0:00:30"),
        (Progress(1, 3600.0, 3, None), "2:00:00"),
        (Progress(0, 0.0, 3, None), "?"),
    ],
)
def test_time_left_is_what_the_speed_so_far_promises(progress: Progress, text: str) -> None:
    assert time_left(progress) == text
