"""What would wait for ever ends by itself, with exit code 1 and words that name the cause."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

RUN = Path("runs", "small", "1")


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_ends_the_run_and_is_named(start, eventful, is_stopped, tmp_path, stopped):
    overrides = eventful("stop", step=3, rank=stopped)
    run = start(*overrides, "training.stall_minutes=0.1", processes=2)
    run.until(lambda: any(map(is_stopped, run.children())))
    children = run.children()
    assert run.wait() == 1, run.text  # torch alone would wait for half an hour
    stalled, silent = run.errors
    assert f"process {1 - stopped} of 2 made no progress for" in stalled
    assert "(phase: step 3; training.stall_minutes)" in stalled
    assert f"process {stopped} was suspended (SIGSTOP) and has been killed" in silent
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    log = (tmp_path / RUN / "train.log").read_text(encoding="utf-8")
    assert stalled in log
    stacks = log[log.index(f"stacks of process {1 - stopped}") :]
    assert "thread MainThread:" in stacks
    assert "all_reduce" in stacks
    assert [path.name for path in (tmp_path / RUN / "exports").iterdir()] == ["initial"]


def test_a_run_that_was_suspended_for_longer_than_the_bound_goes_on(start, eventful, is_stopped, tmp_path):
    bound = 3.0
    run = start(*eventful("stop", step=3), f"training.stall_minutes={bound / 60}")
    run.until(lambda: is_stopped(run.process.pid))
    time.sleep(2 * bound)
    run.process.send_signal(signal.SIGCONT)
    assert run.wait() == 0, run.text
    assert (tmp_path / RUN / "exports" / "final" / "model.safetensors").is_file()


def test_a_port_that_is_taken_is_named(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        run = start(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        assert run.wait() == 1, run.text  # torch alone would wait for minutes
    (error,) = run.errors
    assert f"the rendezvous port {port} (MASTER_PORT)" in error
    assert "in use by another program" in error


def test_half_of_a_launchers_variables_are_refused_at_once(start):
    run = start(RANK="0", WORLD_SIZE="2")
    assert run.wait() == 1, run.text
    (error,) = run.errors
    assert "MASTER_ADDR, MASTER_PORT" in error
    assert not set(os.environ) & {"RANK", "WORLD_SIZE"}
