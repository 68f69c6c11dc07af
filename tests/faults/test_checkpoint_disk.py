"""A disk that runs full during a save, or is known to be too full before it; a folder without write permission."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BLIND = """
import os
import shutil
from collections import namedtuple

if os.environ.get("BLIND"):
    shutil.disk_usage = lambda folder: namedtuple("Usage", "total used free")(10**12, 0, 10**12)
"""


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "none", folder)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def train(small_recipe: Path, disk: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Trains in two processes on the small disk; with the variable BLIND they take it for a large one."""
    (tmp_path / "blind.py").write_text(BLIND, encoding="utf-8")

    def run(*overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), f"run.folder={disk}"]
        command += [
            "checkpoints.every=2",
            "training.zero_stage=1",
            "imports=[blind.py]",
            *overrides,
            "--processes",
            "2",
        ]
        environment = {**os.environ, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)

    return run


def checkpoints(disk: Path) -> set[str]:
    return {path.name for path in (disk / "small" / "1" / "checkpoints").iterdir()}


def test_a_full_disk_costs_the_run_and_nothing_else(train, disk):
    assert train("training.budget.steps=2").returncode == 0
    assert checkpoints(disk) == {"step-0000002", "latest"}
    size = sum(file.stat().st_size for file in (disk / "small/1/checkpoints/step-0000002").rglob("*"))
    used = shutil.disk_usage(disk).used

    mount("-o", f"remount,size={used + size + 500_000}", disk)
    known = train("training.budget.steps=4")
    assert known.returncode == 1
    assert "MB are free" in known.stderr

    mount("-o", f"remount,size={used + size // 2 + 100_000}", disk)
    unknown = train("training.budget.steps=4", BLIND="1")
    assert unknown.returncode == 1
    assert "No space left on device" in unknown.stderr

    for failed in (known, unknown):
        assert "Traceback" not in failed.stderr, failed.stderr
        (error,) = (line for line in failed.stderr.splitlines() if line.startswith("error: "))
        assert "the last good checkpoint is step-0000002" in error
        assert checkpoints(disk) == {"step-0000002", "latest"}

    mount("-o", "remount,size=64m", disk)
    again = train("training.budget.steps=4")
    assert again.returncode == 0, again.stderr
    assert "continued from step-0000002" in again.stderr


def test_a_read_only_folder_is_told_at_once(small_recipe, tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,ro,bind", folder)
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), f"run.folder={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert done.returncode == 2
    assert f"error: {folder}/small/1: the run folder cannot be written: {os.strerror(30)}" in done.stderr
    assert "run.folder" in done.stderr
    assert "Traceback" not in done.stderr
