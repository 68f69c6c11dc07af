"""A killed evaluation resumes, and leaves no running process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SUITE = """\
seeds: [1, 2, 3]
budget: {steps: 40}
recipe: {validation: {every: 40}, checkpoints: {every: 20}}
"""


@pytest.fixture
def project(tmp_path: Path, teacher_folder: Path, write_mood_suite: Callable[[Path, str], None]) -> Path:
    write_mood_suite(tmp_path, SUITE)
    return tmp_path


def stat(pid: int) -> list[str]:
    """State and parent of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except OSError:
        return []


def children_of(pid: int) -> list[int]:
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [number for number in numbers if stat(number)[1:] == [str(pid)]]


def until(what: Callable[[], object], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_evaluation_goes_on_without_repeating_a_finished_trial(
    number: signal.Signals, project: Path, teacher_folder: Path
) -> None:
    command = [sys.executable, "-m", "kdcore", "evaluate", str(teacher_folder), "--on", "suite.yaml"]
    cells = project / "evaluations" / "tiny" / "cells"
    with subprocess.Popen(command, cwd=project, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as stopped:
        until(lambda: list(cells.glob("*/result.json")) and len(list(cells.glob("*/train.log"))) > 1)
        children = children_of(stopped.pid)
        stopped.send_signal(number)
        assert stopped.wait(120) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert children
    until(lambda: all(stat(pid)[:1] in ([], ["Z"]) for pid in children), 60)  # no process continues without it

    finished = {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}
    logs = {path.parent: path.with_name("train.log").read_text(encoding="utf-8") for path in finished}
    assert 1 <= len(finished) < 3
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(finished)} of 3 trials are already finished" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert all(folder.joinpath("train.log").read_text(encoding="utf-8") == text for folder, text in logs.items())
    lines = (project / "evaluations" / "tiny" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["seed"] for row in rows} == {1, 2, 3}
    assert len({(row["cell"], row["metric"], row["split"]) for row in rows}) == len(rows)
