"""Each schedule against its closed form, over steps, over time and over both; budgets that it cannot follow."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from kdcore_testing import check_scheduler
from pydantic import ValidationError

from kdcore import Progress, RecipeError, Scheduler
from kdcore.recipe.schema import Budget
from kdcore.registry import schedulers

NAMES = schedulers.names()


def make(name: str, **keys: Any) -> Scheduler:
    cls = schedulers.get(name)
    scheduler = cls(cls.Config(**keys))
    assert isinstance(scheduler, Scheduler)
    return scheduler


def by_steps(scheduler: Scheduler, total: int) -> list[float]:
    """The factors of all steps, and the one at the end."""
    return [scheduler.factor(Progress(step, 0.0, total, None)) for step in range(total + 1)]


def by_time(scheduler: Scheduler, hours: list[float], *, of: float, pace: float = 100.0) -> list[float]:
    """The factors after so many hours of `of`, at `pace` steps an hour."""
    start = Progress.start(Budget(hours=of), steps_per_epoch=1)
    return [scheduler.factor(start.at(int(pace * hour), hour * 3600)) for hour in hours]


CURVES: dict[str, tuple[dict[str, Any], list[float]]] = {
    # 10 steps, 4 of them warm-up: rise 1/5, 2/5, 3/5, 4/5, then 6 steps of decay and the end
    "linear": ({}, [0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    "cosine": (
        {"final": 0.2},
        [0.2, 0.4, 0.6, 0.8, *(0.2 + 0.4 * (1 + np.cos(np.pi * np.arange(7) / 6)))],
    ),
    "exponential": (
        {"decay_rate": 0.5, "decay_step": 2},
        [0.04, 0.16, 0.36, 0.64, *(0.5 ** (np.arange(7) / 2))],
    ),
    "warmup_stable_decay": ({"decay": 0.2}, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 0.5, 0]),
}


def test_every_schedule_has_a_curve_here() -> None:
    assert set(CURVES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [{"warmup": 0.4}, {"warmup_steps": 4}], ids=["share", "steps"])
@pytest.mark.parametrize("over", ["budget", "steps"])
def test_the_factor_of_each_step_is_the_closed_form(name: str, warmup: dict[str, Any], over: str) -> None:
    keys, expected = CURVES[name]
    np.testing.assert_allclose(by_steps(make(name, over=over, **warmup, **keys), 10), expected, rtol=1e-12, atol=1e-15)


HOURS = [0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 9.5, 10.0]
CURVES_OVER_TIME: dict[str, tuple[dict[str, Any], list[float]]] = {
    # 10 hours, 2 of them warm-up
    "linear": ({}, [0, 0.5, 1, 0.75, 0.5, 0.25, 0.0625, 0]),
    "cosine": ({}, [0, 0.5, *((1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 0.9375, 1]))) / 2)]),
    # 200, 400, 600, 750 and 800 steps after the warm-up at 100 steps an hour
    "exponential": ({"decay_rate": 0.9, "decay_step": 200}, [0, 0.25, 1, 0.9, 0.81, 0.729, 0.9**3.75, 0.9**4]),
    "warmup_stable_decay": ({"decay": 0.25}, [0, 0.5, 1, 1, 1, 0.8, 0.2, 0]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("over", ["budget", "time"])
def test_the_factor_at_each_hour_is_the_closed_form(name: str, over: str) -> None:
    keys, expected = CURVES_OVER_TIME[name]
    factors = by_time(make(name, over=over, warmup=0.2, **keys), HOURS, of=10.0)
    np.testing.assert_allclose(factors, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
def test_over_time_the_rate_ends_at_0_however_many_steps_there_were(name: str) -> None:
    scheduler = make(name, over="time")
    for step in (3, 10_000):
        assert scheduler.factor(Progress(step, 3600.0, 100_000, 3600.0)) == 0
        assert scheduler.factor(Progress(step, 3599.0, 100_000, 3600.0)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_knows_only_what_it_goes_over(name: str) -> None:
    slow, fast = ([Progress(step, pace * step, 10, 100.0) for step in range(10)] for pace in (0.1, 9.0))
    over_steps, over_time = make(name, over="steps", warmup=0.2), make(name, over="time", warmup=0.2)
    assert [over_steps.factor(at) for at in slow] == [over_steps.factor(at) for at in fast]
    early, late = (Progress(0 if name == "exponential" else step, 50.0, 10, 100.0) for step in (1, 9))
    assert over_time.factor(early) == over_time.factor(late)


def test_over_the_budget_the_limit_that_is_used_most_counts() -> None:
    scheduler = make("linear", warmup=0.0)
    assert scheduler.factor(Progress(1, 60.0, 10, 100.0)) == pytest.approx(0.4)
    assert scheduler.factor(Progress(7, 60.0, 10, 100.0)) == pytest.approx(0.3)


def test_epochs_are_steps() -> None:
    start = Progress.start(Budget(epochs=2), steps_per_epoch=5)
    factors = [make("linear", over="steps", warmup=0.4).factor(start.at(step, 0.0)) for step in range(11)]
    np.testing.assert_allclose(factors, CURVES["linear"][1], atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("over", ["budget", "time"])
def test_a_warm_up_of_steps_under_hours_falls_beside_the_rise(name: str, over: str) -> None:
    """How much of the time 100 steps take is not known; the factor has no leap where they end."""
    keys, _ = CURVES_OVER_TIME[name]
    scheduler, start = make(name, over=over, warmup_steps=100, **keys), Progress.start(Budget(hours=10), 1)
    for step in (0, 49, 99, 100, 150):
        rise = min(1.0, (step + 1) / 101)
        share = step / 1000
        fall = {
            "linear": 1 - share,
            "cosine": (1 + np.cos(np.pi * share)) / 2,
            "exponential": 0.9 ** (max(0, step - 100) / 200),
            "warmup_stable_decay": 1.0,
        }[name]
        expected = (rise**2 if name == "exponential" else rise) * fall
        assert scheduler.factor(start.at(step, share * 36000)) == pytest.approx(expected, rel=1e-12)


def test_exponential_decay_never_rises_at_a_changing_pace() -> None:
    scheduler = make("exponential", over="time", warmup=0.1, decay_step=50)
    paces = np.random.default_rng(1).integers(0, 200, size=90)
    steps = 30 + np.cumsum(paces)
    factors = [scheduler.factor(Progress(int(step), 10.0 + i, None, 100.0)) for i, step in enumerate(steps)]
    assert all(later <= earlier for earlier, later in pairwise(factors))


@pytest.mark.parametrize("name", NAMES)
def test_time_before_an_interruption_counts(name: str) -> None:
    """A session that resumes builds its schedule anew, and gets steps and seconds of the earlier one from the clock."""
    first, second = (make(name, over="time", warmup=0.3) for _ in range(2))
    start = Progress.start(Budget(hours=1), 1)
    undisturbed = [first.factor(start.at(step, 100.0 * step)) for step in range(37)]
    resumed = [second.factor(Progress.start(Budget(hours=1), 1).at(step, 100.0 * step)) for step in range(17, 37)]
    assert resumed == undisturbed[17:]
    assert max(abs(a - b) for a, b in pairwise(undisturbed)) < 0.3, "a leap"


CONFIGS: list[dict[str, Any]] = [
    {},
    {"warmup": 0.0},
    {"over": "steps"},
    {"over": "time"},
    {"warmup_steps": 0},
    {"warmup_steps": 7, "over": "time"},
    {"warmup_steps": 7, "over": "budget"},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_holds_for_every_schedule(name: str, config: dict[str, Any]) -> None:
    check_scheduler(name, config)


def test_conformance_finds_a_schedule_that_refuses_every_budget() -> None:
    class Picky(Scheduler):
        def factor(self, progress: Progress) -> float:
            return 1.0

        def check(self, start: Progress) -> None:
            raise RecipeError("no")

    with pytest.raises(AssertionError, match="`check` rejects budgets"):
        check_scheduler(Picky)


REFUSED = [
    ({"over": "time"}, Budget(steps=10), "over", ["no `hours`", "`training.budget.hours`", "`scheduler.over`"]),
    ({"over": "steps"}, Budget(hours=1), "over", ["neither `steps` nor `epochs`", "`training.budget.steps`"]),
    (
        {"warmup_steps": 10},
        Budget(steps=10),
        "warmup_steps",
        ["`training.budget` (found 10, budget 10)", "less than 10"],
    ),
    ({"warmup_steps": 10}, Budget(epochs=1, hours=1), "warmup_steps", ["(found 10, budget 8)", "less than 8"]),
    ({"warmup_steps": 10, "over": "time"}, Budget(steps=5, hours=1), "warmup_steps", ["(found 10, budget 5)"]),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("keys", "budget", "key", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_budget_that_a_schedule_cannot_follow_is_refused(
    name: str, keys: dict[str, Any], budget: Budget, key: str, words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        make(name, **keys).check(Progress.start(budget, steps_per_epoch=7.5))
    (problem,) = caught.value.problems
    assert problem.key == key
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "budget"),
    [
        ({}, Budget(steps=1)),
        ({"over": "steps"}, Budget(epochs=1, hours=1)),
        ({"over": "time"}, Budget(steps=10, hours=1)),
        ({"warmup_steps": 9}, Budget(steps=10)),
        ({"warmup_steps": 10**6}, Budget(hours=1)),  # the number of steps in an hour is unknown
    ],
)
def test_a_budget_that_a_schedule_can_follow_is_accepted(keys: dict[str, Any], budget: Budget) -> None:
    make("linear", **keys).check(Progress.start(budget, steps_per_epoch=7.5))


def test_warm_up_and_decay_must_fit_beside_each_other() -> None:
    with pytest.raises(ValidationError, match=r"the sum of `warmup` \(0.5\) and `decay` \(0.6\) exceeds 1"):
        make("warmup_stable_decay", warmup=0.5, decay=0.6)
    make("warmup_stable_decay", warmup=0.9, decay=0.1)
    scheduler = make("warmup_stable_decay", warmup_steps=60, decay=0.5)
    scheduler.check(Progress.start(Budget(steps=120), 1))
    with pytest.raises(RecipeError) as caught:
        scheduler.check(Progress.start(Budget(steps=100), 1))
    assert caught.value.problems[0].key == "decay"
    assert "`warmup_steps` (60 of 100 steps) and `decay` (0.5) exceeds the budget" in str(caught.value)
    assert "up to 0.4" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_two_ways_to_state_the_warm_up_are_refused(name: str) -> None:
    words = r"`warmup` \(a fraction\) and `warmup_steps` are mutually exclusive: remove one"
    with pytest.raises(ValidationError, match=words):
        make(name, warmup=0.06, warmup_steps=100)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        make(name, warmup_steps=-1)
