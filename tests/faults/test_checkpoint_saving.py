"""kill -9 and failing disks while checkpoints are saved, by processes with a stand-in for the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("savers.py")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("seed", [1, 2])
def test_whenever_two_savers_are_killed_what_was_announced_stands_and_is_good(tmp_path, seed):
    """Ten random moments each, one of the two being slow; both are killed, or one, and then the other must end."""
    done = run("kill", tmp_path / "run", seed, 10)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is good") == 10


def test_wherever_a_save_is_cut_off_a_good_checkpoint_stands(tmp_path):
    done = run("walk", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-2]) > 20


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS"])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fails_one_process_ends_both_with_the_same_words(tmp_path, call, error):
    """`write` fails while training stands still, `fsync` in the background."""
    done = run("fail", tmp_path / "run", call, error)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (line for line in done.stderr.splitlines() if "Warning" not in line)
    assert first == second
    assert "checkpoint step-0000002 cannot be written: process 1: " in first
    assert "the last good checkpoint is step-0000001" in first
