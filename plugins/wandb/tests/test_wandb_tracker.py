"""The tracker `wandb` with the real wandb, offline."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import wandb
from kdcore_wandb.tracker import WandbTracker
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

import kdcore


@pytest.fixture(autouse=True)
def _no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def tracker(folder: Path, mode: Any = "offline") -> WandbTracker:
    folder.mkdir(parents=True, exist_ok=True)
    return WandbTracker(WandbTracker.Config(project="distillation", mode=mode), folder)


def sessions(folder: Path) -> list[list[dict[str, Any]]]:
    """Return the data stored by wandb: the run of each session, followed by its rows."""
    wandb.teardown()  # waits until all is written
    found = []
    for file in sorted(folder.glob("wandb/*-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(file))
        rows: list[dict[str, Any]] = []
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                run = record.run
                rows.append({"id": run.run_id, "project": run.project, "name": run.display_name, "config": config})
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                rows.append({key: value for key, value in items.items() if key == "_step" or key[0] != "_"})
        found.append(rows)
    return found


def next_second(folder: Path) -> None:
    """Rename the folders of sessions, because wandb names them by the second of their start."""
    wandb.teardown()
    for number, session in enumerate(sorted(folder.glob("wandb/offline-run-*"))):
        session.rename(session.with_name(f"earlier-run-{number}"))


def rows_of(session: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in session if "_step" in row]


def test_what_is_logged_is_in_wandbs_own_file_by_step(tmp_path: Path) -> None:
    one = tracker(tmp_path / "name" / "1")
    one.rewind(0)
    one.log(10, {"train/loss": 0.5, "train/lr": 0.1})
    one.log(10, {"held_out/loss": 0.75})
    one.log(20, {"train/loss": 0.25})
    one.close()
    (session,) = sessions(tmp_path / "name" / "1")
    run = session[0]
    assert (run["project"], run["name"]) == ("distillation", "name/1")
    assert rows_of(session) == [
        {"_step": 10, "train/loss": 0.5, "train/lr": 0.1, "held_out/loss": 0.75},
        {"_step": 20, "train/loss": 0.25},
    ]


def test_a_restart_is_the_same_run_and_no_step_is_there_twice(tmp_path: Path) -> None:
    folder = tmp_path / "name" / "1"
    first = tracker(folder)
    for step in (1, 2, 3, 4):
        first.log(step, {"train/loss": float(step)})
    first.close()
    next_second(folder)
    second = tracker(folder)
    second.rewind(2)  # the checkpoint that it resumes from
    for step in (3, 4, 5, 6):
        second.log(step, {"train/loss": float(step)})
    second.log(6, {"held_out/loss": 0.5})
    second.close()
    before, after = sessions(folder)
    assert before[0]["id"] == after[0]["id"]
    assert [row["_step"] for row in rows_of(before)] == [1, 2, 3, 4]
    assert rows_of(after) == [
        {"_step": 5, "train/loss": 5.0},
        {"_step": 6, "train/loss": 6.0, "held_out/loss": 0.5},
    ]


def test_two_run_folders_are_two_runs(tmp_path: Path) -> None:
    ids = set()
    for name in ("1", "2"):
        one = tracker(tmp_path / "name" / name, mode="disabled")
        one.log(1, {"train/loss": 1.0})
        one.close()
        ids.add(json.loads((tmp_path / "name" / name / "wandb" / "run.json").read_text(encoding="utf-8"))["id"])
    assert len(ids) == 2


def test_online_without_a_key_is_an_error_and_asks_nothing(tmp_path: Path) -> None:
    with pytest.raises(kdcore.InputError, match="no API key") as caught:
        tracker(tmp_path / "run", mode="online")
    assert "wandb login" in str(caught.value)
    assert "mode: offline" in str(caught.value)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_mode_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    one = tracker(tmp_path / "run", mode=None)
    one.log(1, {"train/loss": 1.0})
    one.close()
    assert sessions(tmp_path / "run") == []


def test_a_damaged_file_of_an_earlier_session_is_named(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run.json").write_text('{"id": ', encoding="utf-8")
    with pytest.raises(kdcore.InputError, match=r"run\.json.*\n.*Remove it"):
        tracker(tmp_path)


def test_training_goes_on_when_wandb_fails_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = tracker(tmp_path / "run", mode="disabled")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(one._run, "log", fail)
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        one.log(1, {"train/loss": 1.0})
        one.log(2, {"train/loss": 1.0})
        one.close()
    (message,) = [record.message for record in caplog.records if record.name == "kdcore"]
    assert "ConnectionResetError: Connection lost" in message


def test_the_recipe_is_the_runs_config(tmp_path: Path) -> None:
    folder = tmp_path / "name" / "1"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        "{run: {name: name}, student: {}, task: {name: masked_lm}, losses: {masked_lm: {}}, optimizer: {lr: 1e-6}, "
        "training: {budget: {steps: 1}, batch_size: 8}}",
        encoding="utf-8",
    )
    one = tracker(folder)
    one.close()
    (session,) = sessions(folder)
    assert session[0]["config"]["optimizer"]["lr"] == 1e-6
    assert session[0]["config"]["training"]["batch_size"] == 8
