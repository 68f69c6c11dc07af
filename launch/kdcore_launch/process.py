"""One process of a run on a SLURM node: `python -m kdcore_launch.process RECORDS ARGUMENTS...` runs `kdcore ARGUMENTS`.

kdcore takes seconds to import, and USR2 would kill it meanwhile without a word. This process needs next to nothing: it
is ready for signals at once, hands them on, and leaves kdcore's exit code in the folder RECORDS. SLURM's own account of
exit codes will not do: once one process has failed it kills the others, and reports how they died.

Only the standard library is imported here.
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
    """What to do with signals: remember them, and hand them on to what was started once it is there."""

    def __init__(self) -> None:
        self.came: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, output: IO[bytes] | None = None
    ) -> int:
        """Start a command unless a signal came, and wait; gives its exit code, below 0 if another signal ended it."""
        if self.came:
            return INTERRUPTED
        self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        for number in tuple(self.came):  # between the look at it and the start
            self._process.send_signal(number)
        code = self._process.wait()
        return INTERRUPTED if -code in self.came else code  # it was not ready for the signal yet: nothing to save

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came.add(number)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def main() -> int:
    """Run kdcore as the process that SLURM says this is."""
    stop = Stop()
    records, arguments = Path(sys.argv[1]), sys.argv[2:]
    rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
    }
    # Process 0 writes to the job's log. What others have to say is shown if the run failed because of one of them.
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
    """Give the others a moment to end by the same cause: SLURM kills them once this process has failed."""
    deadline = time.monotonic() + _PEERS_SECONDS
    while time.monotonic() < deadline:
        if all((records / str(rank)).exists() for rank in range(world_size)):
            return
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
