"""A disk that is full when metrics are logged, and a data folder that vanishes while a run trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import kdcore
from kdcore.commands.main import main
from kdcore.progress import Progress
from kdcore.trackers.base import Tracker
from kdcore.trackers.jsonl import JsonLinesTracker
from kdcore.trackers.tensorboard import TensorBoardTracker
from kdcore.training.loop.monitor import Monitor, console
from kdcore.training.run.run import run_events

PROGRESS = Progress(7, 1.0, 10, None)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A run folder whose files are on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    for name in ("metrics.jsonl", "train.log"):
        (tmp_path / name).symlink_to("/dev/full")
    return tmp_path


def test_a_full_disk_is_one_message_with_path_and_step(full: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with console():
        monitor = Monitor(full, [JsonLinesTracker(Tracker.Config(), full)], is_main=True)
        monitor.info("a line of the log")
    with pytest.raises(kdcore.InfrastructureError) as caught:
        monitor.log(PROGRESS, {"train/loss": 1.0})
    monitor.close()
    words = f"{full / 'metrics.jsonl'}: the metrics of step 7 cannot be written: No space left on device"
    assert str(caught.value).startswith(words)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert "Logging error" not in printed.err


def test_a_log_that_could_not_be_written_is_an_error_at_the_end(full: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with console():
        monitor = Monitor(full, [], is_main=True)
        monitor.info("a line of the log")
    with pytest.raises(kdcore.InfrastructureError, match=r"train\.log: .* cannot be written: No space left on device"):
        monitor.close()
    assert "Logging error" not in capfd.readouterr().err


def test_tensorboard_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(tmp_path, [TensorBoardTracker(Tracker.Config(), tmp_path)], is_main=True)
    monitor.log(PROGRESS, {"train/loss": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    before = file.read_bytes()
    (tracker,) = monitor._trackers
    assert isinstance(tracker, TensorBoardTracker)
    assert tracker._writer is not None
    with open("/dev/full", "wb") as disk:
        monkeypatch.setattr(tracker._writer._py_recordio_writer, "_writer", disk)
        with pytest.raises(kdcore.InfrastructureError, match=r"tensorboard: the metrics of step 7 cannot be written"):
            monitor.log(PROGRESS, {"train/loss": 2.0})
        monitor.close()
        with pytest.raises(OSError, match="No space left"):
            disk.close()
    assert file.read_bytes() == before


def test_a_run_ends_with_one_message_when_the_disk_is_full(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "small" / "2"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(JsonLinesTracker, "rewind", lambda tracker, step: None)  # it would replace the link
    assert main(["train", str(small_recipe), "run.id=2"]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {run / 'metrics.jsonl'}: the metrics of step 0 cannot be written: No space")


def test_the_data_folder_may_vanish_while_a_run_trains(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    vanished = False
    for event in run_events(kdcore.load_recipe(small_recipe)):
        if not vanished and event.progress.step == 2:
            shutil.rmtree(tmp_path / "cache")
            vanished = True
    assert vanished
    exported = tmp_path / "runs" / "small" / "1" / "exports" / "final"
    assert AutoTokenizer.from_pretrained(exported).tokenize("the student") == ["the", "student"]
