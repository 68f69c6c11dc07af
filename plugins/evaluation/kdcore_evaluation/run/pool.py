"""Run several commands in parallel on one machine; they end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 20.0
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


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

    On Linux the commands end with this process, even after SIGKILL. An interruption of this process sends them SIGTERM,
    so that training saves its state, and waits for them.

    Args:
        jobs: the commands in the order of their start.
        slots: number of parallel commands.
        ended: called with each ended command and its exit code (128 plus the number of a signal that ended it); no
            further command is started once it returns False.
    """
    waiting = list(jobs)
    running: dict[int, tuple[ChildProcess, subprocess.Popen[bytes]]] = {}
    devices = _devices()
    try:
        while waiting or running:
            for slot in range(slots):
                if waiting and slot not in running:
                    job = waiting.pop(0)
                    running[slot] = (job, _start(job, slots, devices[slot % len(devices)] if devices else None))
            time.sleep(_POLL_SECONDS)
            for slot, (job, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    if not ended(job, _exit_code(code)):
                        waiting.clear()
    finally:
        _stop([process for _, process in running.values()])


def run_and_wait(arguments: Sequence[str]) -> int:
    """Run one command of this Python, such as `-m kdcore launch ...`, and return its exit code as `run_children` does.

    An interruption of this process sends SIGTERM and waits until the command has ended; `subprocess.run` would kill the
    command shortly after.
    """
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        return _exit_code(process.wait())
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _start(job: ChildProcess, slots: int, device: str | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **job.environment}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _processors() // slots)))
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *job.arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches only this process, which forwards it once
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    if _libc is not None:
        _libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> list[str]:
    """Return the GPUs to distribute over the slots; empty on a machine without."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [part for part in stated.split(",") if part.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
