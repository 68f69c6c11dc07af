"""A cache whose writing is killed at any moment, and started again, has the bytes of one that was never interrupted."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kdcore_teacher_cache import caching
from kdcore_teacher_cache.caching import SignalRecorder, cache_signals

import kdcore

MOMENTS = 20
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.flock")


def in_child(work: Callable[[], Any]) -> int:
    """Do work in a forked process; return how it ended as `os.waitpid` reports it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def killing(moment: int, folder: Path) -> Callable[[str, Any], None]:
    """An audit hook that kills this process before its `moment`-th operation on files of the folder."""
    left = [moment]

    def hook(event: str, arguments: Any) -> None:
        if event in EVENTS and (
            event == "fcntl.flock" or str(folder) in map(str, arguments[:1]) or str(folder) in str(arguments[:1])
        ):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def recorder(small_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> SignalRecorder:
    monkeypatch.setattr(caching, "SHARD_BYTES", 60_000)
    recipe = kdcore.load_recipe(small_recipe, ["task.masking.duplicates=1"])
    task, teachers = kdcore.recipe_teachers(recipe)
    return SignalRecorder(task, teachers["teacher"], batch_size=8, values="bf16")


def test_a_killed_writer_leaves_the_same_bytes_after_a_restart(recorder: SignalRecorder, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        cache_signals(recorder, folder, task=(1, 1), progress=lambda done, total: None)

    whole, counted = tmp_path / "whole", tmp_path / "count"

    def count() -> None:
        seen = [0]

        def hook(event: str, arguments: Any) -> None:
            if event in EVENTS and (event == "fcntl.flock" or str(whole) in str(arguments[:1])):
                seen[0] += 1

        sys.addaudithook(hook)
        write(whole)
        counted.write_text(str(seen[0]))

    assert in_child(count) == 0
    total = int(counted.read_text())
    assert len(recorder.contents.shard_files()) >= 4
    assert total > 2 * MOMENTS
    expected = content_of(whole)
    for number in range(MOMENTS):
        folder = tmp_path / f"killed-{number}"
        moment = 1 + number * (total - 1) // (MOMENTS - 1)

        def interrupted(folder: Path = folder, moment: int = moment) -> None:
            sys.addaudithook(killing(moment, folder))
            write(folder)

        assert in_child(interrupted) == signal.SIGKILL, moment
        assert in_child(lambda folder=folder: write(folder)) == 0, moment
        assert content_of(folder) == expected, moment
