"""Damaged JSON files: bad rows are skipped with one warning, bad objects are named by file and key."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from kdcore import DataError, read_environment, read_metrics
from kdcore.commands.main import main
from kdcore.trackers.base import Tracker
from kdcore.trackers.jsonl import JsonLinesTracker
from kdcore.utils.stored import StoredText, read_json_object, read_json_rows

GOOD = '{"step": 1, "train/loss": 2.5, "seconds": 0.5}'
BAD_ROWS = {
    "a row without a step": ('{"stfp": 1, "train/loss": 1.4}', "step: is missing"),
    "a step that is text": (
        '{"step": "x", "train/loss": 1}',
        "step: has the wrong type (found 'x', expected an integer",
    ),
    "a step below zero": ('{"step": -1}', "step: has the wrong type (found -1, expected "),
    "a step that is true": ('{"step": true}', "step: has the wrong type (found True, expected an integer"),
    "a huge step": ('{"step": 1' + "0" * 30 + "}", "step: has the wrong type"),
    "a loss that is a list": (
        '{"step": 2, "train/loss": [1]}',
        "train/loss: has the wrong type (found [1], expected a number",
    ),
    "a loss that is text": ('{"step": 2, "held_out/loss": "1"}', "held_out/loss: has the wrong type"),
    "a loss that is null": ('{"step": 2, "train/loss": null}', "train/loss: has the wrong type"),
    "a huge integer": ('{"step": 2, "train/loss": 1' + "0" * 400 + "}", "train/loss: has the wrong type"),
    "an integer of 5,000 digits": ('{"step": 2, "train/loss": ' + "9" * 5000 + "}", "is not valid JSON"),
    "a list": ("[1]", "has the wrong type (found [1], expected a map"),
    "a torn row": ('{"step": 2, "trai', "is not valid JSON"),
    "deep nesting": ('{"step": ' + "[" * 5000, "is not valid JSON"),
    "bytes": ("\0\0\0", "is not valid JSON"),
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_damaged_row_is_skipped_with_a_warning_that_names_file_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str
) -> None:
    text, words = BAD_ROWS[row]
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{GOOD}\n{text}\n{GOOD}\n{text}\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        assert read_metrics(tmp_path) == [json.loads(GOOD)] * 2
    (message,) = caplog.messages
    assert message.startswith(f"{path}:2: skipped a damaged row, and 1 more of its rows ({words}")
    assert len(message) < 500


def test_not_finite_losses_are_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": NaN, "train/x": Infinity}\n', encoding="utf-8")
    (row,) = read_metrics(tmp_path)
    assert repr(row) == "{'step': 1, 'train/loss': nan, 'train/x': inf}"


def test_lines_are_counted_from_the_start_of_a_file_of_which_only_the_end_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [GOOD] * 1000 + ["damaged"] + [GOOD] * 3
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = read_metrics(tmp_path, last_bytes=3 * len(GOOD) + 30)
    assert rows == [json.loads(GOOD)] * 3
    assert [message.split(": ")[0] for message in caplog.messages] == [f"{path}:1001"]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_not_a_file_does_not_block_reading(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert read_metrics(tmp_path) == []
    assert caplog.messages[0].startswith(f"{path}: left out, because it cannot be read: ")


def test_a_resumed_run_keeps_the_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{GOOD}\n{{"stfp": 2}}\n{{"step": "x"}}\n{GOOD}\n{{"step": 3}}\n{{"step": 1, "t', encoding="utf-8")
    tracker = JsonLinesTracker(Tracker.Config(), tmp_path)
    tracker.rewind(2)
    tracker.close()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [json.loads(GOOD)] * 2


def test_metrics_that_cannot_be_read_are_not_replaced_when_a_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + "\n", encoding="utf-8")
    tracker = JsonLinesTracker(Tracker.Config(), tmp_path)

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("kdcore.utils.stored.open_regular", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        tracker.rewind(2)
    assert caught.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == GOOD + "\n"


def test_a_folder_that_may_not_be_searched_does_not_hide_others_in_a_list(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("good", "locked"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text("training: {budget: {steps: 9}}", encoding="utf-8")
    locked, stat, listdir = str(tmp_path / "runs" / "locked"), os.stat, os.listdir

    def refused(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith(locked + "/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    def unlisted(path: Any = ".") -> Any:
        if str(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", locked)
        return listdir(path)

    monkeypatch.setattr(os, "stat", refused)  # tests may run as root, who may read everything
    monkeypatch.setattr(os, "listdir", unlisted)
    assert main(["runs", "list", str(tmp_path / "runs")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["good"]
    assert caplog.messages == [f"{locked}: left out, because it cannot be read: Permission denied"]


class Sample(BaseModel):
    name: StoredText
    count: int


OBJECTS = {
    '{"name": "a"}': ["count: is missing"],
    '{"name": 1, "count": "x"}': [
        "name: has the wrong type (found 1, expected text)",
        "count: has the wrong type (found 'x', expected an integer)",
    ],
    '{"name": "a\\u0000", "count": 1}': ["name: has the wrong type (found 'a\\x00', expected text without NUL)"],
    "[1]": ["has the wrong type (found [1], expected a map)"],
    "{": ["is not valid JSON: EOF while parsing an object at line 1 column 1"],
}


@pytest.mark.parametrize("text", OBJECTS)
def test_a_damaged_object_is_named_by_file_and_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_json_object(path, Sample)
    assert [str(problem) for problem in caught.value.problems] == [f"{path}: {words}" for words in OBJECTS[text]]


def test_a_missing_file_of_rows_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_json_rows(tmp_path / "a.jsonl", Sample) == []
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packages": []}, "packages: has the wrong type (found [], expected a map)"),
        ({"packages": {"torch": 2}}, "packages.torch: has the wrong type (found 2, expected text)"),
        ({"data_fingerprint": 1}, "data_fingerprint: has the wrong type (found 1, expected text)"),
        ({"teacher_sha256": "x"}, "teacher_sha256: has the wrong type (found 'x', expected a map)"),
    ],
)
def test_a_damaged_environment_is_named_by_its_key(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"python": "3.11", "later": [1]} | change), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_environment(tmp_path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_damaged_runs_do_not_hide_others_in_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    recipes = {"good": "training: {budget: {steps: 9}}", "bad": "[" * 3000, "worse": "a: &a [*a]"}
    for name, recipe in recipes.items():
        run = tmp_path / "runs" / name / "1"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
        (run / "metrics.jsonl").write_text(f'{GOOD}\n{{"step": "x", "train/loss": 1}}\n', encoding="utf-8")
    assert main(["runs", "list", str(tmp_path / "runs")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["bad/1", "stopped", "1"],
        ["good/1", "stopped", "1"],
        ["worse/1", "stopped", "1"],
    ]
    assert [message.split(": ")[0] for message in caplog.messages] == [
        f"{tmp_path}/runs/{name}/1/metrics.jsonl:2" for name in sorted(recipes)
    ]
