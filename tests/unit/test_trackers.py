"""Where metrics go, and what a resumed run finds there."""

from __future__ import annotations

import json
from pathlib import Path

from kdcore.progress import Progress
from kdcore.trackers.base import Tracker
from kdcore.trackers.jsonl import JsonLinesTracker, read_metrics
from kdcore.trackers.tensorboard import TensorBoardTracker
from kdcore.training.loop.monitor import Monitor


def test_rows_beyond_the_restored_step_are_dropped_with_a_line_that_was_cut_off(tmp_path: Path) -> None:
    tracker = JsonLinesTracker(Tracker.Config(), tmp_path)
    for step in (1, 2, 3):
        tracker.log(step, {"train/loss": step / 2})
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 4, "trai', encoding="utf-8")
    again = JsonLinesTracker(Tracker.Config(), tmp_path)
    again.rewind(2)
    again.log(3, {"train/loss": 9.0})
    again.close()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": 1.0},
        {"step": 3, "train/loss": 9.0},
    ]


def test_metrics_are_read_without_a_line_that_was_cut_off(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    lines = '{"step": 1, "seconds": 2.5}\n[1]\n{"seconds": 3.0}\n{"step": 2, "sec'
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    assert read_metrics(tmp_path) == [{"step": 1, "seconds": 2.5}]


def test_a_run_that_died_before_its_first_checkpoint_holds_no_row_twice(tmp_path: Path) -> None:
    for _ in range(2):
        monitor = Monitor(tmp_path, [JsonLinesTracker(Tracker.Config(), tmp_path)], is_main=True)
        before_the_first_step = Progress(0, 0.0, 10, None)
        monitor.start(before_the_first_step)
        monitor.log(before_the_first_step, {"held_out/loss": 1.0})
        monitor.close()
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_tensorboard_files_hold_what_was_logged(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(Tracker.Config(), tmp_path)
    tracker.log(5, {"train/loss": 0.25})
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes()
