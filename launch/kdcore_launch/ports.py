"""Choose the rendezvous port of a job's processes."""

from __future__ import annotations

import hashlib
import socket

from kdcore import InfrastructureError

# Below the ephemeral ports (from 32768), which outgoing connections may use at any time.
_FIRST, _LAST = 12000, 32000
_ATTEMPTS = 50


def free_port(job: str, restart: int) -> int:
    """Return a free port on this machine, chosen differently for each job and for each start of a job.

    Args:
        job: SLURM job id.
        restart: number of requeues; a process from an earlier start may still be using its port.

    Raises:
        InfrastructureError: all tested ports are in use.
    """
    for attempt in range(_ATTEMPTS):
        digest = hashlib.sha256(f"{job} {restart} {attempt}".encode()).digest()
        port = _FIRST + int.from_bytes(digest[:4], "big") % (_LAST - _FIRST)
        with socket.socket() as probe:
            # Like the store that will listen here: a port in the state TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise InfrastructureError(
        f"no free port on {socket.gethostname()} ({_ATTEMPTS} ports between {_FIRST} and {_LAST} are in use)"
    )
