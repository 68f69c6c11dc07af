"""Callbacks in recipes, and the events that scripts consume themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdcore
from kdcore.registry import callbacks

SEEN: list[str] = []


class Watcher(kdcore.Callback):
    """Notes every event, and stops or fails at a step."""

    class Config(kdcore.ComponentConfig):
        stop_at: int | None = None
        fail_at: int | None = None

    config: Config

    def __init__(self, config: Config, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        self.step = 0

    def on_step(self, event: kdcore.StepEvent) -> None:
        self.step = event.progress.step
        SEEN.append(f"step {self.step}")
        if self.step == self.config.fail_at:
            raise ValueError("my mistake")

    def on_validation(self, event: kdcore.ValidationEvent) -> None:
        SEEN.append(f"validation {event.progress.step}, {'loss' in event.values}")

    def on_checkpoint(self, event: kdcore.CheckpointEvent) -> None:
        SEEN.append(f"checkpoint {event.path.name}")

    def on_export(self, event: kdcore.ExportEvent) -> None:
        assert (event.path / "config.json").is_file()
        SEEN.append(f"export {event.path.name}")

    def should_stop(self) -> bool:
        return self.step == self.config.stop_at


OTHERS: list[str] = []


class Other(kdcore.Callback):
    """Notes steps and checkpoints."""

    def on_step(self, event: kdcore.StepEvent) -> None:
        OTHERS.append(f"step {event.progress.step}")

    def on_checkpoint(self, event: kdcore.CheckpointEvent) -> None:
        OTHERS.append(f"checkpoint {event.path.name}")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    SEEN.clear()
    OTHERS.clear()
    kdcore.register_callback("watcher")(Watcher)
    kdcore.register_callback("other")(Other)
    yield
    callbacks._registered.pop("watcher")
    callbacks._registered.pop("other")


def test_a_callback_sees_the_events_and_a_script_the_same(small_recipe: Path) -> None:
    logger = logging.getLogger("kdcore")
    before = (logger.level, logger.propagate, list(logger.handlers))
    events = list(kdcore.steps(small_recipe, {"training.budget.steps": 2, "callbacks": ["watcher"]}))
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert SEEN == [
        "validation 0, True",
        "export initial",
        "step 1",
        "step 2",
        "validation 2, True",
        "checkpoint step-0000002",
        "export final",
    ]
    names = [type(event).__name__ for event in events]
    assert names[0] == "StartEvent"
    assert names[-1] == "FinishedEvent"
    assert names[3:5] == ["StepEvent", "StepEvent"]


def test_a_callback_stops_a_run_which_then_continues_bit_for_bit(small_recipe: Path) -> None:
    stopping = {"callbacks": [{"name": "watcher", "stop_at": 2}]}
    stopped = kdcore.train(small_recipe, stopping)
    assert (stopped.finished, stopped.exit_code) == (False, 130)
    assert SEEN[-1] == "checkpoint step-0000002"
    assert not (stopped.folder / "exports" / "final").exists()
    resumed = kdcore.train(small_recipe)
    whole = kdcore.train(small_recipe, {"run.id": "whole"})
    assert resumed.finished
    assert resumed.held_out == whole.held_out


def test_a_callback_that_raises_is_named_and_the_run_resumes_after_its_step(small_recipe: Path) -> None:
    with pytest.raises(
        kdcore.PluginError, match=r"callback `watcher` of .*test_callbacks.*ValueError: my mistake"
    ) as error:
        kdcore.train(small_recipe, {"callbacks": [{"name": "watcher", "fail_at": 3}, "other"]})
    assert error.value.problems[0].key == "callbacks.0"
    assert SEEN[-1] == "step 3"  # it is not called again
    assert OTHERS[-2:] == ["step 3", "checkpoint step-0000003"]  # the other one is
    run = kdcore.open_run("runs/small/1")
    assert [path.name for path in run.checkpoints()] == ["step-0000003"]
    resumed = kdcore.train(small_recipe)
    assert resumed.finished
    assert resumed.held_out == kdcore.train(small_recipe, {"run.id": "whole"}).held_out


def test_a_callback_that_is_not_installed_and_one_with_a_wrong_key_are_reported(small_recipe: Path) -> None:
    with pytest.raises(kdcore.InputError, match=r"(?s)unknown callback `wacher`.*Did you mean `watcher`"):
        kdcore.train(small_recipe, {"callbacks": ["wacher"]})
    with pytest.raises(kdcore.InputError, match=r"callbacks\.0\.stop"):
        kdcore.train(small_recipe, {"callbacks": [{"name": "watcher", "stop": 3}]})
    assert not Path("runs").exists()
