"""Query job states, requeue jobs and list partitions, accounts and qos with SLURM's commands."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kdcore import InfrastructureError, InputError, JobQueue

_SECONDS = 60


@dataclass(frozen=True)
class JobInfo:
    """A job as reported by `scontrol show job`.

    Attributes:
        state: state of the job, such as `PENDING`, `RUNNING`, `COMPLETING`, `FAILED`.
        restarts: number of requeues.
        exit_code: exit code of its batch script.
        signal: signal that ended its batch script; SLURM also sets it if it could not open the job's files.
        user: the user who submitted it.
        comment: its comment.
        run_seconds: run time since its last start.
        limit_seconds: its time limit, or None.
        nodes: its current or last nodes.
    """

    state: str
    restarts: int
    exit_code: int
    signal: int
    user: str
    comment: str
    run_seconds: int
    limit_seconds: int | None
    nodes: str

    @property
    def timed_out(self) -> bool:
        """Return whether it has reached its time limit."""
        return self.limit_seconds is not None and self.run_seconds >= self.limit_seconds

    @property
    def is_over(self) -> bool:
        """Return whether it has ended and will not be restarted."""
        return self.state not in (
            "PENDING",
            "RUNNING",
            "COMPLETING",
            "CONFIGURING",
            "SUSPENDED",
            "REQUEUED",
            "REQUEUE_HOLD",
            "RESIZING",
            "SIGNALING",
            "STAGE_OUT",
            "STOPPED",
        )


def require_slurm() -> None:
    """Check that SLURM's commands are installed.

    Raises:
        InputError: they are not on the PATH.
    """
    absent = [program for program in ("sbatch", "srun", "scontrol", "squeue") if shutil.which(program) is None]
    if absent:
        raise InputError(
            f"SLURM is not available on this machine: {', '.join(absent)} not found",
            hint="run this on a login node of the cluster, or use `--local` to train on this machine",
        )


class _EndedBySignalError(InfrastructureError):
    """A command was killed by a signal."""


def run(command: Sequence[str]) -> str:
    """Run a command and return its output.

    Raises:
        InfrastructureError: the command fails (with its error output) or does not respond.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(f"`{' '.join(command)}` did not respond within {_SECONDS} seconds") from error
    except OSError as error:
        raise InfrastructureError(f"`{command[0]}` cannot be run: {error.strerror}") from error
    if done.returncode < 0:
        raise _EndedBySignalError(f"`{' '.join(command)}` was killed by signal {-done.returncode}")
    if done.returncode != 0:
        words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise InfrastructureError(f"`{' '.join(command)}`: {words}")
    return done.stdout


def job_info(job: str) -> JobInfo | None:
    """Query a job; return None if SLURM has no record of it.

    SLURM keeps the record of a job for some minutes after the job ends.

    Args:
        job: `12`, or `12_3` for a job of an array.

    Raises:
        InfrastructureError: SLURM does not respond.
    """
    try:
        text = run(["scontrol", "--oneliner", "show", "job", job])
    except InfrastructureError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    line = text.strip().splitlines()[0] if text.strip() else ""
    fields = dict(re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", line))
    if "JobState" not in fields:
        return None
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    comment = re.search(r"\sComment=(.*?)\s(?=[A-Z][A-Za-z:/]*=|$)", line + " ")
    return JobInfo(
        state=fields["JobState"],
        restarts=int(fields.get("Restarts", "0")),
        exit_code=int(code),
        signal=int(signal or 0),
        user=fields.get("UserId", "").partition("(")[0],
        comment=comment[1] if comment else "",
        run_seconds=_seconds(fields.get("RunTime", "")) or 0,
        limit_seconds=_seconds(fields.get("TimeLimit", "")),
        nodes=fields.get("NodeList", ""),
    )


def slurm_queue() -> dict[str, str] | None:
    """Return the state of each of the user's jobs in SLURM's queue, by job id (`12`, or `12_3` in an array).

    Return None if SLURM is not installed or does not respond.
    """
    if shutil.which("squeue") is None:
        return None
    try:
        text = run(["squeue", "--me", "--noheader", "--array", "--format=%i %T"])
    except InfrastructureError:
        return None
    return dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) == 2)


class SlurmQueue(JobQueue):
    """SLURM's queue, for `kdcore runs list`."""

    def states(self) -> dict[str, str] | None:
        """Return the state of each of the user's jobs by job id; None if SLURM is not installed or does not respond."""
        return slurm_queue()


def requeue(job: str) -> None:
    """Requeue the job of this process.

    Raises:
        InfrastructureError: SLURM rejects the request or does not respond.
    """
    # SLURM then kills all processes of the job, possibly including this command.
    with contextlib.suppress(_EndedBySignalError):
        run(["scontrol", "requeue", job])


def offered(what: str) -> list[str]:
    """Return the available partitions, accounts or qos; empty if SLURM does not list them."""
    commands = {
        "partition": ["sinfo", "--noheader", "--format=%R"],
        "account": ["sacctmgr", "--noheader", "--parsable2", "show", "associations", "format=account"],
        "qos": ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=name"],
    }
    try:
        return sorted(set(run(commands[what]).split()))
    except InfrastructureError:
        return []


def _seconds(text: str) -> int | None:
    """Convert `D-HH:MM:SS` to seconds; None for values such as `UNLIMITED`."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
