"""A job that is preempted, times out, crashes or loses a node comes back finished, as if nothing had happened."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from cluster import ACCOUNT, Cluster, until

STEPS = ("training.budget.steps=60", "checkpoints.every=20")


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, Any]:
    """The metrics of runs that nothing happened to, by number of processes; filled as tests ask."""
    return {}


def preempt(cluster: Cluster) -> None:
    """Send a job that needs all nodes at once, and wait for its end."""
    needs = ["--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
    cluster.run("sbatch", "--wait", f"--account={ACCOUNT}", *needs, "--output=/dev/null", "--wrap=true")


def assert_as_undisturbed(sent, sender, undisturbed: dict[int, Any], nodes: int = 2) -> None:
    if nodes not in undisturbed:
        plain = sender.paced(*STEPS, "run.id=undisturbed", seconds=0, nodes=nodes)
        assert plain.ended()["code"] == 0
        undisturbed[nodes] = plain.metrics
    steps = [row["step"] for row in sent.metrics if "train/loss" in row]
    assert steps == list(range(1, 61))
    assert sent.metrics == undisturbed[nodes]


@pytest.mark.parametrize("user_signal", [True, False], ids=["told by USR2", "told by TERM"])
def test_preempted_twice(cluster, sender, undisturbed, user_signal):
    cluster.preempt_with_user_signal(user_signal)
    sent = sender.paced(*STEPS)
    for number in (1, 2):
        sent.started(number)
        sent.reached(15 * number + 1)
        preempt(cluster)
    assert sent.ended()["code"] == 0
    assert len(sent.starts) == 3
    # Each start went on from where the one before it was told to stop, not from a checkpoint of before.
    assert 0 < sent.starts[1]["step"] < sent.starts[2]["step"]
    assert {start["step"] % 20 for start in sent.starts[1:]} != {0}
    assert_as_undisturbed(sent, sender, undisturbed)


def test_a_chain_of_time_outs(sender, undisturbed):
    # SLURM looks every half minute and warns up to a minute too early: each start has 25 to 55 s.
    # On a busy machine that may not be enough to begin: such a start comes no further.
    patient = {"without_progress": 20}
    sent = sender.paced(*STEPS, seconds=1.0, nodes=1, time=1, stop_before_end=5, restarts=patient)
    assert sent.ended(500)["code"] == 0
    steps = [start["step"] for start in sent.starts]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert_as_undisturbed(sent, sender, undisturbed, nodes=1)


def test_a_signal_during_start_up_only_delays(cluster, sender, undisturbed):
    sent = sender.paced(*STEPS, seconds=0)
    sent.started(1)
    until(sent.processes, 60, "kdcore has been started", lambda: sent.log)
    assert sent.step == 0
    cluster.run("scancel", "--signal=USR2", sent.job)
    assert sent.ended()["code"] == 0
    assert [event["code"] for event in sent.history if event["event"] == "end"] == [130, 0]
    assert_as_undisturbed(sent, sender, undisturbed)


def test_a_process_that_is_killed_brings_the_others_down_and_the_job_back(sender, undisturbed):
    sent = sender.paced(*STEPS)
    until((sent.folder / "checkpoints" / "step-0000020").is_dir, 180, "a checkpoint stands", lambda: sent.log)
    os.kill(sent.processes()[1], signal.SIGKILL)
    assert sent.ended()["code"] == 0
    assert [start["step"] for start in sent.starts] == [0, 20]  # back to the newest checkpoint
    assert [event["code"] for event in sent.history if event["event"] == "end"] == [1, 0]
    assert_as_undisturbed(sent, sender, undisturbed)


def test_a_lost_node_leaves_an_orphan_that_can_do_no_harm(cluster, sender, undisturbed):
    sent = sender.paced(*STEPS, seconds=1.5, nodes=1)
    sent.reached(5)
    (lost,) = sent.starts[0]["hosts"]
    (orphan,) = sent.processes().values()
    cluster.kill_node(lost)
    try:
        sent.started(2, 120)
        assert sent.starts[1]["hosts"] != [lost]
        assert os.path.exists(f"/proc/{orphan}"), "SLURM lost sight of the process, but it goes on"
        until(lambda: not os.path.exists(f"/proc/{orphan}"), 120, "the orphan has noticed", lambda: sent.log)
        assert "the run folder was taken over" in sent.log
        assert sent.ended(240)["code"] == 0
        assert len(sent.starts) == 2  # the orphan's end did not put the job back once more
    finally:
        cluster.start_node(lost)
    assert_as_undisturbed(sent, sender, undisturbed, nodes=1)


def test_a_lost_step_daemon_is_noticed(cluster, sender, undisturbed):
    sent = sender.paced(*STEPS)
    sent.reached(5)
    process = sent.processes()[1]
    daemon = parent_of(parent_of(process))  # kdcore, the process that hands it signals, SLURM's step daemon
    os.kill(daemon, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    assert sent.ended(240)["code"] == 0
    assert len(sent.starts) == 2
    assert_as_undisturbed(sent, sender, undisturbed)


def test_a_run_that_comes_no_further_is_given_up(cluster, sender):
    sent = sender.send(nodes=1, restarts={"without_progress": 1})
    for _ in range(2):
        (process,) = until(sent.processes, 60, "kdcore has been started", lambda: sent.log).values()
        os.kill(process, signal.SIGKILL)
        until(lambda gone=process: not os.path.exists(f"/proc/{gone}"), 10, "it has ended")
    assert sent.ended()["code"] == 1
    assert len(sent.starts) == 2
    assert "given up: 2 starts have come to no newer checkpoint than step 0" in sent.log


def test_a_cancelled_job_saves_and_stays_away(cluster, sender):
    sent = sender.paced(*STEPS, nodes=1)
    sent.reached(5)
    cluster.run("scancel", sent.job)
    assert sent.ended()["code"] == 130
    (checkpoint,) = (sent.folder / "checkpoints").glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) >= 5
    listed = sender.kdcore("runs", "list", "runs").stdout
    assert "stopped" in listed


def parent_of(process: int) -> int:
    """The process that started another."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])
