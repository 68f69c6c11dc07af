"""Supervise one process of a run on a SLURM node.

`python -m kdcore_launch.process RECORDS ARGUMENTS...` runs `kdcore ARGUMENTS`. Importing kdcore takes seconds, during
which USR2 would kill it. This process handles signals immediately, forwards them, and records kdcore's exit code in the
folder RECORDS. SLURM's exit codes are not sufficient: after one process has failed, SLURM kills the others and reports
the signals.

Import only the standard library here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130
_PEERS_SECONDS = 5.0
_POLL_SECONDS = 0.05


class Stop:
    """Record stop signals and forward them to the child process."""

    def __init__(self) -> None:
        self.came: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, output: IO[bytes] | None = None
    ) -> int:
        """Start a command unless a signal was received; return its exit code, negative if killed by another signal."""
        if self.came:
            return INTERRUPTED
        self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        for number in tuple(self.came):  # received between the check above and the start
            self._process.send_signal(number)
        code = self._process.wait()
        return INTERRUPTED if -code in self.came else code  # killed before it could handle the signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came.add(number)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def main() -> int:
    """Run kdcore with the rank given by SLURM."""
    stop = Stop()
    records, arguments = Path(sys.argv[1]), sys.argv[2:]
    rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
    }
    # Process 0 writes to the job's log. The log of another process is printed if it caused the run to fail.
    output = None if rank == 0 else (records / f"{rank}.log").open("wb")
    code = stop.run([sys.executable, "-m", "kdcore", *arguments], environment, output)
    if code < 0:
        code = 128 - code
    staging = records / f".{rank}"
    staging.write_text(f"{code} {os.environ.get('SLURMD_NODENAME', '')}", encoding="utf-8")
    os.replace(staging, records / str(rank))
    if code:
        _wait_for_peers(records, world_size)
    return code


def _wait_for_peers(records: Path, world_size: int) -> None:
    """Wait briefly for other processes to fail by the same cause, because SLURM kills them after this process ends."""
    deadline = time.monotonic() + _PEERS_SECONDS
    while time.monotonic() < deadline:
        if all((records / str(rank)).exists() for rank in range(world_size)):
            return
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
