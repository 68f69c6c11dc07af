"""What is asked of SLURM beside submitting: a job's state, another start of it, what the cluster offers."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kdcore import InputError, MachineError

_SECONDS = 60


@dataclass(frozen=True)
class JobInfo:
    """A job as `scontrol show job` tells of it.

    Attributes:
        state: such as `PENDING`, `RUNNING`, `COMPLETING`, `FAILED`.
        restarts: how often SLURM has put it back into the queue.
        exit_code: of its batch script.
        signal: that ended its batch script; SLURM also uses it to say that it could not open the job's files.
        user: who submitted it.
        comment: what its submitter noted.
        run_seconds: how long it has run since its last start.
        limit_seconds: its time limit; None without one.
        nodes: where it runs or ran last.
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
        """Whether it has used up its time."""
        return self.limit_seconds is not None and self.run_seconds >= self.limit_seconds

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will run any more."""
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
    """Refuse to go on where SLURM's commands are missing.

    Raises:
        InputError: they are not on the PATH.
    """
    absent = [program for program in ("sbatch", "srun", "scontrol", "squeue") if shutil.which(program) is None]
    if absent:
        raise InputError(
            f"there is no SLURM on this machine: {', '.join(absent)} not found",
            hint="run this where you run `sbatch`, or with `--local` to train on this machine",
        )


class _EndedBySignalError(MachineError):
    """A command was ended by a signal."""


def run(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        MachineError: it fails or does not answer; with its own words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"`{' '.join(command)}` has not answered for {_SECONDS} seconds") from error
    except OSError as error:
        raise MachineError(f"`{command[0]}` cannot be run: {error.strerror}") from error
    if done.returncode < 0:
        raise _EndedBySignalError(f"`{' '.join(command)}` was ended by signal {-done.returncode}")
    if done.returncode != 0:
        words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise MachineError(f"`{' '.join(command)}`: {words}")
    return done.stdout


def job_info(job: str) -> JobInfo | None:
    """A job that SLURM knows (for some minutes after its end, too); None if it does not.

    Args:
        job: `12`, or `12_3` for one of an array.

    Raises:
        MachineError: SLURM does not answer.
    """
    try:
        text = run(["scontrol", "--oneliner", "show", "job", job])
    except MachineError as error:
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


def requeue(job: str) -> None:
    """Put the job that this process belongs to back into the queue.

    Raises:
        MachineError: SLURM refuses, or does not answer.
    """
    # SLURM then ends what runs of the job, the command itself included if that has not returned yet.
    with contextlib.suppress(_EndedBySignalError):
        run(["scontrol", "requeue", job])


def offered(what: str) -> list[str]:
    """The partitions, accounts or qos that a user may name; nothing if SLURM does not tell."""
    commands = {
        "partition": ["sinfo", "--noheader", "--format=%R"],
        "account": ["sacctmgr", "--noheader", "--parsable2", "show", "associations", "format=account"],
        "qos": ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=name"],
    }
    try:
        return sorted(set(run(commands[what]).split()))
    except MachineError:
        return []


def _seconds(text: str) -> int | None:
    """Seconds of `D-HH:MM:SS`; None for `UNLIMITED` and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
