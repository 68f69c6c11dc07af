"""The lock of a run folder: one holder, gone with its process, lost to the same job's later start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore.errors import InfrastructureError, InputError
from kdcore.training.run.run_status import run_state
from kdcore.training.runtime.run_lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from kdcore.training.runtime.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught, RunLock(folder):
        pass
    return str(caught.value)


def test_a_second_holder_is_refused_with_the_first_ones_name(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder) as lock:
        lock.check()
        text = refused(folder)
        assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in text
        assert "run.id=NEW" in text
        lock.check()
    with RunLock(folder):
        pass


def test_a_released_folder_names_no_holder_although_the_process_lives(tmp_path):
    with RunLock(tmp_path):
        assert run_state(tmp_path) == "running"
    assert run_state(tmp_path) == "stopped"
    with pytest.raises(ValueError, match="failed"), RunLock(tmp_path):
        raise ValueError("failed")
    assert run_state(tmp_path) == "stopped"


def test_it_goes_with_its_process_however_that_ends(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert f"process {holder.pid} on" in refused(folder)
        holder.send_signal(signal.SIGKILL)
    with RunLock(folder) as lock:
        lock.check()


def test_a_requeued_job_takes_the_folder_and_what_is_left_of_it_notices(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with RunLock(tmp_path) as orphan:
        refused(tmp_path)  # not requeued
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with RunLock(tmp_path) as requeued:
            requeued.check()
            with pytest.raises(InfrastructureError, match=f"taken over by process {os.getpid()} on .*stops writing"):
                orphan.check()
            monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
            refused(tmp_path)  # an older start does not get it back
            monkeypatch.setenv("SLURM_JOB_ID", "8")
            monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
            refused(tmp_path)  # nor does another job
    assert not list(tmp_path.glob(".lock-*"))


def test_who_has_lost_the_lock_does_not_take_it_from_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with RunLock(tmp_path / "run"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        requeued = RunLock(tmp_path / "run")
        requeued.__enter__()
    requeued.check()
    refused(tmp_path / "run")
    requeued.__exit__()


def test_a_lock_file_that_is_gone_is_a_lost_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        (tmp_path / ".lock").unlink()
        with pytest.raises(InfrastructureError, match="taken over"):
            lock.check()


def test_a_lock_file_that_says_nothing_still_refuses(tmp_path):
    with RunLock(tmp_path):
        (tmp_path / ".lock").write_text("", encoding="utf-8")
        assert "another process" in refused(tmp_path)


def test_a_folder_in_which_nothing_was_written_is_taken_away_again(tmp_path):
    with RunLock(tmp_path / "runs" / "name" / "1"):
        assert json.loads((tmp_path / "runs/name/1/.lock").read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path / "runs" / "name" / "1"):
        (tmp_path / "runs" / "name" / "1" / "recipe.yaml").touch()
    assert (tmp_path / "runs" / "name" / "1" / "recipe.yaml").exists()


def test_a_file_in_the_place_of_the_folder_is_wrong_input(tmp_path):
    (tmp_path / "runs").touch()
    assert "the run folder cannot be written" in refused(tmp_path / "runs" / "1")
