"""Run in a job's batch script on its first node: start the processes, collect their exit codes, requeue the job.

submitit pickles a `Job` and calls it in the batch script. It runs outside of `srun`, so that it outlives the processes
and can requeue the job after all of them have ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from kdcore import (
    EXIT_INTERRUPTED,
    STOP_SIGNALS,
    InfrastructureError,
    InputError,
    KdcoreError,
    Supervisor,
    TrainingError,
    run_status,
)
from kdcore_launch import history, slurm_queries
from kdcore_launch.ports import free_port
from kdcore_launch.profile import Profile

_EXIT_INPUT, _EXIT_MACHINE, _EXIT_TRAINING = (
    InputError.exit_code,
    InfrastructureError.exit_code,
    TrainingError.exit_code,
)
_POLL_SECONDS = 2.0
# After a process has failed, SLURM kills the others within KillWait, 30 s by default. If srun is still running
# afterwards, SLURM has lost a step daemon.
_LOST_SECONDS = 45.0
# SLURM requeues a job that is preempted or has lost a node in more than one state transition.
_SETTLE_SECONDS = 3.0
_TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Job:
    """A job: a run, or one task of a data preparation or a teacher cache.

    Attributes:
        folder: the run folder; for a task, the folder of its records.
        arguments: command line arguments of `kdcore`.
        profile: the profile of the submission.
        output: folder to which a task of a teacher cache adds files; None for other jobs.
    """

    folder: Path
    arguments: tuple[str, ...]
    profile: Profile
    output: Path | None = None

    @property
    def progress(self) -> int:
        """Return the step of the newest checkpoint, or the number of files in the output folder."""
        if self.output is None:
            return run_status(self.folder).saved_step
        return sum(not path.name.startswith(".") for path in self.output.glob("*"))

    def __call__(self) -> int:
        """Run the job; exit this process with the run's exit code unless it is 0."""
        environment = submitit.JobEnvironment()
        # With the result file of an earlier start, submitit would consider the job finished.
        environment.paths.result_pickle.unlink(missing_ok=True)
        on_slurm = environment.cluster == "slurm"
        try:
            code = _SlurmStart(self, environment).run() if on_slurm else _run_here(self, environment)
        except KdcoreError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
        if code:
            sys.exit(code)  # not an Exception, so that submitit stores no result and the job has the run's exit code
        return 0


class _SlurmStart:
    """One start of a job; a requeued job has several starts."""

    def __init__(self, job: Job, environment: submitit.JobEnvironment) -> None:
        self.job = job
        self.profile = job.profile
        self.hosts = environment.hostnames
        self.name = environment.job_id
        self.number = os.environ["SLURM_JOB_ID"]
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.is_over = False
        self.records = history.launch_folder(job.folder) / "records" / f"{self.name}-{self.restart}"

    def run(self) -> int:
        """Start the processes, wait for them and requeue if needed; return the exit code of the batch script."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        step = self.job.progress
        self._check_limit(step)
        history.append(self.job.folder, "start", self.name, restart=self.restart, step=step, hosts=list(self.hosts))
        shutil.rmtree(self.records, ignore_errors=True)
        self.records.mkdir(parents=True)
        begin = f"step {step}" if self.job.output is None else f"{step} files"
        self._log(f"start {self.restart + 1} on {', '.join(self.hosts)}, from {begin}")
        if self.profile.nodes > 1:
            self._check_nodes()
        self._srun()
        code = self._outcome()
        self._show_cause(code)
        self._end(code)
        return code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; SLURM sends it to the processes as well, and this process waits until they have ended."""
        if not self.is_over and number == signal.SIGTERM:
            history.append(self.job.folder, "stopping", self.name, restart=self.restart)

    def _check_limit(self, step: int) -> None:
        limit = self.profile.restarts.without_progress
        tried = history.restarts_without_progress(self.job.folder, self.name, step)
        if tried > limit:
            self._note_end(_EXIT_MACHINE, requeued=False)
            newer = f"a checkpoint newer than step {step}" if self.job.output is None else "a new file"
            raise InfrastructureError(
                f"stopped after {tried} starts without {newer} "
                f"(restarts.without_progress: {limit}); `kdcore launch --resume {self.job.folder}` resubmits the run"
            )

    def _check_nodes(self) -> None:
        """Check that every node can access the run folder; otherwise its processes could not report an error."""
        script = 'test -d "$1" || { echo "error: node $SLURMD_NODENAME cannot access the run folder $1" >&2; exit 2; }'
        command = ["srun", "--ntasks-per-node=1", f"--ntasks={self.profile.nodes}", f"--nodes={self.profile.nodes}"]
        done = subprocess.run([*command, "sh", "-c", script, "sh", str(self.records)])
        if done.returncode == _EXIT_INPUT:
            self._note_end(_EXIT_INPUT, requeued=False)
            raise InputError(
                "not all nodes of the job can access the run folder",
                where=str(self.job.folder),
                hint="set `run.folder` to a folder on a file system shared by all nodes",
            )

    def _srun(self) -> None:
        """Run the processes."""
        profile = self.profile
        command = [
            "srun",
            "--kill-on-bad-exit=1",  # otherwise the processes wait for a dead one until the time limit
            "--unbuffered",
            f"--nodes={profile.nodes}",
            f"--ntasks={profile.world_size}",
            f"--ntasks-per-node={profile.processes}",
            f"--cpus-per-task={profile.cpus_per_process}",
            *profile.srun,
            *process_command(profile, self.records, self.job.arguments),
        ]
        environment = {
            **os.environ,
            # On one node process 0 then listens on the loopback interface only.
            "MASTER_ADDR": self.hosts[0] if profile.nodes > 1 else "127.0.0.1",
            "MASTER_PORT": str(free_port(self.number, self.restart)),
        }
        environment.setdefault("OMP_NUM_THREADS", str(profile.cpus_per_process))
        with subprocess.Popen(command, env=environment) as srun:
            self._wait(srun)

    def _wait(self, srun: subprocess.Popen[bytes]) -> None:
        """Wait for srun; kill it if SLURM does not detect that the processes have ended."""
        ended_since: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                srun.wait(_POLL_SECONDS)
                return
            codes = self._codes()
            if len(codes) < self.profile.world_size and not any(codes.values()):
                continue  # processes are still running and none has failed
            ended_since = ended_since or time.monotonic()
            if time.monotonic() - ended_since > _LOST_SECONDS:
                self._log("SLURM did not detect the end of the processes: killing srun")
                srun.kill()

    def _codes(self) -> dict[int, int]:
        """Return the exit codes recorded by the processes, by rank."""
        codes = {}
        for path in self.records.iterdir():
            if path.name.isdecimal():
                with contextlib.suppress(OSError, ValueError):  # some file systems show a file before its content
                    codes[int(path.name)] = int(path.read_text(encoding="utf-8").partition(" ")[0])
        return dict(sorted(codes.items()))

    def _outcome(self) -> int:
        """Return the exit code of the run; recorded codes take precedence over the codes of killed processes."""
        codes = self._codes()
        for certain in (_EXIT_INPUT, _EXIT_TRAINING):
            if certain in codes.values():
                return certain
        if len(codes) == self.profile.world_size and not any(codes.values()):
            return 0
        if EXIT_INTERRUPTED in codes.values() and set(codes.values()) <= {0, EXIT_INTERRUPTED}:
            return EXIT_INTERRUPTED
        return _EXIT_MACHINE  # srun's exit code is not reliable: it is 0 if SLURM has lost the node

    def _show_cause(self, code: int) -> None:
        """Print the log of the process that ended the run; the output of process 0 has already been printed."""
        if code in (0, EXIT_INTERRUPTED):
            return
        codes = self._codes()
        ends = [f"rank {rank}: {own}" for rank, own in codes.items()]
        self._log(f"exit codes of the processes: {', '.join(ends) or 'none recorded'}")
        causes = [rank for rank, own in codes.items() if own == code]
        if causes and codes.get(0) != code:
            log = self.records / f"{causes[0]}.log"
            if log.is_file():
                with log.open("rb") as file:
                    file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
                    sys.stderr.write(file.read().decode("utf-8", errors="replace"))

    def _end(self, code: int) -> None:
        """Requeue the job if a restart may help, and record the decision."""
        again = code in (EXIT_INTERRUPTED, _EXIT_MACHINE)
        again |= code == _EXIT_TRAINING and self.profile.restarts.after_training_failed
        if not again:
            self._note_end(code, requeued=False)
            return
        info = slurm_queries.job_info(self.number)
        if info is not None and info.state != "RUNNING":
            time.sleep(_SETTLE_SECONDS)
            info = slurm_queries.job_info(self.number)
        if info is not None and info.restarts != self.restart:
            # SLURM has requeued the job. After a lost node, the next start may already be running elsewhere, so do
            # not change its state here.
            self._log(f"exit code {code}; SLURM has requeued the job")
            return
        if info is not None and info.state != "RUNNING" and not info.timed_out:
            self._log(f"exit code {code}; the job was cancelled")
            self._note_end(EXIT_INTERRUPTED, requeued=False)
            return
        self._check_limit(self.job.progress)
        # Recorded first, because SLURM ends this process as soon as the job is requeued.
        self._note_end(code, requeued=True)
        self._log(f"exit code {code}; requeueing the job, which resumes from its newest checkpoint")
        try:
            slurm_queries.requeue(self.number)
        except InfrastructureError:
            self._note_end(code, requeued=False)
            raise

    def _note_end(self, code: int, *, requeued: bool) -> None:
        self.is_over = True
        step = self.job.progress
        history.append(self.job.folder, "end", self.name, restart=self.restart, code=code, step=step, requeued=requeued)

    def _log(self, text: str) -> None:
        print(f"kdcore-launch: {text}", file=sys.stderr, flush=True)


def process_command(profile: Profile, records: Path, arguments: Sequence[str]) -> list[str]:
    """Return the command of one process on a node, inside the container if there is one."""
    container = profile.container
    inner = ["-m", "kdcore_launch.process", str(records), *arguments]
    if container is None:
        return [profile.batch_python, *inner]
    if container.runtime == "pyxis":
        mounts = [f"--container-mounts={','.join(_both_sides(container.mounts))}"] if container.mounts else []
        workdir = f"--container-workdir={Path.cwd()}"
        return [f"--container-image={container.image}", *mounts, workdir, container.python, *inner]
    binds = [part for mount in container.mounts for part in ("--bind", mount)]
    gpus = ["--nv"] if profile.gpus_per_node else []
    return ["apptainer", "exec", *gpus, *binds, "--pwd", str(Path.cwd()), container.image, container.python, *inner]


def _both_sides(mounts: Sequence[str]) -> list[str]:
    return [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]


def _run_here(job: Job, environment: submitit.JobEnvironment) -> int:
    """Run on this machine; restart after crashes while the run makes progress."""
    processes = job.profile.processes
    command = [sys.executable, "-m", "kdcore", *job.arguments]
    if job.arguments[0] == "train" and processes > 1:
        command += ["--processes", str(processes)]
    name, restart = environment.job_id, 0
    with Supervisor(sessions=False) as supervisor:
        while True:
            step = job.progress
            history.append(job.folder, "start", name, restart=restart, step=step, local=True)
            code = supervisor.run(command)
            code = _EXIT_MACHINE if code < 0 else code
            saved = job.progress
            tried = history.restarts_without_progress(job.folder, name, saved)
            again = code == _EXIT_MACHINE or (code == _EXIT_TRAINING and job.profile.restarts.after_training_failed)
            again = again and not supervisor.interrupted and tried <= job.profile.restarts.without_progress
            history.append(job.folder, "end", name, restart=restart, code=code, step=saved, requeued=again, local=True)
            if not again:
                return code
            restart += 1
