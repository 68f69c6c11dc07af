"""Run several commands in parallel on one machine; they are terminated when the process that started them ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdcore import Supervisor, shell_code

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class ChildProcess:
    """A command to run.

    Attributes:
        name: identifies the command for the caller.
        arguments: arguments of this Python, such as `-m kdcore train ...`.
        log: file for its output.
        environment: additional environment variables.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def run_children(jobs: Sequence[ChildProcess], slots: int, ended: Callable[[ChildProcess, int], bool]) -> None:
    """Run all commands, `slots` in parallel.

    On Linux, the commands are terminated when this process ends, even if it is killed. If this process is interrupted,
    it sends them SIGTERM, so that training saves its state, and waits for them.

    Args:
        jobs: the commands in the order of their start.
        slots: number of parallel commands.
        ended: called with each finished command and its exit code (128 plus the signal number if a signal ended it);
            no further command is started once it returns False.
    """
    waiting = list(jobs)
    running: dict[int, tuple[ChildProcess, subprocess.Popen[bytes]]] = {}
    devices = _devices()
    supervisor = Supervisor()  # not entered: an interruption is an exception here
    try:
        while waiting or running:
            for slot in range(slots):
                if waiting and slot not in running:
                    job = waiting.pop(0)
                    running[slot] = (
                        job,
                        _start(supervisor, job, slots, devices[slot % len(devices)] if devices else None),
                    )
            time.sleep(_POLL_SECONDS)
            for slot, (job, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    if not ended(job, shell_code(code)):
                        waiting.clear()
    finally:
        supervisor.stop(_GRACE_SECONDS)


def run_and_wait(arguments: Sequence[str]) -> int:
    """Run one command with this Python, such as `-m kdcore launch ...`; return its exit code as in `run_children`.

    An interruption of this process sends SIGTERM and waits until the command has ended; `subprocess.run` would kill the
    command shortly after.
    """
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        return shell_code(process.wait())
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _start(supervisor: Supervisor, job: ChildProcess, slots: int, device: str | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **job.environment}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _processors() // slots)))
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as log:
        return supervisor.start(
            [sys.executable, *job.arguments],
            environment=environment,
            stdin=subprocess.DEVNULL,
            output=log,
            end_with_parent=True,
        )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> list[str]:
    """Return the GPUs to distribute over the slots; empty on a machine without GPUs."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [part for part in stated.split(",") if part.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
