"""What follows when the processes of a job have ended, with SLURM's programs faked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kdcore_launch.job import Job, process_command
from kdcore_launch.ports import free_port
from kdcore_launch.profile import Container, Profile, Restarts

RUNNING = "echo 'JobId=7 JobState=RUNNING Restarts={restarts} RunTime=00:01:00 TimeLimit=01:00:00 ExitCode=0:0'"


class Start:
    """One start of a job on two faked nodes."""

    def __init__(self, tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = tmp_path / "runs" / "a" / "1"
        self.slurm = slurm
        self.monkeypatch = monkeypatch
        self.profile = Profile(nodes=2)
        self.output: Path | None = None
        self.said(RUNNING.format(restarts=0))

    def said(self, about_the_job: str) -> None:
        self.slurm.answer("scontrol", f'case "$*" in *show*) {about_the_job};; esac')

    def __call__(self, *codes: int | None, srun: int = 0, restart: int = 0, during: str = "", check: int = 0) -> int:
        """Start it; gives the exit code of the batch script.

        The processes do `during` and leave `codes`, srun ends with `srun`. The look at the nodes ends with `check`.
        """
        records = self.run / "launch" / "records" / f"7-{restart}"
        lines = [f"echo '{code} node{rank}' > {records}/{rank}" for rank, code in enumerate(codes) if code is not None]
        checks = f'case "$*" in *"test -d"*) exit {check};; esac'
        self.slurm.answer("srun", "\n".join([checks, during, *lines, f"exit {srun}"]))
        environment = {
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restart),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_PROCID": "0",
            "SUBMITIT_EXECUTOR": "slurm",
            "SUBMITIT_FOLDER": str(self.run / "launch"),
        }
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)
        try:
            return Job(self.run, ("train", "recipe.yaml"), self.profile, self.output)()
        except SystemExit as stop:
            return int(stop.code or 0)

    @property
    def requeued(self) -> bool:
        return "requeue 7" in self.slurm.calls("scontrol")

    @property
    def events(self) -> list[dict[str, object]]:
        lines = (self.run / "launch" / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def start(tmp_path, slurm, monkeypatch):
    from kdcore_launch import job

    monkeypatch.setattr(job, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(job, "_SETTLE_SECONDS", 0.0)
    handled = []
    monkeypatch.setattr(job.signal, "signal", lambda number, handler: handled.append(number))
    return Start(tmp_path, slurm, monkeypatch)


def test_a_finished_run_ends_the_job(start):
    assert start(0, 0) == 0
    assert not start.requeued
    assert [event["event"] for event in start.events] == ["start", "end"]


def test_an_interrupted_run_goes_back_into_the_queue(start):
    assert start(130, 130, srun=130) == 130
    assert start.requeued
    assert start.events[-1]["requeued"] is True


def test_slurm_may_end_the_command_that_puts_the_job_back_before_it_returns(start):
    queued = RUNNING.format(restarts=0)
    start.slurm.answer("scontrol", f'case "$*" in *show*) {queued};; *) kill -TERM $$;; esac')
    assert start(130, 130, srun=130) == 130
    assert start.requeued
    assert [event["requeued"] for event in start.events if event["event"] == "end"] == [True]


def test_a_job_that_slurm_does_not_take_back_has_ended(start, capfd):
    queued = RUNNING.format(restarts=0)
    start.slurm.answer(
        "scontrol", f'case "$*" in *show*) {queued};; *) echo "Requested operation is disabled" >&2; exit 1;; esac'
    )
    assert start(130, 130, srun=130) == 1
    assert start.events[-1]["requeued"] is False
    assert "Requested operation is disabled" in capfd.readouterr().err


def test_a_killed_process_brings_the_job_back(start):
    assert start(143, None, srun=137) == 1
    assert start.requeued


def test_wrong_input_never_comes_back_even_if_slurm_killed_the_other_process(start):
    assert start(143, 2, srun=137) == 2
    assert not start.requeued
    assert start.events[-1] | {"time": 0} == {
        "event": "end", "job": "7", "time": 0, "restart": 0, "code": 2, "step": 0, "requeued": False,
    }  # fmt: skip


def test_failed_training_comes_back_only_if_the_profile_says_so(start):
    assert start(3, 1, srun=3) == 3
    assert not start.requeued
    start.profile = Profile(nodes=2, restarts=Restarts(after_training_failed=True))
    assert start(3, 1, srun=3) == 3
    assert start.requeued


def test_what_the_failed_process_said_is_shown(start, capfd):
    log = start.run / "launch" / "records" / "7-0" / "1.log"
    assert start(143, 2, srun=2, during=f"echo 'error: no such data' > {log}") == 2
    assert "error: no such data" in capfd.readouterr().err


def test_srun_that_ends_well_without_a_word_of_the_processes_has_lost_them(start):
    assert start(None, None, srun=0) == 1
    assert start.requeued


def test_a_cancelled_job_stays_away(start):
    start.said("echo 'JobId=7 JobState=COMPLETING Restarts=0 RunTime=00:01:00 TimeLimit=01:00:00 ExitCode=0:0'")
    assert start(130, 130, srun=130) == 130
    assert not start.requeued
    assert start.events[-1]["requeued"] is False


def test_a_job_whose_time_ran_out_before_it_had_saved_comes_back(start):
    start.said("echo 'JobId=7 JobState=COMPLETING Restarts=0 RunTime=01:00:03 TimeLimit=01:00:00 ExitCode=0:0'")
    assert start(130, 143, srun=137) == 1
    assert start.requeued


def test_what_is_left_of_a_job_that_started_elsewhere_touches_nothing(start):
    start.said(RUNNING.format(restarts=1))
    assert start(1, None, srun=1) == 1
    assert not start.requeued
    assert [event["event"] for event in start.events] == ["start"]


def test_restarts_without_progress_are_limited(start):
    start.profile = Profile(nodes=2, restarts=Restarts(without_progress=1))
    assert start(1, 1, srun=1) == 1
    assert start.requeued
    (start.slurm.folder / "calls").unlink()
    start.said(RUNNING.format(restarts=1))
    assert start(1, 1, srun=1, restart=1) == 1
    assert not start.requeued
    assert start.events[-1]["requeued"] is False


def test_progress_starts_the_count_anew(start):
    start.profile = Profile(nodes=2, restarts=Restarts(without_progress=0))
    for restart in range(3):
        start.said(RUNNING.format(restarts=restart))
        (start.slurm.folder / "calls").unlink(missing_ok=True)
        checkpoint = start.run / "checkpoints" / f"step-000000{restart + 1}"
        assert start(1, 1, srun=1, restart=restart, during=f"mkdir -p {checkpoint}") == 1
        assert start.requeued


def test_files_in_the_output_folder_are_progress_of_a_part(start):
    start.output = start.run.parent / "cache"
    start.profile = Profile(nodes=2, restarts=Restarts(without_progress=0))
    for restart, name in enumerate(("train-00000.arrow", "train-00001.arrow", ".train-00002.arrow.lock")):
        start.said(RUNNING.format(restarts=restart))
        (start.slurm.folder / "calls").unlink(missing_ok=True)
        during = f"mkdir -p {start.output}; touch {start.output}/{name}"
        assert start(130, 130, srun=130, restart=restart, during=during) == (1 if restart == 2 else 130)
        assert start.requeued == (restart < 2)
    assert [event["step"] for event in start.events if event["event"] == "start"] == [0, 1, 2]


def test_nodes_without_the_run_folder_are_told_and_not_tried_again(start):
    assert start(check=2) == 2
    assert not start.requeued
    assert start.events[-1]["code"] == 2


def test_what_an_earlier_start_left_for_submitit_is_removed(start):
    stale = start.run / "launch" / "7_0_result.pkl"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"an error")
    start(0, 0)
    assert not stale.exists()


def test_srun_is_told_to_end_all_when_one_ends_and_meets_at_the_first_node(start):
    start.profile = Profile(nodes=2, gpus_per_node=4, cpus_per_process=3, srun=["--cpu-bind=cores"])
    seen = start.slurm.folder / "environment"
    start(*[0] * 8, during=f"env > {seen}")
    command = start.slurm.calls("srun")[-1]
    for part in ("--kill-on-bad-exit=1", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=3", "--cpu-bind=cores"):
        assert part in command
    environment = dict(line.split("=", 1) for line in seen.read_text(encoding="utf-8").splitlines() if "=" in line)
    assert environment["MASTER_ADDR"] == "node1"
    assert 1024 < int(environment["MASTER_PORT"]) < 32768


def test_processes_of_one_node_meet_on_the_loopback_interface(start):
    start.profile = Profile(nodes=1, gpus_per_node=2)
    seen = start.slurm.folder / "environment"
    start(0, 0, during=f"env > {seen}")
    assert "MASTER_ADDR=127.0.0.1" in seen.read_text(encoding="utf-8").splitlines()


def test_ports_stay_below_the_ephemeral_ones_and_differ_between_starts():
    ports = {free_port("7", restart) for restart in range(5)} | {free_port("8", 0)}
    assert len(ports) == 6
    assert all(1024 < port < 32768 for port in ports)


def test_a_port_that_is_taken_is_passed_over():
    import socket

    first = free_port("7", 0)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        second = free_port("7", 0)
    assert second != first
    assert second < 32768


def test_processes_in_containers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records, arguments = tmp_path / "records", ("train", "r.yaml")
    inner = f"python3 -m kdcore_launch.process {records} train r.yaml"
    container = Container(image="kdcore.sif", mounts=["/data"])
    command = process_command(Profile(gpus_per_node=1, container=container), records, arguments)
    assert " ".join(command) == f"apptainer exec --nv --bind /data --pwd {tmp_path} kdcore.sif {inner}"
    container = Container(image="kdcore.sqsh", mounts=["/data", "/a:/b"], runtime="pyxis")
    command = process_command(Profile(container=container), records, arguments)
    mounts = "--container-mounts=/data:/data,/a:/b"
    assert " ".join(command) == f"--container-image=kdcore.sqsh {mounts} --container-workdir={tmp_path} {inner}"
