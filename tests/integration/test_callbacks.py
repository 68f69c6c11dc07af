"""Callbacks in recipes, and the events that scripts consume themselves."""

from __future__ import annotations

import errno
import logging
import random
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kdcore
from kdcore.commands.main import main
from kdcore.registry import callbacks
from kdcore.training.checkpoint import format as checkpoint_format

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


class Drawer(kdcore.Callback):
    """Draws and seeds random numbers, and notes whether checkpoints are complete."""

    def __init__(self, config: kdcore.ComponentConfig, run_folder: Path) -> None:
        super().__init__(config, run_folder)
        torch.manual_seed(1)

    def on_step(self, event: kdcore.StepEvent) -> None:
        SEEN.append(draw())

    def on_checkpoint(self, event: kdcore.CheckpointEvent) -> None:
        SEEN.append(f"complete: {event.path in kdcore.open_run(self.run_folder).checkpoints()}")


class Refuser(kdcore.Callback):
    """Refuses its configuration."""

    def __init__(self, config: kdcore.ComponentConfig, run_folder: Path) -> None:
        raise kdcore.InputError("the hour must be 0 to 23 (found 25)", key="callbacks.0.hour")


def draw() -> str:
    return f"{random.random()} {np.random.random()} {torch.rand(1).item()}"


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
    kdcore.register_callback("drawer")(Drawer)
    kdcore.register_callback("refuser")(Refuser)
    yield
    for name in ("watcher", "other", "drawer", "refuser"):
        callbacks._registered.pop(name)


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


DROPOUT = {"student.config": {"hidden_dropout_prob": 0.3}, "training.budget.steps": 4, "checkpoints.every": 2}


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(f"runs/small/{name}/exports/final/model.safetensors")


def test_random_draws_of_a_script_and_a_callback_leave_the_run_unchanged(small_recipe: Path) -> None:
    drawn = []
    for _ in kdcore.steps(small_recipe, {**DROPOUT, "callbacks": ["drawer"]}):
        drawn.append(draw())
        if len(drawn) == 4:
            torch.manual_seed(1)
    assert len(set(drawn)) == len(drawn)  # a stream of its own, not the same numbers in each step
    assert SEEN.count("complete: True") == 2
    assert len(set(SEEN)) == 5
    kdcore.train(small_recipe, {**DROPOUT, "run.id": "plain"})
    one, other = weights("1"), weights("plain")
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    kdcore.train(small_recipe, {**DROPOUT, "run.id": "undropped", "student.config": {"hidden_dropout_prob": 0.0}})
    assert not all(torch.equal(one[name], tensor) for name, tensor in weights("undropped").items())


def test_a_checkpoint_is_shown_when_it_is_complete_and_never_if_it_fails(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, shown = checkpoint_format.commit, threading.Event()

    def late(*arguments: object) -> None:
        assert not shown.wait(0.5)
        commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_format, "commit", late)
    settings = {"training.budget.steps": 1, "validation": None, "task.data.held_out": 0}
    for event in kdcore.steps(small_recipe, settings):
        if isinstance(event, kdcore.CheckpointEvent):
            shown.set()
            assert kdcore.open_run("runs/small/1").checkpoints() == [event.path]
    assert shown.is_set()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_format, "commit", full)
    with pytest.raises(kdcore.InfrastructureError, match="No space left"):
        kdcore.train(small_recipe, {**settings, "run.id": "full", "callbacks": ["watcher"]})
    assert not [text for text in SEEN if text.startswith("checkpoint")]


def test_signals_belong_to_the_script_between_events_and_another_thread_can_close_the_run(
    small_recipe: Path, request: pytest.FixtureRequest
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    # A shell starts background commands with SIGINT ignored.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in numbers]
    events = kdcore.steps(small_recipe, {"callbacks": ["watcher"], "checkpoints.every": 2})
    while (event := next(events)).progress.step < 3:
        assert [signal.getsignal(number) for number in numbers] == before
    assert isinstance(event, kdcore.StepEvent)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    closing = threading.Thread(target=events.close)
    closing.start()
    closing.join()
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("kdcore-")]
    assert [path.name for path in kdcore.open_run("runs/small/1").checkpoints()] == ["step-0000002"]
    assert kdcore.train(small_recipe).held_out == kdcore.train(small_recipe, {"run.id": "whole"}).held_out


def test_a_callback_refuses_its_configuration_before_the_run_has_a_folder(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(small_recipe), "callbacks=[refuser]"]) == 2
    assert "callbacks.0.hour: the hour must be 0 to 23 (found 25)" in capsys.readouterr().err
    assert not Path("runs").exists()
