"""Supervise one process of a run on a SLURM node.

`python -m kdcore_launch.process RECORDS ARGUMENTS...` runs `kdcore ARGUMENTS`. Starting kdcore takes several seconds,
during which USR2 would kill it. This process handles signals immediately, forwards them, and records kdcore's exit code
in the folder RECORDS. SLURM's exit codes are not sufficient: after one process has failed, SLURM kills the others and
reports the signals.

Import nothing that takes a long time before the signal handlers are installed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from kdcore import Supervisor

_PEERS_SECONDS = 5.0
_POLL_SECONDS = 0.05


def main() -> int:
    """Run kdcore with the rank given by SLURM."""
    # In the session of this process, because SLURM may track processes by session.
    with Supervisor(sessions=False) as supervisor:
        return _run(supervisor)


def _run(supervisor: Supervisor) -> int:
    from kdcore import atomic_write, shell_code

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
    command = [sys.executable, "-m", "kdcore", *arguments]
    code = shell_code(supervisor.run(command, environment=environment, output=output))
    with atomic_write(records / str(rank)) as file:
        file.write(f"{code} {os.environ.get('SLURMD_NODENAME', '')}".encode())
    if code:
        _wait_for_peers(records, world_size)
    return code


def _wait_for_peers(records: Path, world_size: int) -> None:
    """Wait briefly, so that other processes can fail for the same reason before SLURM kills them."""
    deadline = time.monotonic() + _PEERS_SECONDS
    while time.monotonic() < deadline:
        if all((records / str(rank)).exists() for rank in range(world_size)):
            return
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
