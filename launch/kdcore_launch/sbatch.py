"""Submit jobs to SLURM or to this machine through submitit, and store submissions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from pydantic import ValidationError
from submitit.core.utils import FailedJobError, FailedSubmissionError

from kdcore import InfrastructureError, InputError, atomic_write
from kdcore_launch import history, slurm_queries
from kdcore_launch.job import Job
from kdcore_launch.profile import Profile

COMMENT = "kdcore-launch "
_FILE = "submission.json"
_FORMAT = 1
_NO_LIMIT_MINUTES = 60 * 24 * 365
_OF_ANOTHER_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
_OF_ANOTHER_RUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Submission:
    """A submitted run, or the submitted runs of a sweep.

    Attributes:
        folder: folder for submitit's files and SLURM's logs.
        name: name of the job.
        jobs: the jobs.
        code: folder of the copied code; None to use the code that is installed when the jobs start.
        parallel: maximum number of concurrent jobs.
        working_folder: base of relative paths.
    """

    folder: Path
    name: str
    jobs: list[Job]
    code: Path | None
    parallel: int
    working_folder: Path

    @property
    def profile(self) -> Profile:
        """Return the common profile of the jobs."""
        return self.jobs[0].profile

    def __post_init__(self) -> None:
        """Reject strings that would break a line of a batch script.

        Raises:
            InputError: a string contains a control character; the message names it.
        """
        folders = [self.folder, self.working_folder, *(job.folder for job in self.jobs)]
        texts = [self.name, *map(str, folders), *([] if self.code is None else [str(self.code)])]
        for text in texts:
            if not text.isprintable():
                raise InputError(
                    f"{text[:80]!r} cannot be used in a batch script: it contains a line break or control character",
                    hint="choose another folder or name",
                )

    def store(self, folder: Path) -> None:
        """Store the submission, so that it can be resubmitted."""
        note = {
            "format": _FORMAT,
            "name": self.name,
            "profile": self.profile.model_dump(mode="json"),
            "code": None if self.code is None else str(self.code),
            "parallel": self.parallel,
            "working_folder": str(self.working_folder),
            "jobs": [_stored_job(job) for job in self.jobs],
        }
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / _FILE) as file:
            file.write(json.dumps(note, indent=2).encode() + b"\n")


def stored_in(folder: Path) -> Path | None:
    """Return the folder with the stored submission (a sweep folder, or a folder inside a run folder), or None."""
    for place in (folder, history.launch_folder(folder)):
        if (place / _FILE).is_file():
            return place
    return None


def read_submission(folder: Path) -> Submission:
    """Read a stored submission.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        note: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if note["format"] != _FORMAT:
            raise InputError(
                f"submitted by another version of kdcore-launch (found format {note['format']}, expected {_FORMAT})",
                where=str(folder / _FILE),
            )
        profile = Profile.model_validate(note["profile"])
        jobs = [_job_of(job, profile) for job in note["jobs"]]
        code = None if note["code"] is None else Path(note["code"])
        working_folder = Path(note["working_folder"])
        return Submission(folder, note["name"], jobs, code, note["parallel"], working_folder)
    except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
        raise InputError(f"the submission file cannot be read: {error}", where=str(folder / _FILE)) from error


def _stored_job(job: Job) -> dict[str, Any]:
    stored: dict[str, Any] = {"folder": str(job.folder), "arguments": job.arguments}
    return stored if job.output is None else {**stored, "output": str(job.output)}


def _job_of(stored: dict[str, Any], profile: Profile) -> Job:
    output = Path(stored["output"]) if "output" in stored else None
    return Job(Path(stored["folder"]), tuple(stored["arguments"]), profile, output)


def sbatch_script(submission: Submission) -> str:
    """Return the script that `submit` passes to sbatch."""
    executor = _executor(submission, _ScriptOnly)
    if len(submission.jobs) > 1:
        executor.parameters["map_count"] = len(submission.jobs)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def submit(submission: Submission) -> list[str]:
    """Submit the jobs to SLURM, as an array if there are several, and return their ids.

    Raises:
        InputError: sbatch rejects the jobs; the error includes its output.
    """
    executor = _executor(submission, submitit.SlurmExecutor)
    words = io.StringIO()
    try:
        with _as_outside_of_jobs(), contextlib.redirect_stderr(words), contextlib.chdir(submission.working_folder):
            if len(submission.jobs) == 1:
                jobs = [executor.submit(submission.jobs[0])]
            else:
                jobs = executor.submit_array(submission.jobs)
    except (FailedJobError, FailedSubmissionError) as error:
        raise _refusal(str(error).strip() or words.getvalue().strip()) from error
    ids = [str(job.job_id) for job in jobs]
    for job, name in zip(submission.jobs, ids, strict=True):
        history.append(job.folder, "submitted", name)
    return ids


def submit_here(submission: Submission) -> str:
    """Start the job on this machine in the background; return its process id."""
    profile = submission.profile
    # Not submitit's setup option, because its shell would not forward the signal that ends the job.
    setup = "\n".join([*profile.setup, *_code_line(submission), 'exec "$0" "$@"'])
    executor = submitit.LocalExecutor(submission.folder, python=shlex.join(["sh", "-c", setup, sys.executable]))
    executor.update_parameters(
        timeout_min=profile.time or _NO_LIMIT_MINUTES,
        signal_delay_s=profile.stop_before_end,
        gpus_per_node=profile.gpus_per_node,
        stderr_to_stdout=True,
    )
    # Detach the job from this terminal and from readers of this command's output.
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _as_outside_of_jobs(), _silent(), contextlib.chdir(submission.working_folder):
            job = executor.submit(submission.jobs[0])
    finally:
        signal.signal(signal.SIGHUP, previous)
    history.append(submission.jobs[0].folder, "submitted", str(job.job_id), local=True)
    return str(job.job_id)


def log_of(submission: Submission, job: str) -> Path:
    """Return the path of a job's log."""
    return submission.folder / f"{job}_0_log.out"


class _ScriptOnly(submitit.SlurmExecutor):
    """Write scripts without requiring SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def _executor(submission: Submission, kind: type[submitit.SlurmExecutor]) -> submitit.SlurmExecutor:
    profile = submission.profile
    executor = kind(submission.folder, python=shlex.quote(profile.batch_python))
    further: dict[str, Any] = {"requeue": True}
    if profile.memory is not None:
        further["mem"] = profile.memory
    for argument in profile.sbatch:
        name, equals, value = argument.removeprefix("--").partition("=")
        further[name] = value if equals else True
    executor.update_parameters(
        job_name=submission.name,
        comment=COMMENT + str(submission.folder),
        partition=profile.partition,
        account=profile.account,
        qos=profile.qos,
        nodes=profile.nodes,
        ntasks_per_node=profile.processes,
        cpus_per_task=profile.cpus_per_process,
        gpus_per_node=profile.gpus_per_node or None,
        time=profile.time,
        constraint=profile.constraint,
        signal_delay_s=profile.stop_before_end,
        array_parallelism=submission.parallel,
        wckey=None,
        stderr_to_stdout=True,
        additional_parameters=further,
        setup=_setup_lines(submission),
        use_srun=False,  # the script starts srun and outlives it
    )
    return executor


def _setup_lines(submission: Submission) -> list[str]:
    # bash must survive the signal on which the processes save a checkpoint.
    return ["trap : TERM USR2", *submission.profile.setup, *_code_line(submission)]


def _code_line(submission: Submission) -> list[str]:
    if submission.code is None:
        return []
    return [f"export PYTHONPATH={shlex.quote(str(submission.code))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _refusal(words: str) -> InputError | InfrastructureError:
    """Convert an error from sbatch, and add the valid values if SLURM can list them."""
    known = {"partition": r"invalid partition", "account": r"invalid account", "qos": r"invalid qos"}
    for key, pattern in known.items():
        if re.search(pattern, words, re.IGNORECASE):
            hint = f"set `{key}` in the profile, or `profile.{key}=NAME`"
            return InputError(
                f"sbatch rejected the job: {words}", key=key, allowed=slurm_queries.offered(key), hint=hint
            )
    if re.search(r"unable to contact|connection refused|timed out", words, re.IGNORECASE):
        return InfrastructureError(f"SLURM does not respond: {words}")
    hint = "change the profile; `--dry-run` prints the resulting sbatch script"
    return InputError(f"sbatch rejected the job: {words}", hint=hint)


@contextlib.contextmanager
def _as_outside_of_jobs() -> Iterator[None]:
    """Remove the environment variables of the surrounding job, in case this command runs inside a job."""
    removed = {name: value for name, value in os.environ.items() if name in _OF_ANOTHER_RUN}
    if "SLURM_JOB_ID" in os.environ:
        other = {name: value for name, value in os.environ.items() if name.startswith(_OF_ANOTHER_JOB)}
        removed |= {name: value for name, value in other.items() if name != "SLURM_CONF"}
    for name in removed:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(removed)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Detach processes started in this context from this process's input and output."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nothing)


def names_of(jobs: Sequence[str]) -> str:
    """Format the ids of several jobs; an array has a single id."""
    return ", ".join(sorted({job.partition("_")[0] for job in jobs}, key=int))
