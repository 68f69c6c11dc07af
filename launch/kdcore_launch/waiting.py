"""`--wait`: until every job is over, and what to say about one that never said a word itself."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from kdcore import InputError, KdcoreError, MachineError, read_history
from kdcore_launch import slurm
from kdcore_launch.process import INTERRUPTED

# slurmstepd's way to say that it could not open the files of the script, or not change to its folder.
_NO_FILES = 53
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 20.0


def wait_for(jobs: Sequence[tuple[str, Path]], *, local: bool) -> int:
    """Wait until all jobs are over; gives the exit code of the first that failed, or 0.

    Args:
        jobs: id and run folder of each.
        local: whether they run on this machine, without SLURM.

    Raises:
        InputError: a job could not run because of what it was sent with.
        MachineError: a job ended without a word.
    """
    waiting = dict(jobs)
    codes: dict[str, int] = {}
    pause = _FIRST_SECONDS
    while waiting:
        for job, folder in list(waiting.items()):
            over = _is_over_here(job) if local else _is_over(job)
            code = _noted_code(job, folder)  # looked up after: what was noted last counts
            if over or (code is not None and local):
                codes[job] = _explain(job, folder, local=local) if code is None else code
                del waiting[job]
        if waiting:
            time.sleep(pause)
            pause = min(_MOST_SECONDS, pause * 1.2)
    return next((codes[job] for job, _ in jobs if codes[job]), 0)


def _noted_code(job: str, folder: Path) -> int | None:
    """The exit code of a job that is over by its own account."""
    events = [event for event in read_history(folder) if event.get("job") == job]
    if events and events[-1]["event"] == "end" and not events[-1].get("requeued"):
        return int(events[-1]["code"])
    return None


def _is_over(job: str) -> bool:
    info = slurm.job_info(job)
    return info is None or info.is_over


def _is_over_here(job: str) -> bool:
    try:
        ended, _ = os.waitpid(int(job), os.WNOHANG)
    except ChildProcessError:
        return True
    return ended != 0


def _explain(job: str, folder: Path, *, local: bool) -> int:
    """Raise what is known about a job that ended without noting how."""
    error: KdcoreError
    info = None if local else slurm.job_info(job)  # the id of a process may be that of somebody's job
    started = any(event["event"] == "start" and event.get("job") == job for event in read_history(folder))
    if info is not None and info.signal == _NO_FILES and not started:
        error = InputError(
            f"job {job} could not open its files on {info.nodes}: the nodes do not see the run folder",
            where=str(folder),
            hint="set `run.folder` to a place on a file system that all nodes share",
        )
    elif info is not None and "CANCELLED" in info.state:
        return INTERRUPTED
    else:
        gone = "the process is gone" if local else "SLURM no longer knows it"
        state = gone if info is None else f"{info.state}, exit code {info.exit_code}"
        error = MachineError(f"job {job} ended without a word ({state}); its log may tell: {folder}")
    raise error
