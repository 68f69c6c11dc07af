"""Several processes on one machine that end together, with one exit code and one error message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kdcore.errors import MachineError
from kdcore.training.distributed import free_port

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
    with tempfile.TemporaryDirectory(prefix="kdcore-") as folder:
        started = []
        for rank in range(count):
            output = None if rank == 0 else (Path(folder) / str(rank)).open("wb")
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A group of its own: Ctrl-C reaches this process, which passes it on once.
            process = subprocess.Popen(command, env=own, stdout=output, stderr=output, start_new_session=True)
            started.append(process)
            if output is not None:
                output.close()
        first = _wait(started)
        if first is None:
            return 0
        if first != 0 and started[0].returncode != started[first].returncode:
            message = (Path(folder) / str(first)).read_text(encoding="utf-8", errors="replace")
            sys.stderr.write(message[-20_000:])
        return _exit_code(started[first].returncode, first)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; give the number of the first that failed, having ended the others. None if none failed."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in previous:
        signal.signal(number, pass_on)
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                _end_the_others(processes)
                return failed[0]
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_the_others(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Give the rest a moment to fail by the same cause, then end them: without their peer they can only hang."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_POLL_SECONDS)
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _exit_code(code: int, rank: int) -> int:
    if code < 0:
        raise MachineError(f"process {rank} was ended by signal {signal.Signals(-code).name}")
    return code
