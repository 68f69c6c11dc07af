"""Several processes on one machine that end together, with one exit code and one error message."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kdcore.errors import EXIT_INTERRUPTED, EXIT_MACHINE, MachineError
from kdcore.training.interruption import STOP_SIGNALS

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `kdcore ARGUMENTS` in `count` processes and give the exit code of the run.

    Unlike torchrun this keeps the exit codes 2 (input), 3 (training) and 130 (interrupted). Process 0 shares this
    terminal; what another one writes to stderr is shown only if that process failed with something of its own to say.
    """
    environment = dict(os.environ)
    environment |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "kdcore.commands.main", *arguments]
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="kdcore-") as folder, _passing_on(started) as passed_on:
        for rank in range(count):
            output = None if rank == 0 else (Path(folder) / str(rank)).open("wb")
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A group of its own: Ctrl-C reaches this process, which passes it on once.
            started.append(subprocess.Popen(command, env=own, stdout=output, stderr=output, start_new_session=True))
            if output is not None:
                output.close()
        first = _wait(started)
        if first is None:
            return 0
        code = started[first].returncode
        if -code in passed_on:  # the signal came before the process had made ready for it
            return EXIT_INTERRUPTED
        if code < 0:
            raise MachineError(f"process {first} was ended by signal {signal.Signals(-code).name}")
        if started[0].returncode != code:
            message = (Path(folder) / str(first)).read_text(encoding="utf-8", errors="replace")
            sys.stderr.write(message[-20_000:])
        return code


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[set[int]]:
    """Hand signals that ask to stop to all processes; gives the set of those that came."""
    came: set[int] = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.add(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; give the number of the first that failed, having ended the others. None if none failed."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            ended_by_themselves = _end_the_others(processes)
            # Exit code 1 may only say that a peer was lost: then that peer's own code is the cause.
            causes = [rank for rank in [*failed, *ended_by_themselves] if processes[rank].returncode != EXIT_MACHINE]
            return causes[0] if causes else failed[0]
        if all(code == 0 for code in codes):
            return None
        time.sleep(_POLL_SECONDS)


def _end_the_others(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Give the rest a moment to fail by the same cause, then end them: without their peer they can only hang.

    Gives the numbers of those that failed without being ended here.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_POLL_SECONDS)
    failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    return failed
