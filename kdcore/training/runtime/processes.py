"""Run several processes on one machine. They end together, with one exit code and one error message."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kdcore.errors import EXIT_MACHINE, InfrastructureError
from kdcore.utils.subprocesses import Supervisor

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_STOPPED = "was suspended (SIGSTOP) and has been killed"
_STUCK = "hung in uninterruptible I/O and has been killed"


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `kdcore ARGUMENTS` in `count` processes and return the exit code of the run.

    Unlike torchrun, this keeps the exit codes 2 (input), 3 (training) and 130 (interrupted). Process 0 writes to this
    terminal; the stderr of another process is shown only if that process caused the failure.

    Raises:
        InfrastructureError: a process was killed by a signal, or hung after the others had failed and was killed.
    """
    command = [sys.executable, "-m", "kdcore.commands.main", *arguments]
    with (
        tempfile.TemporaryDirectory(prefix="kdcore-") as folder,
        held_port() as port,
        Supervisor() as supervisor,
    ):
        environment = dict(os.environ)
        environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        for rank in range(count):
            output = None if rank == 0 else (Path(folder) / str(rank)).open("wb")
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            supervisor.start(command, environment=own, output=output)
            if output is not None:
                output.close()
        end = _wait(supervisor)
        if end is None:
            return 0
        cause = supervisor.processes[end.cause]
        code = supervisor.code_of(cause)
        if code != cause.returncode:  # a forwarded signal killed it during its start
            return code
        if code < 0:
            raise InfrastructureError(f"process {end.cause} was killed by signal {signal.Signals(-code).name}")
        if supervisor.processes[0].returncode != code:
            message = (Path(folder) / str(end.cause)).read_text(encoding="utf-8", errors="replace")
            sys.stderr.write(message[-20_000:])
        if code == EXIT_MACHINE and end.silent:
            raise InfrastructureError("; ".join(f"process {rank} {what}" for rank, what in end.silent.items()))
        return code


@contextmanager
def held_port() -> Iterator[int]:
    """Reserve a free port on this machine within the context, so that it is not assigned to another program.

    The socket that holds it does not listen and has SO_REUSEADDR, so that the store of process 0, which also sets this
    option, can still listen on the port.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


@dataclass(frozen=True)
class _End:
    """The outcome of a group of processes in which one failed.

    Attributes:
        cause: rank of the process whose failure caused the others, judging by the exit codes.
        silent: ranks that did not respond and were killed, with their states.
    """

    cause: int
    silent: dict[int, str] = field(default_factory=dict)


def _wait(supervisor: Supervisor) -> _End | None:
    """Wait for all processes; once one has failed, end the others. Return None if none failed."""
    processes = supervisor.processes
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            silent = _end_the_others(supervisor)
            late = [rank for rank, process in enumerate(processes) if process.returncode != 0 and rank not in silent]
            # Exit code 1 may mean that a peer was lost: then the peer's exit code is the cause.
            causes = [rank for rank in [*failed, *late] if processes[rank].returncode != EXIT_MACHINE]
            return _End(causes[0] if causes else failed[0], silent)
        if all(code == 0 for code in codes):
            return None
        time.sleep(_POLL_SECONDS)


def _end_the_others(supervisor: Supervisor) -> dict[int, str]:
    """Give the other processes time to fail for the same reason, then end them, as they would hang without their peer.

    They receive SIGTERM first, so that a compiler can release its lock, and then SIGKILL together with their children.

    Returns:
        The ranks that did not end by themselves, with their states.
    """
    silent = {supervisor.processes.index(each): _state(each.pid) for each in supervisor.wait(_GRACE_SECONDS)}
    supervisor.stop(0.0 if all(state == _STOPPED for state in silent.values()) else _GRACE_SECONDS)
    return silent


def _state(pid: int) -> str:
    """Describe the state of a process that does not end."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        letter = ""
    if letter in ("T", "t"):
        return _STOPPED
    return _STUCK if letter == "D" else "hung and has been killed"
