"""A port for the processes of a job to meet at."""

from __future__ import annotations

import hashlib
import socket

from kdcore import MachineError

# Below the ports that systems give to outgoing connections, from 32768 on: those may be taken at any time.
_FIRST, _LAST = 12000, 32000
_ATTEMPTS = 50


def free_port(job: str, restart: int) -> int:
    """A port of this machine that nobody listens on, another one for each job and each of its starts.

    Args:
        job: SLURM's number of the job.
        restart: how often it was requeued; what is left of an earlier start may still hold that one's port.

    Raises:
        MachineError: every port that was tried is taken.
    """
    for attempt in range(_ATTEMPTS):
        digest = hashlib.sha256(f"{job} {restart} {attempt}".encode()).digest()
        port = _FIRST + int.from_bytes(digest[:4], "big") % (_LAST - _FIRST)
        with socket.socket() as probe:
            # As the store that will listen here does: a port that only waits for stray packets counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise MachineError(f"{_ATTEMPTS} ports between {_FIRST} and {_LAST} are taken on {socket.gethostname()}")
