"""How the health of a run is judged, with a fake engine."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from kdcore.errors import TrainingError
from kdcore.recipe.schema import RecipeSettings
from kdcore.training.engine.engine import LossScale
from kdcore.training.engine.module import Term
from kdcore.training.loop.divergence import DivergenceMonitor
from kdcore.training.runtime.distributed import DistributedContext

SETTINGS = {
    "run": {"name": "r"},
    "student": {},
    "task": {},
    "losses": {"a": {}},
    "training": {"budget": {"steps": 10}, "batch_size": 6, "micro_batch_size": 2},
    "logging": {"every": 10},
    "early_stopping": {"max_steps_at_min_loss_scale": 3},
}
A, B = Term("a", "a"), Term("b", "part")


class Engine:
    def __init__(self):
        self.skipped = self.scale_is_exhausted = False
        self.grad_norm = None
        self.loss_scale = None
        self.largest = 1.0

    def largest_weight(self):
        return self.largest


class Batches:
    def samples(self, step, rank):
        first = 100 * step
        return [(np.arange(first + 2 * part, first + 2 * part + 2), np.zeros(2)) for part in range(3)]


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def health(engine):
    processes = DistributedContext(0, 1, torch.device("cpu"), None)
    return DivergenceMonitor(RecipeSettings.model_validate(SETTINGS), engine, Batches(), processes)


def step(health, number, values=None):
    """One step of three micro-batches; `values` are losses by micro-batch and term."""
    for part in range(3):
        sums = {term: (values or {}).get((part, term), 1.0) for term in (A, B)}
        health.micro_batch(number, part, {term: torch.tensor(value) for term, value in sums.items()})
    return health.updated(number)


def test_the_first_of_all_that_is_not_finite_is_named(health):
    step(health, 0)
    step(health, 1, {(2, B): math.inf})
    step(health, 2, {(0, A): math.nan})
    with pytest.raises(TrainingError) as caught:
        health.check(3, {"loss": math.nan, "a": 1.0})
    assert (
        "at step 3 these values are not finite: loss; first seen in step 2 in b/part, among the samples 104, 105. "
        in str(caught.value)
    )
    assert "`kdcore debug batch runs/r/1 2`" in str(caught.value)


def test_all_terms_of_the_micro_batch_are_named(health):
    step(health, 0, {(1, A): math.nan, (1, B): -math.inf})
    with pytest.raises(TrainingError, match="in a, b/part, among the samples 2, 3"):
        health.check(1, {"loss": math.nan})


def test_gradients_come_after_the_losses_of_their_step_and_before_those_of_the_next(health, engine):
    engine.grad_norm = torch.tensor(math.nan)
    step(health, 4)
    engine.grad_norm = torch.tensor(1.0)
    step(health, 5, {(0, A): math.nan})
    with pytest.raises(TrainingError, match="first seen in step 5 in the gradients, while its losses were finite"):
        health.check(6, {"loss": math.nan})


def test_a_loss_comes_before_the_gradients_that_it_ruins(health, engine):
    engine.grad_norm = torch.tensor(math.inf)
    step(health, 4, {(2, A): math.inf})
    with pytest.raises(TrainingError, match="first seen in step 5 in a, among the samples 404, 405"):
        health.check(5, {"loss": math.inf})


def test_finite_values_are_let_pass(health, engine):
    step(health, 0)
    health.check(1, {"loss": 1e30})
    health.check_weights(1)
    engine.largest = math.inf
    with pytest.raises(TrainingError, match="at step 1 these values are not finite: the weights"):
        health.check_weights(1)


def test_a_skipped_step_is_an_error_where_there_is_no_loss_scale(health, engine):
    assert step(health, 0)
    engine.skipped = True
    with pytest.raises(TrainingError, match="at step 2 the gradients are not finite, but all losses are"):
        step(health, 1)


def test_what_a_skipped_step_had_is_told_once_between_two_rows_and_forgotten(health, engine, caplog):
    engine.loss_scale = LossScale(8, 1)
    engine.skipped = True
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        assert not step(health, 1, {(0, A): math.inf})
        assert not step(health, 2, {(0, A): math.inf})
        assert not step(health, 3), "gradients alone are what a loss scale is found by"
        assert not step(health, 11, {(0, A): math.inf})
    messages = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert messages == [
        f"warning: step {n} was skipped: its gradients overflowed; first seen in step {n} in a" for n in (2, 12)
    ]
    engine.skipped = False
    assert step(health, 12)
    health.check(13, {"loss": 1.0})


def test_a_scale_that_cannot_be_lowered_is_an_error(health, engine):
    engine.loss_scale, engine.skipped, engine.scale_is_exhausted = LossScale(1, 1), True, True
    with pytest.raises(TrainingError, match=r"at step 4 the loss scale is at its minimum \(1\) and .* train in bf16"):
        step(health, 3)


def test_steps_at_the_minimum_count_in_a_row_and_over_a_resume(health, engine):
    for number, now in enumerate([1, 1, 2, 1, 1]):
        engine.loss_scale = LossScale(now, 1)
        step(health, number)
    resumed = DivergenceMonitor(RecipeSettings.model_validate(SETTINGS), engine, Batches(), health._processes)
    resumed.restore(health.state())
    with pytest.raises(TrainingError, match="at step 6 the loss scale has been at its minimum for 3 steps"):
        step(resumed, 5)


def spikes(health, losses, caplog):
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        for number, loss in enumerate(losses, start=1):
            health.logged(number, {Term("a", "a"): loss}, {"a": 1.0})
    return [record.getMessage() for record in caplog.records]


def test_a_leap_of_the_loss_is_told_with_what_it_was_before(health, caplog):
    usual = np.random.default_rng(0).normal(2.0, 0.1, size=120)
    (messages,) = spikes(health, [*usual, 2.9, *usual[:20]], caplog)
    before = usual[-100:]
    assert messages == (
        f"warning: step 121: loss spike: 2.9 (mean {before.mean():.5g}, standard deviation {before.std():.2g} "
        "over the last 100 rows of metrics)"
    )


def test_a_leap_counts_over_a_resume(health, caplog):
    usual = list(np.random.default_rng(0).normal(2.0, 0.1, size=30))
    assert spikes(health, usual, caplog) == []
    resumed = DivergenceMonitor(RecipeSettings.model_validate(SETTINGS), health.engine, Batches(), health._processes)
    assert spikes(resumed, [2.9], caplog) == [], "one without earlier values gives no warning"
    resumed.restore(health.state())
    assert len(spikes(resumed, [2.9], caplog)) == 1


def test_a_loss_that_starts_or_changes_its_weight_by_schedule_is_no_spike(health, caplog):
    """Its weighted sum rises tenfold; a term that rises by itself is still found."""
    draw = np.random.default_rng(0).normal(2.0, 0.1, size=(200, 2))
    first, second = Term("a", "a"), Term("b", "b")
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        for number, (one, other) in enumerate(draw, start=1):
            weights = {"a": 1.0 if number < 150 else 30.0} | ({"b": 10.0} if number > 50 else {})
            averages = {first: one} | ({second: other} if number > 50 else {})
            health.logged(number, averages, weights)
        assert caplog.messages == []
        health.logged(201, {first: 2.9, second: 2.0}, {"a": 30.0, "b": 10.0})
    (message,) = caplog.messages
    assert message.startswith(f"warning: step 201: loss spike: 107 (mean {(draw[100:] @ [30, 10]).mean():.5g}, ")


def test_the_losses_of_another_stage_are_not_compared(health, engine, caplog):
    assert spikes(health, list(np.random.default_rng(0).normal(2.0, 0.1, size=30)), caplog) == []
    health.change_engine(engine)
    assert spikes(health, [9.0, 9.1], caplog) == []


@pytest.mark.parametrize(
    "losses",
    [
        list(np.linspace(9, 2, 200)),
        [5.0] * 50 + [5.0001],
        list(np.random.default_rng(1).normal(2.0, 0.1, size=400)),
        [2.0, 2.1] * 9 + [9.0],
    ],
    ids=["falling", "constant", "noise", "too few to judge"],
)
def test_what_is_no_leap_is_not_told(health, caplog, losses):
    messages = spikes(health, losses, caplog)
    assert messages == []
