"""When validation, checkpoints and exports are due."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from kdcore import Progress
from kdcore.recipe.schema import Budget, CheckpointSettings, RecipeSettings, ValidationSettings
from kdcore.training.loop.triggers import Patience, Triggers

Due = Callable[[Progress, Progress], object]


def occasions(
    validation: dict[str, object] | None = None,
    checkpoints: dict[str, object] | None = None,
    steps_per_epoch: float = 10,
) -> Triggers:
    return Triggers(
        ValidationSettings.model_validate(validation or {}),
        CheckpointSettings.model_validate(checkpoints or {}),
        steps_per_epoch,
    )


def moments(budget: Budget, steps: int, seconds_a_step: float = 1.0, steps_per_epoch: float = 10) -> list[Progress]:
    start = Progress.start(budget, steps_per_epoch)
    return [start.at(step, step * seconds_a_step) for step in range(steps + 1)]


def steps_when(due: Due, walk: list[Progress]) -> list[int]:
    return [now.step for before, now in pairwise(walk) if due(before, now)]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (4, [4, 8, 12, 16, 20]),
        ({"steps": 7}, [7, 14]),
        ({"epochs": 1}, [10, 20]),
        ({"epochs": 0.25}, [3, 5, 8, 10, 13, 15, 18, 20]),  # 2.5 steps each: the step that ends it
        ({"minutes": 0.1}, [6, 12, 18]),
    ],
)
def test_an_interval_counts_steps_epochs_or_minutes(every: object, expected: list[int]) -> None:
    walk = moments(Budget(steps=20), 20)
    assert steps_when(occasions(checkpoints={"every": every}).checkpoint, walk) == expected
    assert steps_when(occasions({"every": every}).validation, walk) == expected


def test_epochs_that_are_no_whole_number_of_steps_are_not_missed() -> None:
    steps_per_epoch = 1 / 3 * 10  # 3.33 steps; the third epoch ends exactly with step 10
    walk = moments(Budget(steps=10), 10, steps_per_epoch=steps_per_epoch)
    due = occasions(checkpoints={"every": {"epochs": 1}}, steps_per_epoch=steps_per_epoch)
    assert steps_when(due.checkpoint, walk) == [4, 7, 10]


def test_begin_and_end_of_the_budget_have_their_own_pace() -> None:
    settings = {"every": 25, "begin": {"share": 0.1, "every": 5}, "end": {"share": 0.1, "every": 2}}
    walk = moments(Budget(steps=100), 100)
    assert steps_when(occasions(settings).validation, walk) == [5, 10, 25, 50, 75, 92, 94, 96, 98, 100]


def test_never_is_never() -> None:
    assert not steps_when(occasions({"every": "never"}).validation, moments(Budget(steps=1000), 1000))


def test_markers_come_once_each_and_in_one_step_if_a_step_is_long() -> None:
    shares = [0.1, 0.2, 0.3, 0.55, 0.9]
    by_steps = [
        occasions(checkpoints={"export_at": shares}).exports(before, now)
        for before, now in pairwise(moments(Budget(steps=4), 4))
    ]
    assert by_steps == [[0.1, 0.2], [0.3], [0.55], [0.9]]
    # 70 of 100 seconds a step: the second one ends beyond the budget, and what it leapt over is due all the same.
    by_time = [
        occasions(checkpoints={"export_at": shares}).exports(before, now)
        for before, now in pairwise(moments(Budget(hours=100 / 3600), 2, seconds_a_step=70))
    ]
    assert by_time == [[0.1, 0.2, 0.3, 0.55], [0.9]]


def test_a_restart_at_any_step_neither_repeats_nor_drops_anything() -> None:
    due = occasions({"every": {"minutes": 0.05}}, {"every": {"epochs": 0.35}, "export_at": [0.2, 0.25, 0.7]})
    walk = moments(Budget(steps=40, hours=60 / 3600), 40, seconds_a_step=1.3)
    whole = [
        (now.step, due.validation(before, now), due.checkpoint(before, now), due.exports(before, now))
        for before, now in pairwise(walk)
    ]
    for stop in range(1, 40):
        # A restarted run knows the step and the clock as they were agreed on; time in between has gone on by itself.
        resumed = [walk[stop], *walk[stop + 1 :]]
        again = [
            (now.step, due.validation(before, now), due.checkpoint(before, now), due.exports(before, now))
            for before, now in pairwise(resumed)
        ]
        assert whole[:stop] + again == whole


@pytest.mark.parametrize(
    ("budget", "moment", "finished", "fraction"),
    [
        (Budget(epochs=2), (19, 0.0), False, 0.95),
        (Budget(epochs=2), (20, 0.0), True, 1.0),
        (Budget(epochs=0.01), (1, 0.0), True, 1.0),  # at least one step
        (Budget(steps=50, epochs=2), (20, 0.0), True, 1.0),
        (Budget(steps=10, epochs=2), (10, 0.0), True, 1.0),
        (Budget(steps=100, hours=1), (10, 1800.0), False, 0.5),
        (Budget(steps=100, exit_after_hours=1), (10, 3599.0), False, 0.1),
        (Budget(steps=100, exit_after_hours=1), (10, 3600.0), True, 0.1),
        (Budget(hours=2, exit_after_hours=1), (10, 3600.0), True, 0.5),
    ],
)
def test_whichever_limit_comes_first_ends_the_run(
    budget: Budget, moment: tuple[int, float], finished: bool, fraction: float
) -> None:
    progress = Progress.start(budget, steps_per_epoch=10).at(*moment)
    assert progress.finished is finished
    assert progress.fraction == pytest.approx(fraction)


def make_patience(**settings: Any) -> Patience:
    content = {"run": {"name": "r"}, "student": {}, "task": {}, "losses": {"mse": {}}}
    content["training"] = {"budget": {"steps": 10}, "batch_size": 6}
    content["early_stopping"] = {"patience": 3, **settings}
    return Patience(RecipeSettings.model_validate(content))


def waited_after(values: list[dict[str, float]], **settings: Any) -> list[int]:
    watching, waited = make_patience(**settings), []
    for one in values:
        watching.add(one)
        waited.append(watching.waited)
    return waited


def test_patience_counts_validations_since_the_best_value() -> None:
    losses = [{"loss": value} for value in (3.0, 2.0, 2.0, 2.5, 1.0)]
    assert waited_after(losses) == [0, 0, 1, 2, 0]
    assert waited_after(losses, mode="max") == [0, 1, 2, 3, 4]
    scores = [{"loss": 1.0, "f1": value} for value in (0.3, 0.5, 0.4)]
    assert waited_after(scores, metric="f1") == [0, 0, 1], "higher scores are better"
    assert waited_after(scores, metric="f1", mode="min") == [0, 1, 2]
    terms = [{"loss": 1.0, "mse/second": 2.0}, {"loss": 1.0}, {"loss": 1.0, "mse/second": 2.0}]
    assert waited_after(terms, metric="mse/second") == [0, 0, 1], "the loss was not active at the second validation"


def test_patience_continues_from_a_checkpoint_of_the_same_metric() -> None:
    watching = make_patience(metric="mse")
    watching.restore({"loss": 0.5}, 2)
    assert (watching.best, watching.waited) == ({}, 0)
    watching.restore({"mse": 0.5}, 2)
    watching.add({"mse": 0.5})
    assert watching.used_up
    assert str(watching) == "mse has not improved on 0.5 for 3 validations (early_stopping.patience)"
