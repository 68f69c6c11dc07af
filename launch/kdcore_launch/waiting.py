"""Implement `--wait`: wait until every job has ended, and report jobs that did not record an exit code."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from kdcore import EXIT_INTERRUPTED, InfrastructureError, InputError, KdcoreError, read_history
from kdcore_launch import slurm_queries

# Reported by slurmstepd if it could not open the files of the script or change to its folder.
_NO_FILES = 53
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 20.0


def wait_for(jobs: Sequence[tuple[str, Path]], *, local: bool) -> int:
    """Wait until all jobs have ended; return the exit code of the first failed job, or 0.

    Args:
        jobs: id and run folder of each job.
        local: whether the jobs run on this machine, without SLURM.

    Raises:
        InputError: a job could not start because its nodes cannot access the run folder.
        InfrastructureError: a job ended without recording an exit code.
    """
    waiting = dict(jobs)
    codes: dict[str, int] = {}
    pause = _FIRST_SECONDS
    while waiting:
        for job, folder in list(waiting.items()):
            over = _is_over_here(job) if local else _is_over(job)
            code = _noted_code(job, folder)  # read afterwards, so that the last record is not missed
            if over or (code is not None and local):
                codes[job] = _explain(job, folder, local=local) if code is None else code
                del waiting[job]
        if waiting:
            time.sleep(pause)
            pause = min(_MOST_SECONDS, pause * 1.2)
    return next((codes[job] for job, _ in jobs if codes[job]), 0)


def _noted_code(job: str, folder: Path) -> int | None:
    """Return the exit code recorded by a job, or None."""
    events = [event for event in read_history(folder) if event.get("job") == job]
    if events and events[-1]["event"] == "end" and not events[-1].get("requeued"):
        return int(events[-1]["code"])
    return None


def _is_over(job: str) -> bool:
    info = slurm_queries.job_info(job)
    return info is None or info.is_over


def _is_over_here(job: str) -> bool:
    try:
        ended, _ = os.waitpid(int(job), os.WNOHANG)
    except ChildProcessError:
        return True
    return ended != 0


def _explain(job: str, folder: Path, *, local: bool) -> int:
    """Raise an error for a job that ended without recording an exit code."""
    error: KdcoreError
    info = None if local else slurm_queries.job_info(job)  # a process id may equal the id of an unrelated job
    started = any(event["event"] == "start" and event.get("job") == job for event in read_history(folder))
    if info is not None and info.signal == _NO_FILES and not started:
        error = InputError(
            f"job {job} could not open its files on {info.nodes}: the nodes cannot access the run folder",
            where=str(folder),
            hint="set `run.folder` to a folder on a file system shared by all nodes",
        )
    elif info is not None and "CANCELLED" in info.state:
        return EXIT_INTERRUPTED
    else:
        gone = "its process does not exist" if local else "it is not in SLURM's records"
        state = gone if info is None else f"{info.state}, exit code {info.exit_code}"
        error = InfrastructureError(
            f"job {job} ended without recording an exit code ({state}); check its log in {folder}"
        )
    raise error
